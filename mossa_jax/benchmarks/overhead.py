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
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from mossa_jax import mesh as mesh_lib
from mossa_jax.benchmarks import machine
from mossa_jax.benchmarks.models import Workload, draw_prompts, ours, row_length, write_folders
from mossa_jax.config import Mesh
from mossa_jax.llama.adapters import stack, zero_adapter
from mossa_jax.llama.load import Model, load_model
from mossa_jax.llama.model import merge
from mossa_jax.progress import log
from mossa_jax.rundir import Refusal
from mossa_jax.states.forward import Pass, Prompts, run_models

_POOLED = ("last", "mean")  # a row a prompt; `all` tokens are not kept
CHILD = "import sys; from mossa_jax.benchmarks import overhead; overhead.write_one(*sys.argv[1:])"


@partial(jax.jit, static_argnames=("made",))
def _bare(made: Pass, base, adapters, rows, lead) -> jax.Array:
    """The passes of `states.forward`; of what they give, one number of the last layer leaves the device."""
    keep = lambda state, layer, x, whole: x.ravel()[0]  # noqa: E731
    return run_models(made, merge(made.arch, base), adapters, rows, lead, keep, None)


def forward_only(models: Sequence[Model], prompts: Sequence[Sequence[int]], batch_rows: int, pool: str) -> None:
    """The forward passes of `ours`, over the same packed rows, that pool and keep nothing."""
    for model in models:
        arch = model.architecture
        adapters = stack(arch, [zero_adapter(arch)])
        packed = Prompts(
            arch, model.state, adapters, prompts, model.mesh,
            pool=pool, row_length=row_length(prompts), batch_rows=batch_rows,
        )  # fmt: skip
        for rows in packed.batches():
            done = _bare(packed.made, *packed.arguments, rows, packed.lead)
        jax.block_until_ready(done)


def overhead(
    models: Sequence[Model],
    prompts: Sequence[Sequence[int]],
    batch_rows: int,
    pool: str,
    rounds: int,
    together: Callable = ours,
) -> dict[str, Any]:
    """Forward passes alone beside forward passes with the comparison, in turns.

    Args:
      models: two, on one mesh.
      prompts: ids.
      batch_rows: packed rows of a forward pass.
      pool: "last" or "mean".
      rounds: timed.
      together: called as `ours` is; forward passes and comparison.

    Returns:
      Median seconds of both, and the share that the comparison adds (median, lowest and highest over rounds).
    """
    runs = {
        "forward": lambda: forward_only(models, prompts, batch_rows, pool),
        "together": lambda: together(models, prompts, batch_rows, pool),
    }
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


def one(work: Workload, pool: str, devices: int) -> dict[str, Any]:
    """`overhead` on this process's first `devices` devices, over as many times the prompts."""
    scaled = dataclasses.replace(work, prompts=work.prompts * devices)
    mesh = mesh_lib.make_mesh(Mesh(1, devices, 1), devices=jax.devices()[:devices])
    with tempfile.TemporaryDirectory() as scratch:
        models = [load_model(folder, mesh=mesh) for folder in write_folders(scaled, scratch)]
        found = overhead(models, draw_prompts(scaled), work.batch_rows, pool, work.rounds)
    return {"pool": pool, "devices": devices, "prompts": scaled.prompts} | found


def measure(work: Workload, devices: Sequence[int] = (1,)) -> dict[str, Any]:
    """`one` for every pooling and number of devices; on CPU in processes of their own, with virtual devices.

    Returns:
      A JSON-ready record with a row each; `throughput` is prompts a second over those of the first number of devices.

    Raises:
      Refusal: 2 for sizes that cannot be measured, or more devices than there are.
    """
    work.check()
    virtual = jax.default_backend() == "cpu"
    for count in devices:
        if count < 1 or (not virtual and count > jax.device_count()):
            raise Refusal(2, f"devices={count}: there are {jax.device_count()}; give 1 to {jax.device_count()}")
    rows = []
    for pool in _POOLED:
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
        f"Forward passes against forward passes with comparison: D={record['hidden']}, {record['layers']} layers, "
        f"{record['prompts']} prompts a device; {kind}; medians of {record['rounds']}",
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
