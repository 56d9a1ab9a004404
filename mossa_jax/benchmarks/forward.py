"""Forward speed against transformers on torch: same weights, same machine, in turns."""

from __future__ import annotations

import os
import platform
import time
from functools import partial
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.attention import Segments
from mossa_jax.llama.files.load import load_model
from mossa_jax.llama.model import logits, merge, run_blocks

_REST = 0.5  # seconds, in which the other's idle threads stop spinning


@partial(jax.jit, static_argnames=("arch", "mesh"))
def _forward(arch: Architecture, mesh, state, tokens) -> jax.Array:
    """Logits [B, S, V] of whole rows [B, S]."""
    model = merge(arch, state)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    visible = Segments(jnp.ones_like(tokens), mesh)
    _, last, _ = run_blocks(model, arch, {}, tokens, positions, visible, tap=lambda *_: None)
    return logits(model, arch, last)


def compare_forward(folder: str, rows: int, length: int, repeats: int, dtype: str = "float32") -> dict[str, Any]:
    """Tokens a second of ours and of transformers, each run following the other's.

    Args:
      folder: a checkpoint that both load.
      rows, length: of the batch.
      repeats: timed runs of each, after two that are not timed.
      dtype: of weights and compute, "float32" or "bfloat16".

    Returns:
      Medians in tokens/s, the median of the ratios of neighbouring runs, and the relative difference of the logits.

    Raises:
      ImportError: torch is not installed.
    """
    import torch
    from transformers import AutoModelForCausalLM

    tokens = np.random.default_rng(0).integers(3, 1000, (rows, length))
    model = load_model(folder, dtype=dtype)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    placed, given = jnp.asarray(tokens, jnp.int32), torch.tensor(tokens)

    def ours() -> jax.Array:
        return jax.block_until_ready(_forward(model.architecture, model.mesh, model.state, placed))

    def reference():
        with torch.inference_mode():
            return theirs(given, use_cache=False).logits

    seconds: dict[str, list[float]] = {"ours": [], "transformers": []}
    for number in range(repeats + 2):
        for name, run in (("ours", ours), ("transformers", reference)):
            time.sleep(_REST)
            start = time.perf_counter()
            run()
            if number >= 2:
                seconds[name].append(time.perf_counter() - start)
    wanted = reference().float().numpy()
    difference = np.linalg.norm(np.asarray(ours(), np.float32) - wanted) / np.linalg.norm(wanted)
    ratios = np.asarray(seconds["transformers"]) / np.asarray(seconds["ours"])
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.state)),
        "rows": rows,
        "length": length,
        "dtype": dtype,
        "repeats": repeats,
        "ours_tokens_per_s": round(tokens.size / float(np.median(seconds["ours"])), 1),
        "transformers_tokens_per_s": round(tokens.size / float(np.median(seconds["transformers"])), 1),
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
