"""What a CKA is made of: an exact split by known factors, and what is left of it within their levels.

`K` and `L` are the Gram matrices of two states without pairs of rows of one item, centred so that each row sums to
zero: the debiased CKA is `tr(K L) / sqrt(tr(K K) tr(L L))`. With projections `P_f` of the row space that sum to the
identity, `tr(K L) = sum_f tr(P_f K L)`. For plain Gram matrices `tr(P_f K L) = <X_f^T Y_f, X^T Y>`, with `X_f` the part
of the rows that factor f explains: each factor gets its own product, and half of each product that it shares with
another factor. That is its Shapley value in the game whose worth is `|sum_f X_f^T Y_f|^2`.

Two things keep a part from holding what is not its own. A row never tells what its own level is: for each row k the
projections are those of the rows of other items, so `tr(P_f K L)` is a sum over k (`factor_sums.leave`), and still
exact. And levels take a share of all that varies below them by their number alone: `FactorDesign.parts` gives it back.

Within the levels of factors, rows are first centred by the projection, then pairs of one item are taken out again: the
Gram matrix that is left is the nearest one without such pairs that the factors' columns annihilate. With the constant
as the only factor this is the debiased CKA itself.

Errors are those of the jackknife to first order, with the levels as they are.

Shape letters: M models, K layers, n rows, D width, S spaces, F factors, P pairs, R permutations, m units.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mossa_jax.similarity.checks import check_labels, check_states, mesh_of
from mossa_jax.similarity.estimators import MIN_ROWS, Items, UndefinedSimilarity, undefined_reasons, variance_missing
from mossa_jax.similarity.factor_sums import PAIRS, WITHIN, DeviceDesign, factor_sums, finite_rows
from mossa_jax.similarity.intervals import jackknife_values
from mossa_jax.similarity.null import draw_ranks, repairing_of
from mossa_jax.similarity.projections import (
    ANSWER,
    FACTORS,
    ITEM,
    TEMPLATE,
    Factor,
    FactorDesign,
    Space,
    factor_design,
    span,
)

# Below this share of a state's squared Gram matrix, what is left of it is float32 rounding.
_NOTHING_LEFT = 1e-8
# A program has one number of basis columns: the next power of two, and no fewer than this.
_LEAST_COLUMNS = 16


@dataclasses.dataclass(frozen=True)
class Split:
    """The split of the debiased CKA of `PAIRS` at K layers.

    Attributes:
      design: the factors, with their levels and degrees of freedom.
      whole: [P, K] float64, the debiased CKA; NaN where undefined.
      part: [P, K, 4] in the order of `FACTORS`: what each accounts for; they sum to `whole`. NaN for factors that are
        not there, 0 for a factor with one level.
      part_replicates: [P, K, 4, m] the parts with each unit left out, to first order.
      chance: [P, K, 4] what its projection holds beyond its part: its degrees of freedom alone take it from the factors
        behind it. They sum to zero.
      p: [P, K, 4] one-sided p value of permuted levels; NaN for the rest and where nothing can be permuted.
      within: [4, P, K] CKA of rows centred within `WITHIN`; NaN where undefined.
      within_replicates: [4, P, K, m] the same with each unit left out, to first order.
      within_undefined: [4, P, K] the reason in words, or "".
      n: rows that counted.
      units: items of these rows.
    """

    design: FactorDesign
    whole: Float[np.ndarray, "P K"]
    part: Float[np.ndarray, "P K 4"]
    part_replicates: Float[np.ndarray, "P K 4 m"]
    chance: Float[np.ndarray, "P K 4"]
    p: Float[np.ndarray, "P K 4"]
    within: Float[np.ndarray, "4 P K"]
    within_replicates: Float[np.ndarray, "4 P K m"]
    within_undefined: np.ndarray
    n: int
    units: int


def split_states(
    states: Float[Array, "M K n D"],
    valid: Bool[np.ndarray, " n"],
    factors: dict[str, Factor],
    *,
    items: np.ndarray | None = None,
    permutations: int = 199,
    seed: int = 0,
    rows: int | None = None,
) -> Split:
    """Splits the debiased CKA of the base and of E with a task's control by template, answer, item and rest.

    One program runs layer by layer, layers dealt over the devices. A device has a few n x n matrices of one layer at a
    time; row sums come back to the host and are combined in float64.

    Args:
      states: [M, K, n, D] pooled states; the first models are the base, E and the control.
      valid: [n] bool, the rows that count; the same on every process.
      factors: by name (`FACTORS` without the rest), with labels or columns for all n rows. The item as a factor is
        usually `items`, too.
      items: [n] ids of rows that are related: their pairs never count. By default every row is an item.
      permutations: R, how many permutations of its levels each factor is tested by.
      seed: of the permutations.
      rows: only the first so many rows are looked at; all by default.

    Raises:
      UndefinedSimilarity: fewer than 4 items count.
      Refusal: 3 if shapes do not fit.
    """
    valid = np.asarray(valid)
    check_states(states, valid)
    check_labels(items, None, len(valid))
    rows = len(valid) if rows is None else rows
    valid = valid[:rows]
    items = np.arange(rows) if items is None else np.asarray(items)[:rows]
    finite = np.asarray(finite_rows(states, mesh_of(states)))[:rows]
    kept = valid & finite
    if len(np.unique(items[kept])) < MIN_ROWS:
        raise UndefinedSimilarity(f"{len(np.unique(items[kept]))} items; at least {MIN_ROWS} are needed")
    design = factor_design({name: factor.first(rows) for name, factor in factors.items()}, kept)
    placed, can_permute = _place_design(design, kept, items, (permutations, seed))
    shares_items = len(np.unique(items[kept])) < kept.sum()
    sums = factor_sums(states, kept, placed, mesh=mesh_of(states), shares_items=bool(shares_items))
    eps = float(jnp.finfo(states.dtype).eps)
    return _combine(jax.tree.map(np.asarray, sums), design, kept, items, can_permute, eps)


def _place_design(
    design: FactorDesign, kept: Bool[np.ndarray, " n"], items: np.ndarray, draws: tuple[int, int]
) -> tuple[DeviceDesign, dict[str, bool]]:
    """Returns the design as arrays of all n rows, and which factors have permutations that can show anything."""
    count = np.flatnonzero(kept)

    def labels_of(levels: np.ndarray | None) -> np.ndarray:
        spread = np.full(len(kept), -1, np.int32)
        if levels is not None:
            spread[count] = levels
        return spread

    def columns_of(basis: np.ndarray, width: int) -> np.ndarray:
        spread = np.zeros((len(kept), width), np.float32)
        spread[count, : basis.shape[1]] = basis
        return spread

    answer = design.factors.get(ANSWER)
    alone = span([answer] if answer else [], design.rows)
    spaces: list[Space] = [span([], design.rows), *(design.space_up_to(name) for name in FACTORS[:-1]), alone]
    width = _padded(max(space.basis.shape[1] for space in spaces))
    continuous = np.zeros((design.rows, 0)) if answer is None or answer.columns is None else alone.basis
    own = [design.factors.get(name) for name in FACTORS[:-1]]
    permutations, can_permute = [], {}
    for name in FACTORS[:-1]:
        drawn = permutations_of(name, design, kept, items, draws) if name in design.factors else None
        can_permute[name] = drawn is not None
        identity = np.arange(len(kept), dtype=np.int32)[None]
        permutations.append(np.concatenate([identity, np.tile(identity, (draws[0], 1)) if drawn is None else drawn]))
    parts: Any = (
        labels_of(np.unique(items[count], return_inverse=True)[1].reshape(-1)),
        np.stack([labels_of(space.labels) for space in spaces]),
        np.stack([columns_of(space.basis, width) for space in spaces]),
        np.stack([labels_of(factor.labels if factor else None) for factor in own]),
        columns_of(continuous, _padded(continuous.shape[1]) if continuous.size else 0),
        np.stack(permutations),
    )
    return DeviceDesign(*parts), can_permute


def _padded(columns: int) -> int:
    return max(_LEAST_COLUMNS, 1 << (columns - 1).bit_length()) if columns else _LEAST_COLUMNS


def permutations_of(
    name: str, design: FactorDesign, kept: Bool[np.ndarray, " n"], items: np.ndarray, draws: tuple[int, int]
) -> Int[np.ndarray, "R n"] | None:
    """Draws permutations of a factor's levels that keep what is known of the rows; None if there are too few.

    Templates are exchanged between items of as many rows, and between the rows of an item. Answers are exchanged like
    the rows of the null of CKA: whole items, within templates. Items are exchanged between rows of one template and
    one answer.

    Args:
      name: of the factor.
      design: with the factors that are there.
      kept: [n] bool, the rows that count.
      items: [n] ids of the items.
      draws: R and the seed.
    """
    count, number = np.flatnonzero(kept), FACTORS.index(name)
    spread = np.full(len(kept), -1)
    strata = np.zeros(design.rows, np.int64)
    earlier = (TEMPLATE,) if name == ANSWER else (TEMPLATE, ANSWER) if name == ITEM else ()
    for each in earlier:
        factor = design.factors.get(each)
        if factor is not None and factor.labels is not None:
            strata = np.unique(strata * factor.levels + factor.labels, return_inverse=True)[1].reshape(-1)
    spread[count] = strata
    seed = int(np.random.SeedSequence((draws[1], number)).generate_state(1)[0])
    repairing = repairing_of(kept, None if name == ITEM else items, spread if earlier else None)
    ranks = draw_ranks(kept, draws[0], seed, None if repairing.name == "none" else repairing)
    # A row whose rank is q gets the level of row number q.
    drawn = np.tile(np.arange(len(kept), dtype=np.int32), (draws[0], 1))
    if repairing.name != "none":
        drawn[:, count] = count[ranks[:, count]]
    if name == TEMPLATE:
        drawn = _within_items(drawn, count, items, np.random.default_rng((draws[1], number, 1)))
    elif repairing.name == "none":
        return None
    return drawn


def _within_items(
    drawn: Int[np.ndarray, "R n"], count: Int[np.ndarray, " m"], items: np.ndarray, random: np.random.Generator
) -> Int[np.ndarray, "R n"]:
    """Shuffles each permutation within the rows of every item, too."""
    slots = np.unique(items[count], return_inverse=True)[1].reshape(-1)
    home = count[np.argsort(slots, kind="stable")]
    drawn = drawn.copy()
    keys = random.random((len(drawn), len(count)))
    for draw, key in zip(drawn, keys, strict=True):
        draw[home] = draw[count[np.lexsort((key, slots))]]
    return drawn


def _combine(
    sums: Any, design: FactorDesign, kept: np.ndarray, items: np.ndarray, can_permute: dict[str, bool], eps: float
) -> Split:
    """Combines the sums in float64."""
    ids, sizes = np.unique(items[kept], return_inverse=True, return_counts=True)[1:]
    units = Items(ids.reshape(-1), sizes)

    def by_unit(rows: np.ndarray) -> np.ndarray:
        return units.sum(rows[..., kept].astype(np.float64))

    within = by_unit(sums.within)  # [K, 4, C, m]
    reasons = _reasons(sums, design, within.sum(-1), units, eps)  # [K, 4, P]
    cka, replicates = _within(within, reasons == "", design.rows)
    part, part_replicates, chance = _parts(
        within[:, 0], (by_unit(sums.raw), by_unit(sums.influence)), reasons[:, 0] == "", design
    )
    # [P, K, F, R + 1], the first as observed.
    drawn = np.moveaxis(sums.permuted, 0, 1).astype(np.float64)
    tie = 1e-6 * np.abs(drawn).max((-2, -1))[..., None, None]
    p = (drawn >= drawn[..., :1] - tie).mean(-1)
    p[~np.isfinite(cka[0])] = np.nan
    p[..., [not can_permute[name] for name in FACTORS[:-1]]] = np.nan
    return Split(
        design=design,
        whole=cka[0],
        part=part,
        part_replicates=part_replicates,
        chance=chance,
        p=np.concatenate([p, np.full((*p.shape[:2], 1), np.nan)], 2),
        within=cka,
        within_replicates=replicates,
        within_undefined=np.moveaxis(reasons, 0, -1),
        n=int(kept.sum()),
        units=within.shape[-1],
    )


def _within(
    within: Float[np.ndarray, "K 4 C m"], is_defined: Bool[np.ndarray, "K 4 P"], rows: int
) -> tuple[Float[np.ndarray, "4 P K"], Float[np.ndarray, "4 P K m"]]:
    """Returns CKA within each of `WITHIN`, and its values without each unit."""
    total = within.sum(-1)
    cka, replicates = [], []
    for i, (a, b) in enumerate(PAIRS):
        at = [i, len(PAIRS) + a, len(PAIRS) + b]
        whole = tuple(np.where(is_defined[..., i], total[:, :, one], 1.0) for one in at)
        # A unit is in a product as a row and as a column.
        left_out = tuple(
            each[..., None] - 2 * _grown(rows) * within[:, :, one] for each, one in zip(whole, at, strict=True)
        )
        value = np.where(is_defined[..., i], whole[0] / np.sqrt(whole[1] * whole[2]), np.nan)  # [K, 4]
        cka.append(value)
        replicates.append(jackknife_values(value, whole, left_out))
    return np.stack(cka).transpose(2, 0, 1), np.stack(replicates).transpose(2, 0, 1, 3)


def _grown(rows: int) -> float:
    """Returns by how much each row's share of a sum is larger in samples without a row."""
    return rows / (rows - 1)


def _parts(
    products: Float[np.ndarray, "K C m"],
    left: tuple[Float[np.ndarray, "K P F m"], Float[np.ndarray, "K P F m"]],
    is_defined: Bool[np.ndarray, "K P"],
    design: FactorDesign,
) -> tuple[Float[np.ndarray, "P K 4"], Float[np.ndarray, "P K 4 m"], Float[np.ndarray, "P K 4"]]:
    """Returns the parts, their values without each unit, and what chance adds to them.

    Args:
      products: of all rows, by unit.
      left: what the projections up to each factor leave, by unit, and its influence.
      is_defined: which CKA have a value.
      design: the factors.
    """
    whole = products[:, : len(PAIRS), None]  # [K, P, 1, m]
    nothing = np.zeros_like(whole)
    # What one projection leaves less what the next one leaves is the factor's; the last one's is the rest.
    raw = -np.diff(np.concatenate([whole, left[0], nothing], 2), axis=2).sum(-1)  # [K, P, 4]
    influence = -np.diff(np.concatenate([2 * whole, left[1], nothing], 2), axis=2)  # [K, P, 4, m]
    own = raw @ design.parts.T
    own_influence = _grown(design.rows) * np.einsum("fg,kpgm->kpfm", design.parts, influence)
    part, replicates, chance = [], [], []
    for i, (a, b) in enumerate(PAIRS):
        at = [len(PAIRS) + a, len(PAIRS) + b]
        selves = [np.where(is_defined[:, i], products[:, one].sum(-1), 1.0)[:, None] for one in at]  # [K, 1] each
        without = [
            each[..., None] - 2 * _grown(design.rows) * products[:, one, None]
            for each, one in zip(selves, at, strict=True)
        ]  # [K, 1, m] each
        norm = np.where(is_defined[:, i, None], np.sqrt(selves[0] * selves[1]), np.nan)  # [K, 1]
        part.append(own[:, i] / norm)
        chance.append((raw[:, i] - own[:, i]) / norm)
        whole_terms = (own[:, i], *(np.broadcast_to(each, own[:, i].shape) for each in selves))
        left_out = (own[:, i, :, None] - own_influence[:, i], *without)
        shape = own_influence[:, i].shape
        replicates.append(
            jackknife_values(part[-1], whole_terms, tuple(np.broadcast_to(each, shape) for each in left_out))
        )
    arrays = np.stack(part), np.stack(replicates), np.stack(chance)
    for array in arrays:
        array[:, :, [name in design.unknown for name in FACTORS]] = np.nan
    return arrays


def _reasons(sums: Any, design: FactorDesign, total: np.ndarray, units: Items, eps: float) -> np.ndarray:
    """Returns why a CKA within each of `WITHIN` has no value, [K, 4, P] of words; "" where it has one."""
    n = len(units.slot)
    trace = sums.trace.astype(np.float64)  # [K, M]
    mean_square = sums.mean_square.astype(np.float64) * 4.0 ** -sums.exponent.astype(np.float64)
    is_flat = variance_missing(trace, mean_square, n, eps)
    reasons = np.full((len(trace), len(WITHIN), len(PAIRS)), "", object)
    needs = {"none": (), TEMPLATE: (TEMPLATE,), ANSWER: (ANSWER,), "both": (TEMPLATE, ANSWER)}
    for w, name in enumerate(WITHIN):
        own = total[:, w, len(PAIRS) :]  # [K, M]
        vanishing = own <= _NOTHING_LEFT * np.square(trace)
        for i, (a, b) in enumerate(PAIRS):
            reason = undefined_reasons("debiased", (is_flat[:, a], is_flat[:, b]), (vanishing[:, a], vanishing[:, b]))
            for factor in needs[name]:
                # One template or answer for all rows takes nothing out, beside the other factor.
                if factor not in design.factors and (name != "both" or factor in design.unknown):
                    reason[reason == ""] = design.notes[factor]
            if units.too_large:
                reason[reason == ""] = "one item has half of the rows or more"
            reasons[:, w, i] = reason
    return reasons
