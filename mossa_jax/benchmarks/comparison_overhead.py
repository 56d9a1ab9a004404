"""Part `overhead`: the time that the comparison adds to bare forward passes, and how both scale with devices.

Scaling is weak: N devices get N times the prompts. Virtual devices of one CPU share its cores, so at best they reach
the throughput of one device; N real devices should reach N times that.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mossa_jax.benchmarks import measuring
from mossa_jax.benchmarks.random_models import Workload, draw_prompts, write_models
from mossa_jax.config import Mesh
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.llama.adapters import Adapter, Adapters, HostAdapters, initial_adapter, stack
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.files.load import Model, load_model
from mossa_jax.llama.model import merge
from mossa_jax.log import log
from mossa_jax.similarity import compare_states
from mossa_jax.similarity.streamed.forward import stream_similarities
from mossa_jax.states import PassConfig, keep_states
from mossa_jax.states.forward import Layer, PassSpec, PrefixStates, RowBatch, run_models
from mossa_jax.states.prompts import PromptPass
from mossa_jax.tokens.packing import Packing

POOLS = ("last", "mean", "all")
# The base, and adapters for an experimental and a control model.
MODELS = 3
PAIRS = ((0, 1), (0, 2), (1, 2))
_CHILD = f"import sys; from {__name__} import write_row; write_row(*sys.argv[1:])"


@partial(jax.jit, static_argnames=("spec",))
def _run_models(
    spec: PassSpec, base: nnx.State, adapters: Adapters, batch: RowBatch, prefix: PrefixStates | None
) -> jax.Array:
    """Runs the models as `states.keep` does, but returns a single number, of the last layer."""

    def consume(state: jax.Array, layer: Layer, x: jax.Array, every_position: bool) -> jax.Array:
        return x.ravel()[0]

    return run_models(spec, merge(spec.arch, base), adapters, batch, prefix, consume, jnp.zeros(()))


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs of the forward passes.

    Attributes:
      model: the base.
      adapters: stacked [M, ...] on the host.
      prompts: ids of each prompt.
      config: pooling, batch size and packing.
    """

    model: Model
    adapters: HostAdapters
    prompts: Sequence[Sequence[int]]
    config: PassConfig


def forward_only(inputs: Inputs) -> None:
    """Runs the forward passes of `forward_and_compare` over the same packed rows, but pools and keeps nothing."""
    prompt_pass = PromptPass(inputs.model, inputs.adapters, inputs.prompts, inputs.config)
    for batch in prompt_pass.batches():
        last = _run_models(prompt_pass.spec, *prompt_pass.arguments, batch, prompt_pass.prefix)
    jax.block_until_ready(last)


def forward_and_compare(inputs: Inputs) -> None:
    """Compares as a run does: pooled rows are kept and compared at the end, `all` tokens are streamed into moments."""
    if inputs.config.pool == "all":
        stream_similarities(inputs.model, inputs.adapters, inputs.prompts, inputs.config, PAIRS)
    else:
        kept = keep_states(inputs.model, inputs.adapters, inputs.prompts, inputs.config)
        compare_states(kept.states, kept.valid, PAIRS)


def overhead(model: Model, prompts: Sequence[Sequence[int]], batch_rows: int, pool: str, rounds: int) -> dict[str, Any]:
    """Times forward passes of `MODELS` models without and with the comparison, in turns.

    Args:
      model: the base.
      prompts: ids of each prompt.
      batch_rows: packed rows per forward pass.
      pool: one of `POOLS`.
      rounds: timed rounds.

    Returns:
      Median seconds of both, and the share that the comparison adds (median, lowest and highest over rounds).
    """
    config = PassConfig(pool, batch_rows, Packing.fitting(prompts))
    inputs = Inputs(model, _adapters(model.architecture), prompts, config)
    runs = {"forward": partial(forward_only, inputs), "together": partial(forward_and_compare, inputs)}
    for run in runs.values():
        run()
    times = measuring.time_in_turns(runs, rounds)
    summary = measuring.summarize(times["together"], times["forward"])
    return {
        "forward_seconds": statistics.median(time.clock for time in times["forward"]),
        "together_seconds": summary["seconds"],
        "added": summary["ratio"] - 1,
        "added_lowest": summary["ratio_lowest"] - 1,
        "added_highest": summary["ratio_highest"] - 1,
        "cpu_added": summary["cpu_ratio"] - 1,
    }


def _adapters(arch: Architecture) -> HostAdapters:
    """Returns the base itself and random adapters of rank 8 on q and v, stacked."""
    rng = np.random.default_rng(0)
    adapters: list[Adapter] = [{}]
    for seed in range(1, MODELS):
        adapter = initial_adapter(arch, ("q_proj", "v_proj"), 8, 16.0, 0, (seed,))
        for matrices in adapter.values():
            matrices["b"] = 0.02 * rng.standard_normal(matrices["b"].shape, np.float32)
        adapters.append(adapter)
    return stack(arch, adapters)


def measure_row(work: Workload, pool: str, devices: int) -> dict[str, Any]:
    """Measures `overhead` on the first `devices` devices of this process, with `devices` times the prompts."""
    scaled = dataclasses.replace(work, prompts=work.prompts * devices)
    mesh = mesh_lib.make_mesh(Mesh(1, devices, 1), devices=jax.devices()[:devices])
    with tempfile.TemporaryDirectory() as scratch:
        model = load_model(write_models(scaled, scratch, 1)[0], mesh=mesh)
        times = overhead(model, draw_prompts(scaled), work.batch_rows, pool, work.rounds)
    return {"pool": pool, "devices": devices, "prompts": scaled.prompts} | times


def measure(work: Workload, devices: Sequence[int] = (1,), pools: Sequence[str] = POOLS) -> dict[str, Any]:
    """Measures each pooling on each number of devices.

    On a CPU, each measurement has a process of its own with virtual devices.

    Args:
      work: sizes.
      devices: numbers of devices.
      pools: some of `POOLS`.

    Returns:
      A JSON-ready record with one row per pooling and number of devices; `throughput` is prompts per second, relative
      to the first number of devices.

    Raises:
      Refusal: 2 for sizes or poolings that cannot be measured, or for more devices than there are.
    """
    work.check()
    if not pools or not set(pools) <= set(POOLS):
        raise Refusal(BAD_CONFIG, f"pools={','.join(pools)}: give some of {', '.join(POOLS)}")
    virtual = jax.default_backend() == "cpu"
    for count in devices:
        if count < 1 or (not virtual and count > jax.device_count()):
            most = "at least 1" if virtual else f"1 to {jax.device_count()}"
            raise Refusal(BAD_CONFIG, f"devices={count}: give {most}")
    rows: list[dict[str, Any]] = []
    for pool in pools:
        for count in devices:
            row = _measure_in_process(work, pool, count) if virtual else measure_row(work, pool, count)
            first = next((other for other in rows if other["pool"] == pool), row)
            rows.append(row | {"throughput": _prompts_per_second(row) / _prompts_per_second(first)})
            log.info("overhead, %s, %d devices: %+.1f %%", pool, count, 100 * row["added"])
    return {**dataclasses.asdict(work), "virtual": virtual, "rows": rows}


def _prompts_per_second(row: dict[str, Any]) -> float:
    return row["prompts"] / row["together_seconds"]


def _measure_in_process(work: Workload, pool: str, devices: int) -> dict[str, Any]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "row.json")
        arguments = [json.dumps(dataclasses.asdict(work)), pool, str(devices), str(out)]
        environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", _CHILD, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the measurement on {devices} virtual devices failed: {done.stderr[-2000:]}")
        return json.loads(out.read_text())


def write_row(work: str, pool: str, devices: str, out: str) -> None:
    """Runs in the process of a measurement: writes the row of `measure_row` to the file `out`.

    Args:
      work: the `Workload` as JSON.
      pool: one of `POOLS`.
      devices: the number of devices.
      out: file to write.
    """
    Path(out).write_text(json.dumps(measure_row(Workload(**json.loads(work)), pool, int(devices))))


def table(record: dict[str, Any]) -> str:
    """Returns the record as a plain text table."""
    devices = "virtual devices, which share this CPU's cores" if record["virtual"] else "devices"
    lines = [
        f"Forward passes of {MODELS} models without and with their comparison: D={record['hidden']}, "
        f"{record['layers']} layers, {record['prompts']} prompts per device; {devices}; "
        f"medians of {record['rounds']} rounds",
        f"{'pool':8}{'devices':>8}{'prompts':>9}{'forward s':>11}{'with CKA s':>12}{'added':>9}{'CPU added':>30}"
        f"{'throughput':>12}",
    ]
    for row in record["rows"]:
        span = f"({row['added_lowest']:+.1%} to {row['added_highest']:+.1%})"
        lines.append(
            f"{row['pool']:8}{row['devices']:>8}{row['prompts']:>9}{row['forward_seconds']:>11.2f}"
            f"{row['together_seconds']:>12.2f}{row['added']:>+9.1%} {span:21}{row['cpu_added']:>+9.1%}"
            f"{row['throughput']:>12.2f}"
        )
    return "\n".join(lines)
