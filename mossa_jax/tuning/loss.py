"""The objective: cross-entropy on answer tokens and EOS only.

When adapters are tuned, head and final norm are frozen. Then the loss and its gradient by the states are computed
together, a chunk of columns at a time. No logits are kept for the backward pass, which only scales that gradient.

Shape letters: B rows, S positions, M answer tokens of a row (a column each), C columns of a chunk, D hidden, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.llama.adapters import DeviceAdapter
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.attention import Segments
from mossa_jax.llama.blockwise import product_precision
from mossa_jax.llama.layers import RMSNorm
from mossa_jax.llama.model import Llama, bound_logits, head_products, head_weight, logits, run_blocks
from mossa_jax.tuning.batch import Batch

# Logits [B, C, V] in float32: 1,024 tokens of a vocabulary of 32,000 take 131 MB.
HEAD_TOKENS = 1_024
"""Answer tokens whose logits a device holds at once, per model."""


def answer_loss(
    model: Llama,
    arch: Architecture,
    adapter: DeviceAdapter,
    rows: Batch,
    remat: bool,
    mesh: jax.sharding.Mesh | None = None,
    *,
    prefix: int = 0,
    max_own: int = 0,
    frozen: bool = True,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sums the negative log likelihoods of all answer tokens, in nats, and counts these tokens.

    The head runs only at positions that predict an answer token.

    Args:
      model: the base.
      arch: its architecture.
      adapter: one model's adapter, without a leading axis; {} for the base alone.
      rows: a batch [B, ...].
      remat: recompute the inside of every block in the backward pass, for memory.
      mesh: the devices that rows are spread over; None for one.
      prefix: columns at the head of rows that may hold ids which all their examples share.
      max_own: no example has more ids of its own than this; 0: not known.
      frozen: head and final norm are not differentiated; False where they are trained.

    Returns:
      (sum [] float32, count [] float32).

    Raises:
      ValueError: head or final norm is differentiated although `frozen` says otherwise.
    """
    visible = Segments(rows["segments"], mesh, prefix, max_own)
    # [B, S, D]
    _, last, _ = run_blocks(
        model, arch, adapter, rows["tokens"], rows["positions"], visible, tap=lambda *_: None, remat=remat
    )
    labels = rows["labels"]
    # [B, M] -> []. A float, because it divides sums and gradients.
    count = jnp.sum(labels >= 0, dtype=jnp.float32)
    if frozen:
        return frozen_loss(model, arch, last, rows["predict"], labels, mesh), count
    # [B, M, D] -> [B, M, V] -> [B, M]
    answers = jnp.take_along_axis(last, rows["predict"][..., None], axis=1)
    # The head is trained too: plain automatic differentiation, with all logits [B, M, V] at once.
    log_probabilities = jax.nn.log_softmax(logits(model, arch, answers), axis=-1)
    # An unused slot has label -1. It looks up id 0, which is then masked.
    likelihood = jnp.take_along_axis(log_probabilities, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    return -jnp.sum(likelihood * (labels >= 0)), count


@jax.named_scope("head")
def frozen_loss(
    model: Llama,
    arch: Architecture,
    last: Float[Array, "B S D"],
    predict: Int[Array, "B M"],
    labels: Int[Array, "B M"],
    mesh: jax.sharding.Mesh | None,
) -> Float[Array, ""]:
    """Sums the loss of final states, differentiable by the states alone.

    Args:
      model: the base.
      arch: its architecture.
      last: output of the last block.
      predict: positions that predict an answer token.
      labels: those tokens, the filled columns of a row first; -1 where there is none.
      mesh: as in `answer_loss`.
    """
    size, head, answers, labels = _chunks(model, arch, last, predict, labels, mesh, HEAD_TOKENS)
    # The gather of answers is outside the custom rule: JAX itself carries the gradient [B, M, D] back to [B, S, D].
    return _loss_by_chunks(arch, size, model.final_norm, head, answers, labels)


def answer_losses(
    model: Llama,
    arch: Architecture,
    adapter: DeviceAdapter,
    rows: Batch,
    visible: Segments,
    head_tokens: int = HEAD_TOKENS,
) -> Float[Array, "B M"]:
    """Returns the negative log likelihood of every answer token, in nats; nothing is differentiated.

    Args:
      model: the base.
      arch: its architecture.
      adapter: one model's adapter, without a leading axis; {} for the base alone.
      rows: a batch [B, ...].
      visible: what the rows' tokens see.
      head_tokens: answer tokens whose logits a device holds at once.

    Returns:
      [B, M] float32; 0 where there is no label.
    """
    _, last, _ = run_blocks(model, arch, adapter, rows["tokens"], rows["positions"], visible, tap=lambda *_: None)
    return losses_of_states(model, arch, last, rows, visible.mesh, head_tokens)


@jax.named_scope("head")
def losses_of_states(
    model: Llama,
    arch: Architecture,
    last: Float[Array, "B S D"],
    rows: Batch,
    mesh: jax.sharding.Mesh | None,
    head_tokens: int = HEAD_TOKENS,
) -> Float[Array, "B M"]:
    """Returns the negative log likelihood of every answer token from final states; nothing is differentiated.

    Args:
      model: the base.
      arch: its architecture.
      last: output of the last block.
      rows: the batch that it was computed from, [B, ...].
      mesh: the devices that rows are spread over; None for one.
      head_tokens: answer tokens whose logits a device holds at once.

    Returns:
      [B, M] float32, in nats; 0 where there is no label.
    """
    columns = rows["labels"].shape[1]
    size, head, answers, labels = _chunks(model, arch, last, rows["predict"], rows["labels"], mesh, head_tokens)

    def write(chunk: jax.Array, losses: jax.Array) -> jax.Array:
        part = _chunk_loss(chunk, arch, model.final_norm, head, answers, labels, size)[0][..., 0]  # [B, C]
        return jax.lax.dynamic_update_slice_in_dim(losses, part, chunk * size, axis=1)

    zeros = jnp.zeros(labels.shape, _wide(answers))
    return jax.lax.fori_loop(0, _chunk_count(labels, size), write, zeros)[:, :columns]


def _chunks(
    model: Llama,
    arch: Architecture,
    last: Float[Array, "B S D"],
    predict: Int[Array, "B M"],
    labels: Int[Array, "B M"],
    mesh: jax.sharding.Mesh | None,
    head_tokens: int,
) -> tuple[int, Float[Array, "V D"], Float[Array, "B M D"], Int[Array, "B M"]]:
    """Returns the columns of a chunk, and head, states and labels for a loop over chunks; M is padded to a multiple."""
    head, rows_per_device = head_weight(model, arch), len(labels)
    if mesh is not None:
        # [V, D] is gathered over `fsdp` once, rather than in every turn of the loop over chunks.
        head = jax.lax.with_sharding_constraint(head, mesh_lib.sharding(mesh, head.shape, ("vocab", None)))
        rows_per_device = mesh_lib.sharding(mesh, labels.shape, ("rows", None)).shard_shape(labels.shape)[0]
    # As few chunks as hold `head_tokens` each, made equal, and the columns padded to a multiple of their size.
    chunks = -(-labels.shape[1] * rows_per_device // head_tokens)
    size = -(-labels.shape[1] // chunks)
    padding = ((0, 0), (0, chunks * size - labels.shape[1]))
    # Padded columns predict from position 0 and have label -1: they add nothing to loss or gradient.
    predict, labels = jnp.pad(predict, padding), jnp.pad(labels, padding, constant_values=-1)
    return size, head, jnp.take_along_axis(last, predict[..., None], axis=1), labels  # [B, M, D]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loss_by_chunks(
    arch: Architecture,
    size: int,
    norm: RMSNorm,
    head: Float[Array, "V D"],
    states: Float[Array, "B M D"],
    labels: Int[Array, "B M"],
) -> Float[Array, ""]:
    """Sums the loss over chunks of `size` columns, which divides M.

    Labels fill a row from the left, so chunks after the last column of the fullest row are never computed.
    """

    # The number of turns depends on the labels, which reverse mode cannot follow: hence the rule of our own. One total
    # per row, [B], because a sum over rows would be a collective in every turn.
    def add(chunk: jax.Array, totals: jax.Array) -> jax.Array:
        return totals + jnp.sum(_chunk_loss(chunk, arch, norm, head, states, labels, size)[0], axis=(1, 2))

    return jnp.sum(jax.lax.fori_loop(0, _chunk_count(labels, size), add, jnp.zeros(len(labels), _wide(states))))


def _loss_by_chunks_forward(arch: Architecture, size: int, *inputs: Any) -> tuple[jax.Array, jax.Array]:
    """Returns the loss, and as residual its gradient by the states [B, M, D]."""
    # With symbolic zeros every input comes with `perturbed`: whether anything asks for its gradient.
    norm, head, states, labels = jax.tree.map(lambda leaf: leaf.value, inputs)
    if any(leaf.perturbed for leaf in jax.tree.leaves(inputs[:2])):
        raise ValueError("head or final norm is differentiated; answer_loss needs frozen=False")

    def add(chunk: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        totals, gradient = carry
        losses, chunk_gradient = _chunk_loss(chunk, arch, norm, head, states, labels, size)
        # Chunks that are never computed keep a gradient of zero.
        return totals + jnp.sum(losses, axis=(1, 2)), jax.lax.dynamic_update_slice_in_dim(
            gradient, chunk_gradient(), chunk * size, axis=1
        )

    zeros = jnp.zeros(len(labels), _wide(states)), jnp.zeros_like(states)  # [B], [B, M, D]
    totals, gradient = jax.lax.fori_loop(0, _chunk_count(labels, size), add, zeros)
    return jnp.sum(totals), gradient


def _loss_by_chunks_backward(
    arch: Architecture, size: int, gradient: jax.Array, outer: jax.Array
) -> tuple[None, None, jax.Array, None]:
    # The loss is a sum, so the gradient of the whole only scales that of the states, [B, M, D].
    return None, None, (outer * gradient).astype(gradient.dtype), None


_loss_by_chunks.defvjp(_loss_by_chunks_forward, _loss_by_chunks_backward, symbolic_zeros=True)


def _chunk_loss(
    chunk: Int[Array, ""],
    arch: Architecture,
    norm: RMSNorm,
    head: Float[Array, "V D"],
    states: Float[Array, "B M D"],
    labels: Int[Array, "B M"],
    size: int,
) -> tuple[Float[Array, "B C 1"], Callable[[], Float[Array, "B C D"]]]:
    """Returns the losses of one chunk of columns, and a function that returns their gradient by the states."""
    # [B, C, D] and [B, C].
    states, labels = (jax.lax.dynamic_slice_in_dim(x, chunk * size, size, axis=1) for x in (states, labels))
    normed, norm_gradient = jax.vjp(norm, states)  # [B, C, D]
    scores, bound_gradient = jax.vjp(partial(bound_logits, arch), head_products(normed, head))  # [B, C, V]
    # Against overflow of exp. The shift cancels in the loss, and no gradient is taken through it.
    scores = scores - jnp.max(scores, axis=-1, keepdims=True)
    is_label = labels[..., None] >= 0  # [B, C, 1]
    # A comparison instead of an index, so that a vocabulary that is spread over devices stays where it is.
    label = labels[..., None] == jnp.arange(len(head))  # [B, C, V]
    weights = jnp.exp(scores)
    sums = jnp.sum(weights, axis=-1, keepdims=True)
    # [B, C, 1]: log of the sum of exponentials minus the label's score. Label -1 equals no id and adds nothing.
    losses = jnp.where(is_label, jnp.log(sums), 0) - jnp.sum(jnp.where(label, scores, 0), axis=-1, keepdims=True)

    def gradient() -> jax.Array:
        # The gradient of cross-entropy by the scores: probabilities minus the label's unit vector. In the states'
        # dtype, so that a bfloat16 model multiplies in bfloat16.
        by_score = bound_gradient(jnp.where(is_label, weights / sums, 0) - label)[0]  # [B, C, V]
        by_normed = jnp.einsum(
            "bcv,vd->bcd",
            by_score.astype(states.dtype),
            head,
            precision=product_precision(states.dtype),
            preferred_element_type=_wide(states),
        )
        # [B, C, D], back through the final norm.
        return norm_gradient(by_normed.astype(states.dtype))[0]

    return losses, gradient


@jax.custom_batching.custom_vmap
def _last_column(columns: Int[Array, "B M"]) -> Int[Array, ""]:
    return jnp.max(columns)


@_last_column.def_vmap
def _last_column_of_all(axis_size: int, batched: Any, columns: Int[Array, "A B M"]) -> tuple[jax.Array, bool]:
    """Returns one number for all models: a loop over it has equally many turns for each, and selects nothing."""
    return _last_column(columns), False


def _chunk_count(labels: Int[Array, "B M"], size: int) -> Int[Array, ""]:
    """Counts the chunks that hold all labels."""
    # [B, M]: the number of each filled column, from 1.
    columns = jnp.where(labels >= 0, jnp.arange(1, labels.shape[1] + 1), 0)
    return (_last_column(columns) + size - 1) // size


def _wide(states: jax.Array) -> DTypeLike:
    """Returns the dtype that sums are made in: float32, or float64 for float64 states."""
    return jnp.promote_types(states.dtype, jnp.float32)
