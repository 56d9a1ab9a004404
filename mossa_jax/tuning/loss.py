"""The objective: cross-entropy on answer tokens and EOS only.

In tuning, head and final norm are frozen. So the loss and its gradient by the states are found together, some columns
at a time, and no logits are kept for the backward pass, which only scales that gradient.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.llama.adapters import DeviceAdapter
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.attention import Segments
from mossa_jax.llama.blockwise import product_precision
from mossa_jax.llama.model import Llama, RMSNorm, head_logits, head_weight, logits, run_blocks

_CHUNK = 1_024  # answer tokens whose logits a device holds at once


def answer_loss(
    model: Llama,
    arch: Architecture,
    adapter: DeviceAdapter,
    rows: dict[str, jax.Array],
    remat: bool,
    mesh=None,
    *,
    prefix: int = 0,
    max_own: int = 0,
    frozen: bool = True,
) -> tuple:
    """Sum of the negative log likelihoods of all answer tokens, in nats, and how many they are.

    The head runs only where an answer token is predicted.

    Args:
      model: the base.
      arch: its architecture.
      adapter: one model's adapter, no leading axis; {} for the base alone.
      rows: fields of `tokens.packing.TrainingRows`, each [B, ...].
      remat: recompute the inside of every block in the backward pass, for memory.
      mesh: the devices that rows are spread over; None for one.
      prefix: columns at the head of rows that may hold ids which all their examples share.
      max_own: no example has more ids of its own than this; 0: not known.
      frozen: head and final norm are not differentiated; False where they are trained.

    Returns:
      (sum [] float32, count [] float32).

    Raises:
      ValueError: head or final norm is differentiated, but said to be frozen.
    """
    visible = Segments(rows["segments"], mesh, prefix, max_own)
    _, last, _ = run_blocks(
        model, arch, adapter, rows["tokens"], rows["positions"], visible, tap=lambda *_: None, remat=remat
    )
    labels = rows["labels"]
    count = jnp.sum(labels >= 0, dtype=jnp.float32)
    if frozen:
        return _frozen_loss(model, arch, last, rows["predict"], labels, mesh), count
    answers = jnp.take_along_axis(last, rows["predict"][..., None], axis=1)
    log_probabilities = jax.nn.log_softmax(logits(model, arch, answers), axis=-1)
    likelihood = jnp.take_along_axis(log_probabilities, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    return -jnp.sum(likelihood * (labels >= 0)), count


def _frozen_loss(model: Llama, arch: Architecture, last, predict, labels, mesh) -> jax.Array:
    """The summed loss of states [B, S, D] at columns `predict` [B, M], differentiable by the states alone."""
    head, per_device = head_weight(model, arch), len(labels)
    if mesh is not None:
        # Gathered over `fsdp` here, once, rather than in every turn of the loop.
        head = jax.lax.with_sharding_constraint(head, mesh_lib.sharding(mesh, head.shape, ("vocab", None)))
        per_device = mesh_lib.sharding(mesh, labels.shape, ("rows", None)).shard_shape(labels.shape)[0]
    chunks = -(-labels.shape[1] * per_device // _CHUNK)
    size = -(-labels.shape[1] // chunks)
    extra = ((0, 0), (0, chunks * size - labels.shape[1]))
    predict, labels = jnp.pad(predict, extra), jnp.pad(labels, extra, constant_values=-1)
    answers = jnp.take_along_axis(last, predict[..., None], axis=1)
    return _chunked_loss(size, model.final_norm, head, answers, labels)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked_loss(size: int, norm: RMSNorm, head, states, labels) -> jax.Array:
    """The summed loss of `states` [B, M, D] with `labels` [B, M], by `size` columns at a time; size divides M.

    Labels stand on the left: columns behind the last one of the fullest row are never looked at.
    """
    add = lambda chunk, totals: totals + _loss(chunk, norm, head, states, labels, size)[0]  # noqa: E731
    return jnp.sum(jax.lax.fori_loop(0, _chunks(labels, size), add, jnp.zeros(len(labels), _wide(states))))


def _chunked_loss_forward(size, *inputs):
    norm, head, states, labels = jax.tree.map(lambda leaf: leaf.value, inputs)
    if any(leaf.perturbed for leaf in jax.tree.leaves(inputs[:2])):
        raise ValueError("head or final norm is differentiated; answer_loss needs frozen=False")

    def add(chunk, carry):
        totals, gradient = carry
        losses, part = _loss(chunk, norm, head, states, labels, size)
        return totals + losses, jax.lax.dynamic_update_slice_in_dim(gradient, part(), chunk * size, axis=1)

    nothing = jnp.zeros(len(labels), _wide(states)), jnp.zeros_like(states)
    totals, gradient = jax.lax.fori_loop(0, _chunks(labels, size), add, nothing)
    return jnp.sum(totals), gradient


def _chunked_loss_backward(size, gradient, outer):
    return None, None, (outer * gradient).astype(gradient.dtype), None


_chunked_loss.defvjp(_chunked_loss_forward, _chunked_loss_backward, symbolic_zeros=True)


def _loss(chunk, norm: RMSNorm, head, states, labels, size: int) -> tuple:
    """Each row's loss [B] in one chunk of columns and, when called, the gradient by their states [B, C, D]."""
    part, labels = (jax.lax.dynamic_slice_in_dim(x, chunk * size, size, axis=1) for x in (states, labels))
    normed, back = jax.vjp(norm, part)
    scores = head_logits(normed, head)
    scores = scores - jnp.max(scores, axis=-1, keepdims=True)
    counted = labels[..., None] >= 0
    # By comparison, not by index: so a vocabulary that is spread over devices stays where it is.
    label = labels[..., None] == jnp.arange(len(head))
    weights = jnp.exp(scores)
    sums = jnp.sum(weights, axis=-1, keepdims=True)
    losses = jnp.where(counted, jnp.log(sums), 0) - jnp.sum(jnp.where(label, scores, 0), axis=-1, keepdims=True)

    def gradient():
        by_score = (jnp.where(counted, weights / sums, 0) - label).astype(part.dtype)
        by_normed = jnp.einsum(
            "bcv,vd->bcd", by_score, head, precision=product_precision(part.dtype), preferred_element_type=_wide(part)
        )
        return back(by_normed.astype(part.dtype))[0]

    return jnp.sum(losses, axis=(1, 2)), gradient


@jax.custom_batching.custom_vmap
def _most(columns: jax.Array) -> jax.Array:
    return jnp.max(columns)


@_most.def_vmap
def _most_of_all(axis_size, batched, columns):
    """One number for all models, so that a loop over it runs as often for each and selects nothing between them."""
    return _most(columns), False


def _chunks(labels: jax.Array, size: int) -> jax.Array:
    """How many chunks hold all labels."""
    columns = jnp.where(labels >= 0, jnp.arange(1, labels.shape[1] + 1), 0)
    return (_most(columns) + size - 1) // size


def _wide(states: jax.Array):
    return jnp.promote_types(states.dtype, jnp.float32)
