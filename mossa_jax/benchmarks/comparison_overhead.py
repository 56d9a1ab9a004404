"""Part `overhead`: what the comparison adds to bare forward passes, and how both grow with devices.

Weak scaling: N devices get N times the prompts. Virtual devices of one CPU share its cores, so that the best they can
do is the throughput of one device; real ones should do N times as much.
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
import numpy as np

from mossa_jax.benchmarks import machine
from mossa_jax.benchmarks.end_to_end import Workload, draw_prompts, row_length, write_folders
from mossa_jax.config import Mesh
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.errors import Refusal
from mossa_jax.llama.adapters import initial_adapter, stack
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.files.load import Model, load_model
from mossa_jax.llama.model import merge
from mossa_jax.log import log
from mossa_jax.similarity import compare_states
from mossa_jax.similarity.streamed.forward import stream_similarities
from mossa_jax.states.forward import Pass, Prompts, keep_states, run_models

POOLS = ("last", "mean", "all")
MODELS = 3  # the base, and adapters for an experimental and a control model
PAIRS = ((0, 1), (0, 2), (1, 2))
CHILD = "import sys; from mossa_jax.benchmarks import comparison_overhead; comparison_overhead.write_one(*sys.argv[1:])"


@partial(jax.jit, static_argnames=("made",))
def _bare(made: Pass, base, adapters, rows, prefix) -> jax.Array:
    """The passes of `states.forward`; of what they give, one number of the last layer leaves the device."""
    keep = lambda state, layer, x, whole: x.ravel()[0]  # noqa: E731
    return run_models(made, merge(made.arch, base), adapters, rows, prefix, keep, None)


def forward_only(inputs: tuple, packing: dict[str, Any]) -> None:
    """The forward passes of `together`, over the same packed rows, that pool and keep nothing."""
    packed = Prompts(*inputs, **packing)
    for rows in packed.batches():
        done = _bare(packed.made, *packed.arguments, rows, packed.prefix)
    jax.block_until_ready(done)


def together(inputs: tuple, packing: dict[str, Any]) -> None:
    """As a run compares: pooled rows are kept and compared at the end, `all` tokens streamed into moments."""
    if packing["pool"] == "all":
        stream_similarities(*inputs, PAIRS, **packing)
    else:
        kept = keep_states(*inputs, **packing)
        compare_states(kept.states, kept.valid, PAIRS)


def overhead(model: Model, prompts: Sequence[Sequence[int]], batch_rows: int, pool: str, rounds: int) -> dict[str, Any]:
    """Forward passes alone beside forward passes with the comparison, in turns; `MODELS` models at once.

    Args:
      model: the base.
      prompts: ids.
      batch_rows: packed rows of a forward pass.
      pool: one of `POOLS`.
      rounds: timed.

    Returns:
      Median seconds of both, and the share that the comparison adds (median, lowest and highest over rounds).
    """
    inputs = model.architecture, model.state, _adapters(model.architecture), prompts, model.mesh
    packing = {"pool": pool, "row_length": row_length(prompts), "batch_rows": batch_rows}
    runs = {name: partial(run, inputs, packing) for name, run in (("forward", forward_only), ("together", together))}
    for run in runs.values():
        run()
    times = machine.in_turns(runs, rounds)
    found = machine.summary(times["together"], times["forward"])
    return {
        "forward_seconds": statistics.median(one.clock for one in times["forward"]),
        "together_seconds": found["seconds"],
        "added": found["ratio"] - 1,
        "added_lowest": found["ratio_lowest"] - 1,
        "added_highest": found["ratio_highest"] - 1,
        "cpu_added": found["cpu_ratio"] - 1,
    }


def _adapters(arch: Architecture) -> dict[str, dict[str, np.ndarray]]:
    """The base itself and random adapters of rank 8 on q and v, stacked."""
    rng = np.random.default_rng(0)
    adapters: list[dict] = [{}]
    for seed in range(1, MODELS):
        adapter = initial_adapter(arch, ("q_proj", "v_proj"), 8, 16.0, 0, (seed,))
        for part in adapter.values():
            part["b"] = 0.02 * rng.standard_normal(part["b"].shape, np.float32)
        adapters.append(adapter)
    return stack(arch, adapters)


def one(work: Workload, pool: str, devices: int) -> dict[str, Any]:
    """`overhead` on this process's first `devices` devices, over as many times the prompts."""
    scaled = dataclasses.replace(work, prompts=work.prompts * devices)
    mesh = mesh_lib.make_mesh(Mesh(1, devices, 1), devices=jax.devices()[:devices])
    with tempfile.TemporaryDirectory() as scratch:
        model = load_model(write_folders(scaled, scratch, 1)[0], mesh=mesh)
        found = overhead(model, draw_prompts(scaled), work.batch_rows, pool, work.rounds)
    return {"pool": pool, "devices": devices, "prompts": scaled.prompts} | found


def measure(work: Workload, devices: Sequence[int] = (1,), pools: Sequence[str] = POOLS) -> dict[str, Any]:
    """`one` for every pooling and number of devices; on CPU in processes of their own, with virtual devices.

    Args:
      work: sizes.
      devices: numbers of them.
      pools: of `POOLS`.

    Returns:
      A JSON-ready record with a row each; `throughput` is prompts a second over those of the first number of devices.

    Raises:
      Refusal: 2 for sizes or poolings that cannot be measured, or more devices than there are.
    """
    work.check()
    if not pools or not set(pools) <= set(POOLS):
        raise Refusal(2, f"pools={','.join(pools)}: give some of {', '.join(POOLS)}")
    virtual = jax.default_backend() == "cpu"
    for count in devices:
        if count < 1 or (not virtual and count > jax.device_count()):
            raise Refusal(2, f"devices={count}: there are {jax.device_count()}; give 1 to {jax.device_count()}")
    rows = []
    for pool in pools:
        for count in devices:
            row = _in_a_process(work, pool, count) if virtual else one(work, pool, count)
            first = next((other for other in rows if other["pool"] == pool), row)
            speed = [r["prompts"] / r["together_seconds"] for r in (row, first)]
            rows.append(row | {"throughput": speed[0] / speed[1]})
            log.info("overhead, %s, %d devices: %+.1f %%", pool, count, 100 * row["added"])
    return {**dataclasses.asdict(work), "virtual": virtual, "rows": rows}


def _in_a_process(work: Workload, pool: str, devices: int) -> dict[str, Any]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "row.json")
        arguments = [json.dumps(dataclasses.asdict(work)), pool, str(devices), str(out)]
        environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", CHILD, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the measurement on {devices} virtual devices failed: {done.stderr[-2000:]}")
        return json.loads(out.read_text())


def write_one(work: str, pool: str, devices: str, out: str) -> None:
    """The child of a measurement: writes the record of `one` to the file `out`."""
    Path(out).write_text(json.dumps(one(Workload(**json.loads(work)), pool, int(devices))))


def table(record: dict[str, Any]) -> str:
    """The record as a plain text table."""
    kind = "virtual devices, which share this CPU's cores" if record["virtual"] else "devices"
    lines = [
        f"Forward passes of {MODELS} models without and with their comparison: D={record['hidden']}, "
        f"{record['layers']} layers, {record['prompts']} prompts a device; {kind}; medians of {record['rounds']}",
        f"{'pool':8}{'devices':>8}{'prompts':>9}{'forward s':>11}{'with CKA s':>12}{'added':>9}{'of CPU':>30}"
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
