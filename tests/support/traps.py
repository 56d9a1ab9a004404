"""States that break careless CKA, and their float64 values, for the tests of every engine."""

import numpy as np

from mossa_jax.similarity import ESTIMATORS, reference

MODELS, N, D = 3, 40, 24
PAIRS = [(0, 1), (2, 1)]
OFFSETS = (0, 1, 3, 10, 30, 100, 1000)


def benign(n=N, d=D, seed=0, models=MODELS):
    """[M, n, d] float32; the models share some of their factors."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n, 4))
    mixing = rng.normal(size=(models, 4, d))
    return (np.einsum("ns,msd->mnd", shared, mixing) + rng.normal(size=(models, n, d))).astype(np.float32)


def shifted(states, rho):
    """Adds an offset of `rho` times the root mean square norm of the centred rows to all states."""
    direction = np.random.default_rng(9).normal(size=states.shape[-1])
    centred = states - states.mean(1, keepdims=True)
    size = np.sqrt(np.square(centred).sum(2).mean()) / np.linalg.norm(direction)
    return (states + rho * size * direction).astype(np.float32)


def table():
    """Name -> ([M, n, d] float32, tolerance); every state has variance, both estimators have values."""
    rng = np.random.default_rng(5)
    traps = {f"offset {rho}": (shifted(benign(), rho), 1e-6) for rho in OFFSETS}
    massive = benign()
    massive[:, :, 3] = 1e5 * np.median(np.abs(massive)) * (1 + 0.01 * rng.normal(size=(MODELS, N)))
    traps["massive dimension"] = (massive, 1e-5)
    constant = benign()
    constant[:, :, 3] = 1e5 * np.median(np.abs(constant))
    traps["massive constant dimension"] = (constant, 1e-5)
    traps["fewer rows than columns"] = (benign(n=20, d=60), 1e-6)
    traps["four rows"] = (benign(n=4), 1e-5)
    traps["duplicated rows"] = (np.repeat(benign(n=N // 4), 4, axis=1), 1e-6)
    traps["rank 1"] = (shifted(benign()[:, :, :1] * rng.normal(size=(MODELS, 1, D)), 2), 1e-6)
    for scale in (1e-20, 1e20):
        traps[f"scale {scale:g}"] = (benign() * np.float32(scale), 1e-5)
    traps["scales apart"] = (benign() * np.float32([1e-20, 1, 1e20])[:, None, None], 1e-5)
    moved = benign()
    order = rng.permutation(N)
    traps["rows in another order, both sides"] = (moved[:, order], 1e-6)
    traps["rows in another order, one side"] = (np.stack([moved[0], moved[1, order], moved[2]]), 1e-6)
    return traps


def undefined_table():
    """Name -> ([M, n, d] float32, the reason given for pair (0, 1) per estimator; "" for a value)."""
    flat = benign()
    flat[1] = np.float32(0.1) * np.arange(1, D + 1, dtype=np.float32)
    zero = benign()
    zero[:2] = 0
    equidistant = benign(n=6, d=6)
    equidistant[0] = np.eye(6)
    return {
        "constant rows": (flat, ["no variance in b"] * 2),
        "zeros": (zero, ["no variance in a and b"] * 2),
        "equidistant rows": (equidistant, ["", "debiased self-similarity is not positive in a"]),
        "three rows": (benign(n=3), ["3 finite rows; at least 4 are needed"] * 2),
    }


def expected(states):
    """[S, S, 2] float64 reference of all pairs of [S, n, d] states."""
    return np.array([[[getattr(reference, name)(x, y) for name in ESTIMATORS] for y in states] for x in states])
