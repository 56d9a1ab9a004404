"""Speed of the forward pass against transformers on torch: the same weights on the same machine, in turns."""

from __future__ import annotations

import os
import platform
from functools import partial
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mossa_jax.benchmarks.measuring import time_in_turns
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.attention import Segments
from mossa_jax.llama.files.load import load_model
from mossa_jax.llama.model import logits, merge, run_blocks

# Seconds before each run, in which the idle threads of the other library stop spinning.
_REST = 0.5
_WARM_UP_RUNS = 2


@partial(jax.jit, static_argnames=("arch", "mesh"))
def forward_logits(arch: Architecture, mesh: jax.sharding.Mesh, state: Any, tokens: jax.Array) -> jax.Array:
    """Returns the logits [B, S, V] of whole rows [B, S]."""
    model = merge(arch, state)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    visible = Segments(jnp.ones_like(tokens), mesh)
    _, last, _ = run_blocks(model, arch, {}, tokens, positions, visible, tap=lambda *_: None)
    return logits(model, arch, last)


def compare_forward(folder: str, rows: int, length: int, repeats: int, dtype: str = "float32") -> dict[str, Any]:
    """Measures the tokens per second of our forward pass and of that of transformers.

    Args:
      folder: a checkpoint that both load.
      rows: B, rows of the batch.
      length: S, positions of a row.
      repeats: timed runs of each, after two that are not timed.
      dtype: of weights and computation, "float32" or "bfloat16".

    Returns:
      A JSON-ready record: median tokens/s of both, the median of the ratios of neighbouring runs, and the relative
      difference of the logits.

    Raises:
      ImportError: torch is not installed.
    """
    import torch
    from transformers import AutoModelForCausalLM

    tokens = np.random.default_rng(0).integers(3, 1000, (rows, length))
    model = load_model(folder, dtype=dtype)
    torch_model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    jax_tokens, torch_tokens = jnp.asarray(tokens, jnp.int32), torch.tensor(tokens)

    def run_ours() -> jax.Array:
        return jax.block_until_ready(forward_logits(model.architecture, model.mesh, model.state, jax_tokens))

    def run_transformers() -> torch.Tensor:
        with torch.inference_mode():
            return torch_model(torch_tokens, use_cache=False).logits

    runs = {"ours": run_ours, "transformers": run_transformers}
    for _ in range(_WARM_UP_RUNS):
        for run in runs.values():
            run()
    times = time_in_turns(runs, repeats, _REST)
    ours, transformers = (np.asarray([time.clock for time in times[name]]) for name in runs)
    expected = run_transformers().float().numpy()
    difference = np.linalg.norm(np.asarray(run_ours(), np.float32) - expected) / np.linalg.norm(expected)
    ratios = transformers / ours
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.state)),
        "rows": rows,
        "length": length,
        "dtype": dtype,
        "repeats": repeats,
        "ours_tokens_per_s": round(tokens.size / float(np.median(ours)), 1),
        "transformers_tokens_per_s": round(tokens.size / float(np.median(transformers)), 1),
        "ratio": round(float(np.median(ratios)), 3),
        "ratio_lowest": round(float(ratios.min()), 3),
        "ratio_highest": round(float(ratios.max()), 3),
        "logits_difference": float(difference),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "device": jax.devices()[0].device_kind,
        "versions": {name: metadata.version(name) for name in ("jax", "torch", "transformers")},
    }
