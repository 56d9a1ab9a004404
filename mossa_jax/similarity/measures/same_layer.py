"""Eight similarity measures of same-layer pairs beside linear CKA: their definitions and their invariances.

All are exact: over all kept rows, without sampling. Rows are centred in float32 first, as for CKA.

Shape letters: M models, K layers, n rows, D width, m = min(n, D), P pairs, C = M + P combinations: every model with
itself, then the pairs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from mossa_jax.errors import BAD_CONFIG, BAD_INPUT, Refusal
from mossa_jax.similarity import gram, layerwise
from mossa_jax.similarity.checks import check_pairs, check_states, mesh_of
from mossa_jax.similarity.estimators import FLOAT32_EPS, MIN_ROWS, ratio, variance_missing
from mossa_jax.similarity.measures import distances, subspaces
from mossa_jax.similarity.measures.variants import divide_by_norm

# Distances are counted and ranked in int32: twice a rank, below n (n - 1), has to stay below 2^31.
MAX_RANKED_ROWS = 46_340


@dataclasses.dataclass(frozen=True)
class Invariances:
    """The transformations of one side that do not change the value.

    Attributes:
      permutation: of the dimensions.
      orthogonal: any rotation or reflection of the dimensions.
      isotropic_scaling: all entries times one number.
      translation: the same vector added to every row.
      invertible_linear: any invertible map of the dimensions.
    """

    permutation: bool = True
    orthogonal: bool = True
    isotropic_scaling: bool = True
    translation: bool = True
    invertible_linear: bool = False


# SVCCA would be invariant to any invertible map if it kept all components. Which components hold 99 % of the variance
# depends on the map.
INVARIANCES = {
    "rbf_cka": Invariances(),
    "procrustes": Invariances(),
    "procrustes_distance": Invariances(),
    "mutual_knn": Invariances(),
    "cknna": Invariances(),
    # Its kernels are inner products of rows that are not centred.
    "cknna_released": Invariances(translation=False),
    "svcca": Invariances(),
    "rsa": Invariances(),
}
MEASURES = tuple(INVARIANCES)
NEIGHBOUR_MEASURES = ("mutual_knn", "cknna", "cknna_released")
"""The measures that look at the nearest neighbours of each row."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """Similarities of P pairs of models at K layers, by measure.

    Attributes:
      value: name -> [P, K] float64, never clamped; NaN exactly where `undefined` is not empty.
      undefined: name -> [P, K] the reason in words, or "".
      n: rows that counted.
      dropped: valid rows left out, in all models and layers at once, because one of them was not finite.
    """

    value: dict[str, Float[np.ndarray, "P K"]]
    undefined: dict[str, np.ndarray]
    n: int
    dropped: int


def measure_states(
    states: Float[Array, "M K n D"],
    valid: np.ndarray | jax.Array,
    pairs: Sequence[tuple[int, int]],
    measures: Sequence[str] = MEASURES,
    *,
    bandwidth: float = 0.8,
    neighbours: int = 10,
    share: float = 0.99,
    rows_per_component: int = 1,
) -> Measured:
    """Measures the similarity of pairs of models at every layer, on the devices.

    - `rbf_cka`: biased CKA of Gaussian kernels, 0 to 1 (Kornblith et al. 2019).
    - `procrustes`: `|X^T Y|_* / (|X| |Y|)` with the nuclear norm above, 0 to 1; its arccos is the angular distance of
      Williams et al. 2021.
    - `procrustes_distance`: `min_Q |X / |X| - Y Q / |Y||^2 = 2 - 2 procrustes`, squared, 0 to 2 (Ding et al. 2021).
    - `mutual_knn`: mean share of common nearest neighbours, Euclidean, 0 to 1 (Huh et al. 2024).
    - `cknna`: CKA over mutual nearest neighbours alone, -1 to 1 (Huh et al. 2024, appendix).
    - `cknna_released`: what their released code computes under this name, near -1 to 1.
    - `svcca`: mean canonical correlation of the principal components that hold `share` of the variance, 0 to 1 (Raghu
      et al. 2017).
    - `rsa`: Spearman correlation of the Euclidean distances of all pairs of rows, -1 to 1 (Kriegeskorte et al. 2008).

    Huh et al. divide every row by its norm first (`variants.unit_rows`). `cknna` is the paper's equation, on centred
    rows. `cknna_released` divides rows by their norms, does not centre them, masks the cosines by the neighbours in
    common and takes the unbiased HSIC of what is left; only neighbours in both directions count in its first term. The
    released code adds 1e-6 to the denominator, which is left out here, and its value depends on the order of the two
    states: this is the mean of both orders. Neighbours tied for the last places are counted by their chance of being
    drawn, and normalised so that a state shares everything with itself. SVCCA of
    states that keep `k_a + k_b >= n` components has correlations of 1 for lack of room: look at `spectrum` first, or
    set `rows_per_component`.

    Costs per layer and model: `rbf_cka` makes five passes over the tiles of the upper half of the Gram matrix (four of
    them find the median exactly), the neighbours two over all tiles (two more for the released form), `rsa` one and a
    sort of n (n - 1) / 2 distances (memory in `distances.rank_products`), `procrustes` an SVD of m x m per pair,
    `svcca` one more per model.

    Args:
      states: [M, K, n, D] float32 or bfloat16 pooled states, possibly sharded on a mesh.
      valid: [n] bool, False on padding and on prompts left out; the same on every process.
      pairs: (a, b) indices of models.
      measures: names from the list above.
      bandwidth: of the Gaussian kernel, as a fraction of each state's median distance; the default is the largest of
        Kornblith et al. (0.2, 0.4, 0.8).
      neighbours: k of `mutual_knn` and both forms of `cknna`; 10 in Huh et al.
      share: of the variance that SVCCA keeps; 0.99 in Raghu et al.
      rows_per_component: SVCCA keeps at most one component per so many rows that count; Raghu et al. ask for 5 to 10.

    Raises:
      Refusal: 2 for an unknown measure or a setting out of range; 3 if shapes or indices do not fit, and for more rows
        than distances can be counted for.

    References:
      Kornblith et al. 2019, "Similarity of neural network representations revisited". Williams et al. 2021,
      "Generalized shape metrics on neural representations". Ding et al. 2021, "Grounding representation similarity
      through statistical testing". Huh et al. 2024, "The platonic representation hypothesis". Raghu et al. 2017,
      "SVCCA". Kriegeskorte et al. 2008, "Representational similarity analysis".
    """
    valid = np.asarray(valid)
    pairs = tuple((int(a), int(b)) for a, b in pairs)
    measures = tuple(measures)
    states = jnp.asarray(states)
    check_states(states, valid)
    models, _, rows, _ = states.shape
    check_pairs(pairs, models)
    _check_settings(measures, bandwidth, neighbours, share, rows_per_component)
    if rows > MAX_RANKED_ROWS and {"rbf_cka", "rsa"} & set(measures):
        raise Refusal(
            BAD_INPUT, f"states have {rows} rows; rbf_cka and rsa take at most {MAX_RANKED_ROWS}, leave both out"
        )
    # A pair and its reverse have the same value, so each is computed once, smaller index first.
    kept, sums = _measure_sums(
        states,
        valid,
        pairs=tuple(sorted({(min(pair), max(pair)) for pair in pairs})),
        measures=measures,
        bandwidth=float(bandwidth),
        neighbours=int(neighbours),
        share=float(share),
        rows_per_component=int(rows_per_component),
        tile=gram.tile_size(rows),
        mesh=mesh_of(states),
    )
    n = int(np.asarray(kept).sum())
    sums = jax.tree.map(np.asarray, sums)
    eps = float(jnp.finfo(states.dtype).eps)
    value, undefined = {}, {}
    for name in measures:
        value[name], undefined[name] = _pair_values(name, sums, pairs, n, neighbours, eps)
    return Measured(value, undefined, n, int(valid.sum()) - n)


def _check_settings(
    measures: tuple[str, ...], bandwidth: float, neighbours: int, share: float, rows_per_component: int
) -> None:
    unknown = [name for name in measures if name not in INVARIANCES]
    if unknown or not measures:
        raise Refusal(BAD_CONFIG, f"measures are {list(measures)}; give some of {', '.join(MEASURES)}")
    if not bandwidth > 0:
        raise Refusal(BAD_CONFIG, f"bandwidth is {bandwidth}; give a positive fraction of the median distance")
    if neighbours < 1:
        raise Refusal(BAD_CONFIG, f"neighbours is {neighbours}; give at least 1")
    if not 0 < share < 1:
        raise Refusal(BAD_CONFIG, f"share is {share}; give a share of the variance between 0 and 1")
    if rows_per_component < 1:
        raise Refusal(BAD_CONFIG, f"rows_per_component is {rows_per_component}; give at least 1")


class MeasureSums(NamedTuple):
    """Sums of all layers, replicated over the devices, with the K layers first. Families not asked for are None.

    Attributes:
      norms: [K, M, n] squared norms of the centred rows.
      mean_square: [K, M] as in `gram.Centred`.
      exponent: [K, M] as in `gram.Centred`.
      nuclear: [K, P, m] singular values of `X_a^T X_b`.
      canonical: of the pairs.
      kernels: of the combinations.
      near: of the models.
      neighbours: of the combinations.
      released: of the combinations.
      released_near: of the models, for rows divided by their norms.
      ranks: of the combinations.
    """

    norms: Float[Array, "K M n"]
    mean_square: Float[Array, "K M"]
    exponent: Int[Array, "K M"]
    nuclear: Float[Array, "K P m"] | None
    canonical: subspaces.Canonical | None
    kernels: distances.KernelSums | None
    near: distances.Neighbourhoods | None
    neighbours: distances.NeighbourSums | None
    released: distances.ReleasedSums | None
    released_near: distances.Neighbourhoods | None
    ranks: distances.RankProducts | None


@functools.partial(
    jax.jit,
    static_argnames=("pairs", "measures", "bandwidth", "neighbours", "share", "rows_per_component", "tile", "mesh"),
)
def _measure_sums(
    states: Float[Array, "M K n D"],
    valid: Bool[Array, " n"],
    *,
    pairs: tuple[tuple[int, int], ...],
    measures: tuple[str, ...],
    bandwidth: float,
    neighbours: int,
    share: float,
    rows_per_component: int,
    tile: int,
    mesh: Mesh | None,
) -> tuple[Bool[Array, " n"], MeasureSums]:
    """Computes all sums that need the rows, layer by layer in one program.

    Returns:
      The rows that count, [n] bool, and the sums.
    """
    wanted = set(measures)
    # C = M + P: self-products of all models, then products of the pairs. Every value is a ratio of these.
    combinations = (*((m, m) for m in range(states.shape[0])), *pairs)
    padding = -states.shape[2] % tile

    def tiled(x: jax.Array, kept: jax.Array) -> distances.Rows:
        # [M, n', D]: distances go by whole tiles, and the padding does not count.
        padded = jnp.pad(x, ((0, 0), (0, padding), (0, 0)))
        return distances.tiled_rows(padded, jnp.pad(kept, (0, padding)), tile)

    # `top_k` takes at most n places. With fewer rows than neighbours the value is undefined anyway.
    places = min(neighbours, states.shape[2])

    def released_form(x: jax.Array, kept: jax.Array) -> tuple[distances.ReleasedSums, distances.Neighbourhoods]:
        unit = divide_by_norm(x, kept)
        squares = jnp.pad(jnp.square(unit).sum(2), ((0, 0), (0, padding)))  # [M, n']
        by = gram.centring(unit, kept)
        rows = tiled(gram.centred_rows(unit, kept, by), kept)
        near = distances.neighbourhoods(rows, places, tile)
        # [M]: a squared distance of `rows` in the unit of `squares`. Both scales are powers of two.
        square = jnp.square(1 / (by.scale * by.rescale))
        return distances.released_sums(rows, squares, square, near, combinations, tile), near

    def layer(x: jax.Array, kept: jax.Array) -> MeasureSums:
        sums: dict[str, Any] = dict.fromkeys(MeasureSums._fields)
        if "cknna_released" in wanted:
            sums["released"], sums["released_near"] = released_form(x, kept)
        # [M, n, D], zero in rows that do not count: these add nothing to products and factorisations.
        x, sums["mean_square"], sums["exponent"] = gram.centre(x, kept)
        sums["norms"] = jnp.square(x).sum(2)  # [M, n]
        if wanted & {"procrustes", "procrustes_distance"}:
            sums["nuclear"] = subspaces.cross_singular_values(x, pairs)
        if "svcca" in wanted:
            sums["canonical"] = subspaces.canonical_correlations(
                x, pairs, share, jnp.maximum(kept.sum() // rows_per_component, 1)
            )
        if wanted & {"rbf_cka", "mutual_knn", "cknna", "rsa"}:
            rows = tiled(x, kept)
            if "rbf_cka" in wanted:
                sums["kernels"] = distances.rbf_sums(rows, bandwidth, combinations, tile)
            if wanted & {"mutual_knn", "cknna"}:
                sums["near"] = distances.neighbourhoods(rows, places, tile)
                sums["neighbours"] = distances.neighbour_sums(rows, sums["near"], combinations, tile)
            if "rsa" in wanted:
                sums["ranks"] = distances.rank_products(rows, combinations, tile)
        return MeasureSums(**sums)

    kept = layerwise.counted_rows(states, valid)
    return layerwise.replicate((kept, layerwise.over_layers(layer, states, kept, mesh)), mesh)


class MeasureValues(NamedTuple):
    """One measure of the pairs.

    Attributes:
      value: [P, K].
      flaws: (reason, [K, M] bool: the states that have no value for it).
    """

    value: Float[np.ndarray, "P K"]
    flaws: list[tuple[str, np.ndarray]]


def _pair_values(
    name: str, sums: MeasureSums, pairs: Sequence[tuple[int, int]], n: int, neighbours: int, eps: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns one measure of the pairs: values and reasons, both [P, K]."""
    layers = sums.norms.shape[0]
    undefined = np.full((len(pairs), layers), "", dtype=object)
    # With n - 1 neighbours all rows are neighbours of one another, in any state.
    least = max(MIN_ROWS, neighbours + 2 if name in NEIGHBOUR_MEASURES else 0)
    if n < least:
        undefined[:] = f"{n} finite rows; at least {least} are needed"
        return np.full(undefined.shape, np.nan), undefined
    # [K, M], in the unit of the centred rows
    mean_square = np.asarray(sums.mean_square, np.float64) * 4.0 ** -np.asarray(sums.exponent, np.float64)
    is_flat = variance_missing(_total(sums.norms), mean_square, n, eps)
    ordered = sorted({(min(pair), max(pair)) for pair in pairs})
    # One row per unordered pair, as in `_measure_sums`; then [P, K] in the order of the caller.
    values = _VALUES[name](sums, ordered, n)
    value = np.stack([values.value[ordered.index((min(pair), max(pair)))] for pair in pairs])
    for i, (a, b) in enumerate(pairs):
        for words, flawed in [*values.flaws, ("no variance in", is_flat)]:
            # Later reasons replace earlier ones: both sides outweigh one, and no variance outweighs all others.
            sides = (("b", flawed[:, b]), ("a", flawed[:, a]), ("a and b", flawed[:, a] & flawed[:, b]))
            for side, where in sides:
                undefined[i, where] = f"{words} {side}"
    return np.where(undefined == "", value, np.nan), undefined


def _total(rows: np.ndarray | jax.Array | None) -> np.ndarray:
    """Sums over the last axis in float64."""
    return np.asarray(rows).astype(np.float64).sum(-1)


def _normalised(products: np.ndarray, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Returns `<a, b> / sqrt(<a, a> <b, b>)` [P, ...] from the products [C, ...] of all combinations."""
    models = len(products) - len(pairs)
    return np.stack([ratio(products[models + i], products[a], products[b]) for i, (a, b) in enumerate(pairs)])


def _procrustes(sums: MeasureSums, pairs: Sequence[tuple[int, int]], n: int) -> MeasureValues:
    # [M, K]. The nuclear norm of X^T X is |X|^2, so the self-products need no singular values.
    squares = _total(sums.norms).T
    return MeasureValues(_normalised(np.concatenate([squares, _total(sums.nuclear).T]), pairs), [])


def _procrustes_distance(sums: MeasureSums, pairs: Sequence[tuple[int, int]], n: int) -> MeasureValues:
    # With both norms 1, |X - Y Q|^2 = 2 - 2 tr(Q^T Y^T X), and the best Q makes the trace the nuclear norm.
    return MeasureValues(2 - 2 * _procrustes(sums, pairs, n).value, [])


def _svcca(sums: MeasureSums, pairs: Sequence[tuple[int, int]], n: int) -> MeasureValues:
    assert sums.canonical is not None
    components = np.asarray(sums.canonical.components).T  # [M, K]
    left, right = (components[list(side)] for side in zip(*pairs, strict=True))
    # [P, K]. Behind the smaller number of components correlations are zero, so their sum is over these alone.
    return MeasureValues(_total(sums.canonical.correlations).T / np.minimum(left, right), [])


def _rbf_cka(sums: MeasureSums, pairs: Sequence[tuple[int, int]], n: int) -> MeasureValues:
    assert sums.kernels is not None
    single = np.moveaxis(np.asarray(sums.kernels.single, np.float64), 1, 0)  # [M, K, n]
    products = _total(sums.kernels.product).T  # [C, K]
    models = len(products) - len(pairs)
    for c, (a, b) in enumerate([*((m, m) for m in range(models)), *pairs]):
        # <H K H, L> = sum K L - 2/n (K 1).(L 1) + (1 K 1)(1 L 1)/n^2.
        products[c] += single[a].sum(-1) * single[b].sum(-1) / n**2 - 2 / n * (single[a] * single[b]).sum(-1)
    return MeasureValues(
        _normalised(products, pairs), [("the median distance is zero in", np.asarray(sums.kernels.median) == 0)]
    )


def _equidistant(sums: distances.Neighbourhoods | distances.RankProducts) -> tuple[str, np.ndarray]:
    """Returns the flaw of states whose rows are all equally far from one another."""
    nearest, farthest = np.asarray(sums.nearest), np.asarray(sums.farthest)
    # Differences below sixteen roundings of the largest squared distance are no order.
    return "all distances are equal in", farthest - nearest <= 16 * FLOAT32_EPS * farthest


def _mutual_knn(sums: MeasureSums, pairs: Sequence[tuple[int, int]], n: int) -> MeasureValues:
    assert sums.neighbours is not None and sums.near is not None
    shared = np.moveaxis(np.asarray(sums.neighbours.shared, np.float64), 1, 0)  # [C, K, n]
    # One ratio per row, whose denominator is k without ties. Rows that do not count have no neighbours, hence no ratio.
    return MeasureValues(np.nansum(_normalised(shared, pairs), -1) / n, [_equidistant(sums.near)])


def _cknna(sums: MeasureSums, pairs: Sequence[tuple[int, int]], n: int) -> MeasureValues:
    assert sums.neighbours is not None and sums.near is not None
    local = _total(sums.neighbours.local).T  # [C, K]
    # [K, M]: a masked Gram matrix that is zero has no norm to divide by.
    missing = "neighbours at right angles to every row in", local[: len(local) - len(pairs)].T <= 0
    return MeasureValues(_normalised(local, pairs), [missing, _equidistant(sums.near)])


def _cknna_released(sums: MeasureSums, pairs: Sequence[tuple[int, int]], n: int) -> MeasureValues:
    assert sums.released is not None and sums.released_near is not None
    # [C, K, n] each, in float64
    mutual, *margins = (np.moveaxis(np.asarray(a, np.float64), 1, 0) for a in sums.released)
    rows_a, columns_a, rows_b, columns_b = margins
    # The unbiased HSIC of two kernels without diagonals, times n (n - 3), which cancels. Its last term is the sum of a
    # matrix product, whose factors are not symmetric: the mean of both orders.
    inner = ((columns_a * rows_b + columns_b * rows_a) / 2).sum(-1)
    outer = rows_a.sum(-1) * rows_b.sum(-1)
    hsic = mutual.sum(-1) + outer / ((n - 1) * (n - 2)) - 2 / (n - 2) * inner  # [C, K]
    missing = "no neighbours in both directions in", hsic[: len(hsic) - len(pairs)].T <= 0
    return MeasureValues(_normalised(hsic, pairs), [missing, _equidistant(sums.released_near)])


def _rsa(sums: MeasureSums, pairs: Sequence[tuple[int, int]], n: int) -> MeasureValues:
    assert sums.ranks is not None
    # Over t, then over the tiles T: the correlation of ranks that are centred and share ties equally is Spearman's.
    products = _total(sums.ranks.product).sum(-1).T  # [C, K]
    return MeasureValues(_normalised(products, pairs), [_equidistant(sums.ranks)])


_VALUES: dict[str, Callable[[MeasureSums, Sequence[tuple[int, int]], int], MeasureValues]] = {
    "rbf_cka": _rbf_cka,
    "procrustes": _procrustes,
    "procrustes_distance": _procrustes_distance,
    "mutual_knn": _mutual_knn,
    "cknna": _cknna,
    "cknna_released": _cknna_released,
    "svcca": _svcca,
    "rsa": _rsa,
}
