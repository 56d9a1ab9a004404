"""Sums over rows by which a CKA is split by factors, layer by layer on the devices.

The factors before and up to one span a space of the row space, with projection `P`. `K` and `L` are Gram matrices whose
rows sum to zero and which are zero for pairs of rows of one item. Two ways of taking a space out of them:

- from the columns, as seen by the other rows (`leave`): entry (i, k) is what is left of row i's product with row k once
  the factors are fitted to the rows that are not of k's item. Sums of products of such columns are exact parts.
- from both sides (`strip`): the Gram matrix of rows centred within the levels, again without pairs of one item.

Shape letters: M models, K layers, n rows, D width, S spaces, F factors, P pairs, R permutations, C combinations of
models, k columns of a basis.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from mossa_jax.similarity import gram, layerwise
from mossa_jax.similarity.lineup import BASE, OWN, E
from mossa_jax.similarity.projections import ANSWER, FACTORS, TEMPLATE

PAIRS = ((BASE, OWN), (E, OWN))
"""The pairs of models that are split: the base and E, each against the task's own control."""

WITHIN = ("none", TEMPLATE, ANSWER, "both")
"""What rows are centred within; `none` is the debiased CKA of all rows."""

MODELS = 3
"""Models that are split: the first ones."""

COMBINATIONS = (*PAIRS, *((model, model) for model in range(MODELS)))
"""Models whose products are summed: the pairs, then each with itself."""

_TOLERANCE, _MAX_STEPS = 1e-7, 60
# A row of which a space leaves less than this has a level of its own; the rest is rounding.
_NO_ROOM = 1e-4


class DeviceDesign(NamedTuple):
    """The design of a task as the program takes it; rows that do not count have label -1 and zeros.

    Attributes:
      item: [n] int32, the item of a row.
      labels: [S, n] int32, groups of the spaces: the constant; up to template, answer, item; answer alone.
      basis: [S, n, k] float32, their further columns.
      own: [F, n] int32, the levels of template, answer and item alone.
      own_basis: [n, k'] float32, a continuous answer; k' = 0 if it has levels.
      permutations: [F, R, n] int32; the first is the identity.
    """

    item: Int[Array, " n"]
    labels: Int[Array, "S n"]
    basis: Float[Array, "S n k"]
    own: Int[Array, "F n"]
    own_basis: Float[Array, "n k"]
    permutations: Int[Array, "F R n"]


class FactorSums(NamedTuple):
    """Row sums of one layer, or of all layers with K in front.

    Attributes:
      within: [4, C, n] of products of the centred Gram matrices, in the order of `WITHIN`.
      raw: [P, F, n] of products of what the factors up to each one leave.
      influence: [P, F, n] how the trace changes with each row, to first order.
      permuted: [P, F, R] the trace for permuted levels of a factor, in what earlier factors leave.
      trace: [M] sum of squared norms of the centred rows.
      mean_square: [M] as in `gram.Centred`.
      exponent: [M] as in `gram.Centred`.
    """

    within: Float[Array, "4 C n"]
    raw: Float[Array, "P F n"]
    influence: Float[Array, "P F n"]
    permuted: Float[Array, "P F R"]
    trace: Float[Array, " M"]
    mean_square: Float[Array, " M"]
    exponent: Int[Array, " M"]


@functools.partial(jax.jit, static_argnames=("mesh",))
def finite_rows(states: Float[Array, "M K n D"], mesh: Mesh | None) -> Bool[Array, " n"]:
    """Returns which rows are finite in all models that are split."""
    return layerwise.replicate(layerwise.counted_rows(states[:MODELS], jnp.ones(states.shape[2], bool)), mesh)


@functools.partial(jax.jit, static_argnames=("mesh", "shares_items"))
def factor_sums(
    states: Float[Array, "M K N D"],
    kept: Bool[Array, " n"],
    design: DeviceDesign,
    *,
    mesh: Mesh | None,
    shares_items: bool,
) -> FactorSums:
    """Computes the sums of all layers, layers dealt over the devices.

    Args:
      states: of at least `MODELS` models.
      kept: [n] bool, the rows that count, of the first n rows of the states.
      design: of these n rows.
      mesh: that the states lie on; None on one device.
      shares_items: whether any two rows are of one item.
    """
    n = kept.shape[0]
    states = states[:MODELS, :, :n]

    def layer(x: jax.Array, arguments: tuple[jax.Array, DeviceDesign]) -> FactorSums:
        return _layer_sums(x, *arguments, shares_items)

    # What the function needs beside the states is whole on every device, as the rows that count are.
    return layerwise.replicate(layerwise.over_layers(layer, states, (kept, design), mesh), mesh)


def _layer_sums(
    x: Float[Array, "M n D"], kept: Bool[Array, " n"], design: DeviceDesign, shares_items: bool
) -> FactorSums:
    centred = gram.centre(x, kept)
    rows = centred.rows
    # [M, n, n]
    kernels = jnp.einsum("mid,mjd->mij", rows, rows, precision=gram.EXACT)
    counted = kept[:, None] & kept[None, :]
    same = design.item[:, None] == design.item[None, :]
    pairs = Relations(counted & ~same, counted & same)
    constant, *upto, alone = (projection(design.labels[s], design.basis[s]) for s in range(design.labels.shape[0]))
    matrices = strip(kernels, constant, pairs, shares_items)

    # Space after space, so that one of them has its matrices in memory, and the loop is compiled once.
    def within(space: jax.Array) -> jax.Array:
        return _row_sums(strip(kernels, space, pairs, shares_items))

    levels = lax.map(within, jnp.stack([upto[0], alone, upto[1]]))  # [3, C, n]
    # [F, M, n, n], what of each Gram matrix the factors up to each one leave.
    rest = lax.map(lambda space: leave(matrices, space, pairs, shares_items), jnp.stack(upto))
    raw, influence, permuted = [], [], []
    for a, b in PAIRS:
        product = _matmul(matrices[a], matrices[b])  # [n, n], K L
        products = rest[:, a] * rest[:, b]  # [F, n, n]
        raw.append(products.sum(2))
        # A row counts as one whose level is taken out (its row) and as one of the others (its column).
        influence.append(products.sum(2) + products.sum(1))
        earlier = [product, *(_matmul(each[a], each[b].T) for each in rest[:-1])]
        permuted.append(jnp.stack([permuted_traces((m + m.T) / 2, design, f) for f, m in enumerate(earlier)]))
    trace = jnp.square(rows).sum((1, 2))
    return FactorSums(
        jnp.concatenate([_row_sums(matrices)[None], levels]),
        jnp.stack(raw),
        jnp.stack(influence),
        jnp.stack(permuted),
        trace,
        centred.mean_square,
        centred.exponent,
    )


def _row_sums(matrices: Float[Array, "M n n"]) -> Float[Array, "C n"]:
    """Returns the row sums of the products of `COMBINATIONS`."""
    return jnp.stack([(matrices[a] * matrices[b]).sum(1) for a, b in COMBINATIONS])


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=gram.EXACT)


def projection(labels: Int[Array, " n"], basis: Float[Array, "n k"]) -> Float[Array, "n n"]:
    """Returns the projection on the means of groups and on further columns; rows with label -1 are in no group."""
    same = (labels[:, None] == labels[None, :]) & (labels >= 0)[:, None]
    size = jnp.maximum(same.sum(1), 1)
    return same / size[:, None].astype(jnp.float32) + _matmul(basis, basis.T)


def _residual(matrix: Float[Array, "n n"], space: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Returns `R A R` of a symmetric matrix, with `R` the projection away from the space."""
    half = matrix - _matmul(space, matrix)
    return half - _matmul(half, space)


class Relations(NamedTuple):
    """Which rows are related.

    Attributes:
      apart: [n, n] bool, pairs of rows of different items that count.
      related: [n, n] bool, pairs of rows of one item that count, a row with itself included.
    """

    apart: Bool[Array, "n n"]
    related: Bool[Array, "n n"]


def strip(
    kernels: Float[Array, "M n n"], space: Float[Array, "n n"], pairs: Relations, shares_items: bool
) -> Float[Array, "M n n"]:
    """Projects Gram matrices on those that the space annihilates on both sides and that are zero for related rows.

    Args:
      kernels: of M models.
      space: a projection that contains the constant.
      pairs: of rows.
      shares_items: whether any two rows are of one item. If not, a vector is solved for and not a matrix.
    """
    away = jnp.diag(pairs.related.diagonal().astype(jnp.float32)) - space
    squares = jnp.square(away)

    def one(kernel: jax.Array) -> jax.Array:
        residual = _residual(kernel, space)
        if shares_items:
            target = jnp.where(pairs.related, residual, 0)
            inside = _residual(solve(lambda a: jnp.where(pairs.related, _residual(a, space), 0), target), space)
        else:
            diagonal = solve(lambda v: jnp.matmul(squares, v, precision=gram.EXACT), residual.diagonal())
            inside = _matmul(away * diagonal, away)
        return jnp.where(pairs.apart, residual - inside, 0)

    # One model after the other: the matrices of one are in memory.
    return lax.map(one, kernels)


def leave(
    matrices: Float[Array, "M n n"], space: Float[Array, "n n"], pairs: Relations, shares_items: bool
) -> Float[Array, "M n n"]:
    """Takes the space out of each column, by the other rows: those of the column's item neither count nor change.

    With all rows, a column would lose a part of what its own row has in common with its level. A share of levels / n of
    a factor's part would then pass for a part of the rest. Arguments as in `strip`.
    """

    def away(a: jax.Array) -> jax.Array:
        return a - _matmul(space, a)

    # [n] how much of each row the space leaves; none of a row with a level of its own.
    left = 1 - space.diagonal()

    def one(matrix: jax.Array) -> jax.Array:
        residual = away(matrix)
        if shares_items:
            target = jnp.where(pairs.related, residual, 0)
            inside = away(solve(lambda a: jnp.where(pairs.related, away(a), 0), target))
        else:
            share = jnp.where(left > _NO_ROOM, residual.diagonal() / jnp.where(left > _NO_ROOM, left, 1), 0)
            inside = jnp.diag(share) - space * share
        return jnp.where(pairs.apart, residual - inside, 0)

    return lax.map(one, matrices)


def solve(operator: Callable[[jax.Array], jax.Array], target: Float[Array, " ..."]) -> Float[Array, " ..."]:
    """Solves `operator(x) = target` by conjugate gradients, for a positive semi-definite operator on arrays.

    Few steps suffice: the spectrum has about as many values as there are sizes of groups and items.
    """
    bound = _TOLERANCE**2 * jnp.square(target).sum()

    def unfinished(carry: tuple[Any, ...]) -> jax.Array:
        return jnp.logical_and(carry[0] < _MAX_STEPS, carry[4] > bound)

    def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        at, solution, rest, direction, size = carry
        image = operator(direction)
        energy = (direction * image).sum()
        # No energy: the direction is in the null space, as for a group of two rows.
        length = jnp.where(energy > 0, size / jnp.where(energy > 0, energy, 1), 0)
        solution, rest = solution + length * direction, rest - length * image
        new = jnp.square(rest).sum()
        direction = rest + new / jnp.where(size > 0, size, 1) * direction
        return at + 1, solution, rest, direction, jnp.where(energy > 0, new, 0)

    start = (jnp.int32(0), jnp.zeros_like(target), target, target, jnp.square(target).sum())
    return lax.while_loop(unfinished, step, start)[1]


def permuted_traces(matrix: Float[Array, "n n"], design: DeviceDesign, number: int) -> Float[Array, " R"]:
    """Computes `sum_g (sum_{i, j in g} A_ij) / n_g` over the levels g of one factor, for each permutation of them.

    Args:
      matrix: A, symmetric.
      design: whose factor it is; of a continuous factor the trace of `Q^T A Q`.
      number: of the factor.
    """
    labels = design.own[number]
    size = jnp.maximum(((labels[:, None] == labels[None, :]) & (labels >= 0)[:, None]).sum(1), 1).astype(jnp.float32)
    is_continuous = number == FACTORS.index(ANSWER) and design.own_basis.shape[1] > 0

    def one(permutation: jax.Array) -> jax.Array:
        if is_continuous:
            columns = design.own_basis[permutation]
            return (columns * _matmul(matrix, columns)).sum(1).sum()
        mine = labels[permutation]
        same = (mine[:, None] == mine[None, :]) & (mine >= 0)[:, None]
        return (jnp.where(same, matrix, 0).sum(1) / size[permutation]).sum()

    return lax.map(one, design.permutations[number])
