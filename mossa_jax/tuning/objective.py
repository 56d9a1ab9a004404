"""The objective: cross-entropy on answer tokens and EOS only."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.attention import Segments
from mossa_jax.llama.model import Llama, Lora, logits, run_blocks


def answer_loss(
    model: Llama, arch: Architecture, adapter: Lora, rows: dict[str, jax.Array], remat: bool, mesh=None
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

    Returns:
      (sum [] float32, count [] float32).
    """
    _, last, _ = run_blocks(
        model, arch, adapter, rows["tokens"], rows["positions"], Segments(rows["segments"], mesh), tap=lambda *_: None,
        remat=remat,
    )  # fmt: skip
    answers = jnp.take_along_axis(last, rows["predict"][..., None], axis=1)
    log_probabilities = jax.nn.log_softmax(logits(model, arch, answers), axis=-1)
    labels = rows["labels"]
    likelihood = jnp.take_along_axis(log_probabilities, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    counted = labels >= 0
    return -jnp.sum(likelihood * counted), jnp.sum(counted, dtype=jnp.float32)
