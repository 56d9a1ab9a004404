"""States with planted factors, and the split of their similarity by definition in float64."""

import numpy as np

from mossa_jax.similarity import reference
from mossa_jax.similarity.projections import Factor

N = 320


def labels(rng, rows=N, templates=10, answers=12, items=None) -> dict[str, np.ndarray]:
    """Balanced levels that are independent of each other; `items` is the number of items."""
    counts = {"template": templates, "answer": answers} | ({"item": items} if items else {})
    return {name: rng.permutation(np.arange(rows) % levels) for name, levels in counts.items()}


def planted(rng, levels, shares, layers=1, rest_width=24, private=0.0) -> np.ndarray:
    """[3, layers, n, D] float32: three equal models whose CKA is made of parts of these shares.

    Each factor has dimensions of its own, so that its share is that of its squared covariance: of the levels that are
    there for templates and answers, of the population that items and the rest are drawn from. Without private noise the
    CKA is 1.
    """
    rows = len(levels["template"])
    blocks = []
    for name, share in shares.items():
        if name == "rest":
            block = rng.normal(size=(layers, rows, rest_width)) / rest_width**0.25
        else:
            effects = rng.normal(size=(layers, levels[name].max() + 1, 16)) / 16**0.25
            if name != "item":
                effects -= effects.mean(1, keepdims=True)
                covariance = np.einsum("kli,klj->kij", effects, effects) / effects.shape[1]
                effects /= np.sqrt(np.linalg.norm(covariance, axis=(1, 2)))[:, None, None]
            block = effects[:, levels[name]]
        blocks.append(block * share**0.25)
    x = np.concatenate(blocks, 2)
    noise = private * rng.normal(size=(3, layers, rows, 200))
    return np.concatenate([np.broadcast_to(x, (3, *x.shape)), noise], 3).astype(np.float32) + 3


def factors_of(levels) -> dict[str, Factor]:
    """The levels as factors."""
    return {name: Factor(labels=each) for name, each in levels.items()}


def one_hot(levels: np.ndarray) -> np.ndarray:
    """[n, levels] float64."""
    return (levels[:, None] == np.unique(levels)).astype(float)


def residual(columns: np.ndarray, design: np.ndarray) -> np.ndarray:
    """What least squares leave of the columns."""
    return columns - design @ np.linalg.lstsq(design, columns, rcond=None)[0]


def left_by_definition(gram: np.ndarray, design: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Each column after a fit to the rows of other items than its own; zero for the rows of its item."""
    out = np.zeros_like(gram)
    for k in range(len(gram)):
        others = items != items[k]
        out[others, k] = residual(gram[others, k], design[others])
    return out


def raw_parts(x: np.ndarray, y: np.ndarray, designs: list[np.ndarray], items: np.ndarray) -> np.ndarray:
    """What each further design takes of the debiased CKA of x and y, and what is left behind the last one."""
    k, m = (reference.projected(gram, items) for gram in reference._grams(x, y))
    norm = np.sqrt((k * k).sum() * (m * m).sum())
    left = [(k * m).sum() / norm]
    for design in designs:
        left.append((left_by_definition(k, design, items) * left_by_definition(m, design, items)).sum() / norm)
    return -np.diff([*left, 0.0])


def within_by_definition(x: np.ndarray, y: np.ndarray, design: np.ndarray, items: np.ndarray) -> float:
    """CKA of the nearest Gram matrices that the design annihilates and that are zero on pairs of one item.

    Found by least squares over all symmetric B of `R (K - B) R` that vanish on those pairs.
    """
    n = len(x)
    away = residual(np.eye(n), design)
    pairs = np.argwhere(np.triu(items[:, None] == items[None, :]))
    basis = []
    for i, j in pairs:
        unit = np.zeros((n, n))
        unit[i, j] = unit[j, i] = 1
        basis.append(away @ unit @ away)
    at = tuple(pairs.T)
    system = np.stack([each[at] for each in basis], 1)
    stripped = []
    for gram in reference._grams(x, y):
        left = away @ gram @ away
        weights = np.linalg.lstsq(system, left[at], rcond=None)[0]
        stripped.append(left - np.tensordot(weights, np.stack(basis), 1))
    k, m = stripped
    return float((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))
