"""What adapters add to the weights: sizes, angles and means of the products a b, without ever forming them.

A LoRA update is `scale * a @ b` [D_in, D_out]. Its factors are no property of the model: `a G` and `G^-1 b` give the
same update for any invertible G [r, r]. So everything here is a function of the product. Traces of r x r matrices and
QR factorisations of [D, r] suffice, in float64 on the host.

Shape letters: L layers, D_in and D_out input and output width of a projection, r and s LoRA ranks, k numerical rank, T
adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.llama.adapters import Adapter, target_sizes
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.placement import leaf_name

Update = dict[str, np.ndarray]
"""One adapter's update of one target: {"a" [L, D_in, r], "b" [L, r, D_out], "scale" [L]}."""

# Singular values of a product below this share of the largest are rounding of the float32 factors.
RANK_TOLERANCE = 1e-6


class Overlap(NamedTuple):
    """How far the subspaces of two updates coincide, layer by layer; NaN where one of the updates is zero.

    Attributes:
      inputs: [L] mean squared cosine of the principal angles between the spaces that the updates read, 0 to 1.
      outputs: [L] the same of the spaces that they write to.
      chance_inputs: [L] its expectation for spaces in random directions.
      chance_outputs: [L] the same of the outputs.
    """

    inputs: Float[np.ndarray, " L"]
    outputs: Float[np.ndarray, " L"]
    chance_inputs: Float[np.ndarray, " L"]
    chance_outputs: Float[np.ndarray, " L"]


def inner_products(x: Update, y: Update) -> Float[np.ndarray, " L"]:
    """Computes the Frobenius inner product of two updates of one target in every layer.

    `<a b, c d> = tr((a^T c)^T (b d^T))`: two products of [r, s] take the place of [D_in, D_out].

    Args:
      x: with rank r.
      y: with rank s.

    Returns:
      [L] float64.
    """
    sums = np.zeros(len(x["scale"]))
    # Layer by layer: float64 copies of the factors of all layers would take twice the memory of the adapters.
    for layer, scale in enumerate(x["scale"].astype(np.float64) * y["scale"].astype(np.float64)):
        if scale:
            (a, b), (c, d) = _factors(x, layer), _factors(y, layer)
            sums[layer] = scale * np.sum((a.T @ c) * (b @ d.T))  # [r, s] each
    return sums


def norms(x: Update) -> Float[np.ndarray, " L"]:
    """Computes the Frobenius norm of an update in every layer: [L] float64."""
    # Rounding may leave a sum of squares slightly below zero.
    return np.sqrt(np.maximum(inner_products(x, x), 0.0))


def cosines(x: Update, y: Update) -> Float[np.ndarray, " L"]:
    """Computes the cosine of two updates as vectors of D_in * D_out numbers: [L] float64, NaN where one is zero."""
    return quotients(inner_products(x, y), norms(x) * norms(y))


def quotients(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """Divides; NaN where a denominator is zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominators > 0, numerators / denominators, np.nan)


def overlap(x: Update, y: Update) -> Overlap:
    """Computes how far the column spaces and the row spaces of two updates coincide, in every layer.

    Each direction that an update uses counts alike, however small its singular value; `cosines` weighs them. Two random
    spaces of k and l dimensions among D have a mean squared cosine of max(k, l) / D on average.

    Args:
      x: with rank r.
      y: with rank s.

    References:
      Björck and Golub 1973, "Numerical methods for computing angles between linear subspaces".
    """
    rows = []
    for layer in range(len(x["scale"])):
        rows.append([*map(_mean_square, _spaces(x, layer), _spaces(y, layer))])
    # [L, 2 (inputs, outputs), 2 (value, chance)] -> the fields, each [L].
    values = np.asarray(rows, np.float64)
    return Overlap(values[:, 0, 0], values[:, 1, 0], values[:, 0, 1], values[:, 1, 1])


def _mean_square(x: Float[np.ndarray, "D k"], y: Float[np.ndarray, "D l"]) -> tuple[float, float]:
    """Returns the mean squared cosine of the principal angles between two orthonormal bases, and that of chance."""
    shared = min(x.shape[1], y.shape[1])
    if not shared:
        return np.nan, np.nan
    # The cosines are the singular values of x^T y; their squares sum to its squared Frobenius norm.
    return float(np.square(x.T @ y).sum() / shared), max(x.shape[1], y.shape[1]) / len(x)


def _factors(x: Update, layer: int) -> tuple[Float[np.ndarray, "D_in r"], Float[np.ndarray, "r D_out"]]:
    return x["a"][layer].astype(np.float64), x["b"][layer].astype(np.float64)


def _factorise(
    a: Float[np.ndarray, "D_in r"], b: Float[np.ndarray, "r D_out"]
) -> tuple[Float[np.ndarray, "D_in m"], Float[np.ndarray, " m"], Float[np.ndarray, "m D_out"]]:
    """Returns the singular value decomposition of `a @ b`, m = min(D_in, r, D_out) values, largest first."""
    left, upper = np.linalg.qr(a)  # [D_in, p], [p, r]
    right, lower = np.linalg.qr(b.T)  # [D_out, q], [q, r]
    # a b = Q_a (R_a R_b^T) Q_b^T: the small matrix has the singular values of the product.
    u, s, v = np.linalg.svd(upper @ lower.T, full_matrices=False)
    return left @ u, s, v @ right.T


def _spaces(x: Update, layer: int) -> tuple[Float[np.ndarray, "D_in k"], Float[np.ndarray, "D_out k"]]:
    """Returns orthonormal bases of what an update reads and of what it writes to; k is its numerical rank."""
    left, s, right = _factorise(*_factors(x, layer))
    rank = int((s > RANK_TOLERANCE * s[0]).sum()) if x["scale"][layer] and s[0] > 0 else 0
    return left[:, :rank], right[:rank].T


def mean_adapter(arch: Architecture, adapters: Sequence[Adapter], max_rank: int) -> tuple[Adapter, float]:
    """Averages the updates of adapters: the mean of the products, which no mean of the factors is.

    Their factors stand side by side, with rank T r. If that passes `max_rank` or a width, the product is factorised
    anew: a width loses nothing, `max_rank` keeps the largest singular values, the best approximation in the Frobenius
    norm (Eckart and Young 1936).

    Args:
      arch: the base model's.
      adapters: T of them; a target that one lacks counts as no update.
      max_rank: of the result.

    Returns:
      The adapter, float32, with scale 1; and the Frobenius norm of what was cut off over that of the mean, over all
      targets and layers.
    """
    merged: Adapter = {}
    lost = total = 0.0
    for target, sizes in target_sizes(arch).items():
        updates = [adapter[target] for adapter in adapters if target in adapter]
        if not updates:
            continue
        joined: Update = {
            # [L, D_in, T r] with the scales inside, and [L, T r, D_out]
            "a": np.concatenate([u["a"] * (u["scale"] / len(adapters))[:, None, None] for u in updates], axis=2),
            "b": np.concatenate([u["b"] for u in updates], axis=1),
            "scale": np.ones(arch.layers, np.float32),
        }
        rank = min(max_rank, *sizes)
        if joined["a"].shape[2] > rank:
            joined, cut, all_of_it = _truncated(joined, rank)
            lost, total = lost + cut, total + all_of_it
        else:
            total += float(np.square(norms(joined)).sum())
        merged[target] = {name: np.asarray(leaf, np.float32) for name, leaf in joined.items()}
    return merged, float(np.sqrt(lost / total)) if total else 0.0


def _truncated(x: Update, rank: int) -> tuple[Update, float, float]:
    """Returns the best approximation of an update of this rank, and the squared norms of what is lost and of all."""
    lost = total = 0.0
    sides: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for layer in range(len(x["scale"])):
        left, s, right = _factorise(*_factors(x, layer))
        lost, total = lost + float(np.square(s[rank:]).sum()), total + float(np.square(s).sum())
        # The root on both sides: neither factor dwarfs the other in float32.
        root = np.sqrt(s[:rank])
        sides[0].append(left[:, :rank] * root)
        sides[1].append(root[:, None] * right[:rank])
    return {"a": np.stack(sides[0]), "b": np.stack(sides[1]), "scale": x["scale"]}, lost, total


@jax.jit
def _square_sums(weights: dict[str, Array]) -> dict[str, Array]:
    # In float32 whatever the dtype of the weights; the sums of rows first, so that few numbers of one size add up.
    return {name: jnp.square(w.astype(jnp.float32)).sum(-1).sum(-1) for name, w in weights.items()}


def base_norms(mesh: jax.sharding.Mesh, state: nnx.State, targets: Sequence[str]) -> dict[str, Float[np.ndarray, " L"]]:
    """Computes the Frobenius norms of the base model's projections on the devices, to 1e-5.

    Args:
      mesh: that the base model is spread over.
      state: of the base model.
      targets: names of projections.

    Returns:
      target -> [L] float64.
    """
    weights = {}
    for path, leaf in jax.tree.leaves_with_path(state):
        # ["blocks", "attention", "q_proj", "weight"] -> [L, D_out, D_in]
        parts = leaf_name(path).split(".")
        if parts[-1] == "weight" and len(parts) > 1 and parts[-2] in targets:
            weights[parts[-2]] = leaf
    # Replicated, so that every process can read them.
    sums = jax.device_put(_square_sums(weights), mesh_lib.replicated(mesh))
    return {name: np.sqrt(np.asarray(sums[name], np.float64)) for name in targets}
