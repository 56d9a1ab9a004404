"""Similarity measures in float64 NumPy and SciPy, straight from their definitions: what the measures are held to."""

import numpy as np
from scipy import linalg, stats
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist, squareform

K = 10
"""Neighbours."""


def rbf_cka(x, y, fraction=0.8):
    centring = np.eye(len(x)) - 1 / len(x)
    grams = []
    for rows in (x, y):
        lengths = pdist(rows)
        kernel = np.exp(-np.square(squareform(lengths)) / (2 * (fraction * np.median(lengths)) ** 2))
        grams.append(centring @ kernel @ centring)
    k, m = grams
    return (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())


def unit(x):
    x = x - x.mean(0)
    return x / np.linalg.norm(x)


def procrustes(x, y):
    return linalg.orthogonal_procrustes(unit(y), unit(x))[1]


def procrustes_distance(x, y):
    rotation = linalg.orthogonal_procrustes(unit(y), unit(x))[0]
    return np.linalg.norm(unit(x) - unit(y) @ rotation) ** 2


def members(x):
    """[n, n] whether j is among the K nearest of i; rows are distinct."""
    found = np.zeros((len(x), len(x)))
    np.put_along_axis(found, cKDTree(x).query(x, K + 1)[1], 1, 1)
    np.fill_diagonal(found, 0)
    return found


def mutual_knn(x, y):
    return (members(x) * members(y)).sum(1).mean() / K


def cknna(x, y):
    mask = members(x), members(y)
    k, m = (unit(a) @ unit(a).T for a in (x, y))
    cross = (mask[0] * mask[1] * k * m).sum()
    return cross / np.sqrt((mask[0] * k * k).sum() * (mask[1] * m * m).sum())


def cosines(x):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


def hsic_of_masked(k, m, mask):
    """The unbiased HSIC of two masked kernels, as Song et al. 2012 write it for kernels without diagonals."""
    k, m, n, ones = k * mask, m * mask, len(k), np.ones(len(k))
    return (np.trace(k @ m) + (ones @ k @ ones) * (ones @ m @ ones) / (n - 1) / (n - 2)) / n / (n - 3) - (
        2 * (ones @ k @ m @ ones) / (n - 2) / n / (n - 3)
    )


def cknna_released(x, y):
    """The steps of `AlignmentMetrics.cknna` in Huh et al.'s code: a row's K largest cosines, itself left out."""
    kernels, masks = [cosines(x), cosines(y)], []
    for kernel in kernels:
        order = np.argsort(-(kernel - 9 * np.eye(len(x))), 1)[:, :K]
        mask = np.zeros_like(kernel)
        np.put_along_axis(mask, order, 1, 1)
        masks.append(mask)
    common = masks[0] * masks[1]
    cross = (hsic_of_masked(*kernels, common) + hsic_of_masked(*kernels[::-1], common)) / 2
    own = [hsic_of_masked(kernel, kernel, mask) for kernel, mask in zip(kernels, masks, strict=True)]
    return cross / np.sqrt(own[0] * own[1])


def svcca(x, y, most=None):
    kept = []
    for rows in (x, y):
        u, s, _ = linalg.svd(rows - rows.mean(0), full_matrices=False)
        kept.append(u[:, : np.searchsorted(np.cumsum(s**2) / (s**2).sum(), 0.99) + 1][:, :most])
    return linalg.svd(kept[0].T @ kept[1], compute_uv=False).mean()


def rsa(x, y):
    return stats.spearmanr(pdist(x), pdist(y))[0]


ORACLES = {
    f.__name__: f for f in (rbf_cka, procrustes, procrustes_distance, mutual_knn, cknna, cknna_released, svcca, rsa)
}
