"""Same-layer CKA of pairs of models, with intervals and a permutation null: the one door for kept rows."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from mossa_jax.errors import Refusal
from mossa_jax.similarity import gram, intervals, null
from mossa_jax.similarity.estimators import (
    ESTIMATORS,
    MIN_ROWS,
    Products,
    null_mean,
    products,
    ratio,
    reasons,
    variance_missing,
)


@dataclasses.dataclass(frozen=True)
class Similarities:
    """CKA of P pairs of models at K layers; last axis in the order of `ESTIMATORS`.

    Attributes:
        value: [P, K, 2] signed, never clamped; NaN exactly where `undefined` is not empty.
        low: [P, K, 2] lower end of the 95 % jackknife interval.
        high: [P, K, 2] upper end. With n = 4 the debiased jackknife does not exist: the whole range -1 to 1.
        null_mean: [P, K, 2] exact mean over all re-pairings of the rows (debiased: 0).
        p: [P, K, 2] one-sided permutation p-value; NaN where undefined and wherever `permutations=0`.
        undefined: [P, K, 2] the reason in words, or "".
        participation_ratio: [M, K] `(tr S)^2 / tr S^2` of the covariance; NaN for a state without variance.
        offset: [M, K] norm of the mean row over the root mean square norm of the centred rows; inf for a constant
            state, NaN without rows or where all are zero.
        n: rows that counted.
        dropped: valid rows left out, in all models and layers at once, as one of them was not finite.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    null_mean: np.ndarray
    p: np.ndarray
    undefined: np.ndarray
    participation_ratio: np.ndarray
    offset: np.ndarray
    n: int
    dropped: int


def _check(states: jax.Array, valid: np.ndarray, pairs: Sequence[tuple[int, int]], permutations: int) -> None:
    if states.ndim != 4 or not jnp.issubdtype(states.dtype, jnp.floating):
        raise Refusal(3, f"states are {states.dtype}{list(states.shape)}; give floating [models, layers, rows, width]")
    if valid.shape != states.shape[2:3] or valid.dtype != bool:
        raise Refusal(3, f"valid is {valid.dtype}{list(valid.shape)}; give one bool for each of {states.shape[2]} rows")
    if not pairs or any(not 0 <= m < states.shape[0] for pair in pairs for m in pair):
        raise Refusal(3, f"pairs are {list(pairs)}; give pairs of indices below {states.shape[0]}")
    if permutations < 0:
        raise Refusal(2, f"permutations is {permutations}; give 0 (no p-value) or more")


def compare_states(
    states: jax.Array,
    valid: np.ndarray | jax.Array,
    pairs: Sequence[tuple[int, int]],
    *,
    permutations: int = 0,
    seed: int = 0,
) -> Similarities:
    """Exact linear CKA, biased and debiased, of pairs of models at every layer.

    Everything of size n x D stays on the devices, in one compiled program per shape; row sums come back and are
    combined in float64.

    Args:
        states: [M, K, n, D] float32 or bfloat16 pooled states, possibly sharded on a mesh.
        valid: [n] bool, False for padding and for prompts left out; the same on every process.
        pairs: (a, b) indices of models.
        permutations: how many random re-pairings the p-value rests on.
        seed: of the re-pairings.

    Raises:
        Refusal: code 3 where shapes or indices do not fit.
    """
    valid = np.asarray(valid)
    pairs = tuple((int(a), int(b)) for a, b in pairs)
    states = jnp.asarray(states)
    _check(states, valid, pairs, permutations)
    combinations = gram.combinations(states.shape[0], pairs)
    mesh = states.sharding.mesh if isinstance(states.sharding, NamedSharding) else None
    sums = gram.sums(
        states,
        valid,
        null.draw_ranks(valid, permutations, seed),
        combinations=combinations,
        pairs=pairs,
        tile=gram.tile_size(states.shape[2]),
        mesh=mesh if mesh is not None and mesh.size > 1 else None,
    )
    sums = gram.Sums(*(np.asarray(a) for a in sums))
    return summarise(sums, int(valid.sum()), combinations, pairs, float(jnp.finfo(states.dtype).eps))


def summarise(
    sums: gram.Sums,
    valid_rows: int,
    combinations: tuple[tuple[int, int], ...],
    pairs: tuple[tuple[int, int], ...],
    eps: float,
) -> Similarities:
    """Combines device sums in float64.

    Args:
        sums: of the device, as NumPy arrays.
        valid_rows: how many rows were valid before non-finite ones were dropped.
        combinations: of `sums.g`.
        pairs: wanted.
        eps: machine epsilon of the stored states.
    """
    kept = sums.kept
    n = int(kept.sum())
    g, r, cross = (a[..., kept].astype(np.float64) for a in (sums.g, sums.r, sums.cross))
    r_all = r.sum(-1)
    mean_square = sums.mean_square.astype(np.float64) * 4.0 ** -sums.exponent.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        offset = np.sqrt(mean_square * n / r_all).T
    shape = (len(pairs), r.shape[0], 2)
    flat = variance_missing(r_all, mean_square, n, eps)
    values = {name: np.full(shape, np.nan) for name in ("value", "low", "high", "null_mean", "p")}
    undefined = np.full(shape, "", dtype=object)
    ratio_of = np.full(r_all.T.shape, np.nan)
    if n < MIN_ROWS:
        undefined[:] = f"{n} finite rows; at least {MIN_ROWS} are needed"
    else:
        made = {
            (a, b): products(g[:, c], r[:, a], r[:, b], cross[:, a, b] + cross[:, b, a])
            for c, (a, b) in enumerate(combinations)
        }
        for m in range(r.shape[1]):
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio_of[m] = np.where(flat[:, m], np.nan, r_all[:, m] ** 2 / made[m, m].biased)
        for i, (a, b) in enumerate(pairs):
            trio = (made[min(a, b), max(a, b)], made[a, a], made[b, b])
            for e, name in enumerate(ESTIMATORS):
                vanishing = tuple(own.debiased <= own.noise for own in trio[1:])
                reason = reasons(name, (flat[:, a], flat[:, b]), vanishing)
                undefined[i, :, e] = reason
                row = _estimate(name, trio, reason == "", n, r_all[:, a], r_all[:, b], sums.permuted[:, i])
                for key, column in row.items():
                    values[key][i, :, e] = column
    return Similarities(
        **values,
        undefined=undefined,
        participation_ratio=ratio_of,
        offset=offset,
        n=n,
        dropped=valid_rows - n,
    )


def _estimate(
    name: str,
    trio: tuple[Products, Products, Products],
    defined: np.ndarray,
    n: int,
    r_all: np.ndarray,
    s_all: np.ndarray,
    permuted: np.ndarray,
) -> dict[str, np.ndarray]:
    """Value, interval, null mean and p of one pair and estimator over the K layers; NaN where not defined."""
    whole = tuple(np.where(defined, getattr(t, name), np.nan) for t in trio)
    value = ratio(*whole)
    if name == "debiased" and n == MIN_ROWS:
        low, high = np.where(defined, -1.0, np.nan), np.where(defined, 1.0, np.nan)
    else:
        error = intervals.jackknife_error(value, whole, tuple(getattr(t, f"{name}_loo") for t in trio))
        low, high = intervals.interval(value, error, n)
    h, rs = permuted[:, 0].astype(np.float64), permuted[:, 1].astype(np.float64)
    if name == "debiased":
        mean = np.where(defined, 0.0, np.nan)
        h = h - n / (n - 2) * rs + (r_all * s_all / ((n - 1) * (n - 2)))[:, None]
    else:
        mean = np.where(defined, null_mean(r_all, s_all, whole[1], whole[2], n), np.nan)
    draws = ratio(h, whole[1][:, None], whole[2][:, None])
    count = draws.shape[1]
    # A permutation that changes nothing must count as a tie despite rounding.
    reached = (draws >= value[:, None] - 1e-6).sum(1)
    p = np.where(defined & (count > 0), (1 + reached) / (count + 1), np.nan)
    return {"value": value, "low": low, "high": high, "null_mean": mean, "p": p}
