"""Part `profile`: the time of a layer profile beside that of plain forward passes over the same tokens."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mossa_jax.benchmarks import measuring
from mossa_jax.benchmarks.random_models import Workload, draw_prompts, write_models
from mossa_jax.function import profile
from mossa_jax.function.likelihood import log_likelihoods
from mossa_jax.function.packed_pairs import PackedSize, PairConfig
from mossa_jax.function.variant_schedule import make_schedule
from mossa_jax.function.variants import variant_likelihoods, variant_shape
from mossa_jax.llama.adapters import Adapter, HostAdapters, initial_adapter, stack
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.files.load import load_model
from mossa_jax.similarity.engine import memory_per_device
from mossa_jax.states import PassConfig
from mossa_jax.tokens.encoded import Encoded, Examples, in_memory
from mossa_jax.tokens.packing import Packing

ANSWER_IDS = 4
"""The last ids of each prompt, which are the answer."""


def _sources(arch: Architecture) -> HostAdapters:
    """Draws a base without an adapter, E and a specialist, as tuning leaves them."""
    rng = np.random.default_rng(0)
    adapters: list[Adapter] = [{}]
    for seed in (1, 2):
        adapter = initial_adapter(arch, ("q_proj", "v_proj"), 8, 16.0, 0, (seed,))
        for matrices in adapter.values():
            matrices["b"] = 0.02 * rng.standard_normal(matrices["b"].shape, np.float32)
        adapters.append(adapter)
    return stack(arch, adapters)


def _pairs(work: Workload) -> Examples:
    return in_memory(Encoded(ids[:-ANSWER_IDS], ids[-ANSWER_IDS:]) for ids in draw_prompts(work))


def measure(work: Workload) -> dict[str, Any]:
    """Times a layer profile and, in turns, plain passes of its variants with their adapters written out.

    Returns:
      A JSON-ready record: sizes; `variants`, different models of the profile; `passes`, the forward passes that the
      profile's blocks amount to; a row for either way; and the largest relative difference of their log probabilities.

    Raises:
      Refusal: 2 for sizes that cannot be measured.
    """
    work.check()
    pairs = _pairs(work)
    with tempfile.TemporaryDirectory() as scratch:
        model = load_model(write_models(work, scratch, 1)[0])
    arch, sources = model.architecture, _sources(model.architecture)
    variants = np.unique(profile.sources(profile.profile_variants(arch.layers)), axis=0)
    config = PairConfig(Packing(-(-int(pairs.lengths.max()) // 64) * 64), work.batch_rows)
    reading = PassConfig("last", config.batch_rows, config.packing)
    sizes = [[PackedSize.of(rows) for rows in config.pack(arch, pairs)]]
    itemsize = jnp.dtype(jnp.float32).itemsize
    shape = variant_shape(arch, model.mesh, sizes, variants, config, itemsize, memory_per_device())
    # As many models at once as the profile has lanes, over the same batches.
    lanes, layers = shape.size.lanes, np.arange(arch.layers)
    groups = np.resize(variants, (-(-len(variants) // lanes) * lanes, arch.layers)).reshape(-1, lanes, arch.layers)
    written = [jax.tree.map(lambda leaf, rows=rows: leaf[rows, layers], sources) for rows in groups]

    def plain_passes() -> np.ndarray:
        passes = [log_likelihoods(model, each, pairs, reading) for each in written]
        return np.concatenate(passes)[: len(variants)]

    profiled = partial(variant_likelihoods, model, sources, variants, pairs, config, shape)
    runs: dict[str, Callable[[], np.ndarray]] = {"profile": profiled, "plain passes": plain_passes}
    ours, plain = (run() for run in runs.values())
    times = measuring.time_in_turns(runs, work.rounds)
    rows = [{"name": name} | measuring.summarize(times[name], times["plain passes"]) for name in runs]
    return {
        **dataclasses.asdict(work),
        "variants": len(variants),
        "passes": make_schedule(variants, shape.size).steps / arch.layers,
        "lanes": lanes,
        "difference": float(np.abs(ours / plain - 1).max()),
        "rows": rows,
    }


def table(record: dict[str, Any]) -> str:
    """Returns the record as a plain text table."""
    lines = [
        f"Layer profile of E and a specialist, {record['variants']} variants: D={record['hidden']}, "
        f"{record['layers']} layers, {record['prompts']} prompts; medians of {record['rounds']} rounds; the blocks of "
        f"{record['passes']:.1f} passes in {record['lanes']} lanes; largest difference {record['difference']:.0e}",
        f"{'':16}{'s':>8}{'ratio':>8}{'CPU ratio':>28}",
    ]
    for row in record["rows"]:
        span = f"({row['ratio_lowest']:.2f} to {row['ratio_highest']:.2f})"
        lines.append(f"{row['name']:16}{row['seconds']:>8.2f}{row['ratio']:>8.2f} {span:16}{row['cpu_ratio']:>11.2f}")
    return "\n".join(lines)
