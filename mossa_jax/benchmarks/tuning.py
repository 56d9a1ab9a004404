"""Tuning speed against the usual loop, PEFT on torch: the same weights and examples on the same machine, in turns.

Our side is the population step over packed rows. PEFT trains one model after the other: batches of whole examples
padded to the longest, the head over all positions, the loss of `transformers`, AdamW, clipping, a cosine schedule. The
time of both sides includes assembling batches, all of each step, and reading the losses; it includes neither
compilation nor loading.

Ratios are valid only on an idle machine. The threads of torch wait for one another at every operation, so that a core
that is busy with other work slows PEFT down far more than ours. The record says how loaded the machine was before.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mossa_jax.benchmarks.tuning_data import (
    Case,
    Workload,
    dense_case,
    task_cases,
    write_model_with_tokenizer,
    write_random_model,
)
from mossa_jax.benchmarks.tuning_sides import Ours, Outcome, Peft, Side
from mossa_jax.config import Mesh
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.llama.adapters import initial_adapter
from mossa_jax.llama.files.load import load_model
from mossa_jax.llama.files.peft import save_adapter
from mossa_jax.log import log


def measure(work: Workload, tasks: str | None = None, base: str | None = None) -> dict[str, Any]:
    """Measures all cases of the comparison.

    Args:
      work: sizes.
      tasks: a folder as for suite `folder`; None takes the embedded suite.
      base: MODEL for the real tasks; None makes a random one with the embedded tokenizer.

    Returns:
      A JSON-ready record: machine, versions, sizes, and one row per case with tokens/s of both sides, the ratio
      (median, lowest and highest over neighbouring runs) and the losses of both.

    Raises:
      Refusal: 2 if torch or peft is not installed, and as in `load_suite` and `load_model`.
    """
    for name in ("torch", "peft"):
        if importlib.util.find_spec(name) is None:
            raise Refusal(BAD_CONFIG, f"the comparison needs {name}, which is not installed; pip install -e '.[bench]'")
    import torch

    torch.set_num_threads(work.threads or os.cpu_count() or 1)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        dense = write_random_model(f"{scratch}/dense", work.dense)
        cases = [(dense, dense_case(work, models)) for models in dict.fromkeys((1, work.models))]
        folder = base or write_model_with_tokenizer(f"{scratch}/tasks", work.dense)
        cases += [(folder, case) for case in task_cases(work, folder, tasks)]
        rows = [_compare(work, model, case, f"{scratch}/{number}") for number, (model, case) in enumerate(cases)]
    return {
        "rows": rows,
        "repeats": work.repeats,
        "models": work.models,
        "dense": f"{work.dense_rows} x {work.dense_length}",
        "packed": f"{work.rows} x {work.length}",
        "examples_per_batch": work.examples,
        "targets": list(work.tuning.targets),
        "remat": work.tuning.remat,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "devices": jax.device_count(),
        "load": round(load, 1),
        "machine": platform.processor() or platform.machine(),
        "device": jax.devices()[0].device_kind,
        "versions": {name: metadata.version(name) for name in ("jax", "torch", "transformers", "peft")},
    }


def _compare(work: Workload, folder: str, case: Case, scratch: str) -> dict[str, Any]:
    """Returns one row of the record.

    Args:
      work: sizes.
      folder: of the base.
      case: what both sides learn from; several models are spread over all devices.
      scratch: folder for the untrained adapters.
    """
    models = len(case.examples)
    mesh = mesh_lib.make_mesh(Mesh(-1, 1, 1)) if models % jax.device_count() == 0 else None
    model = load_model(folder, mesh=mesh)
    tuning = work.tuning
    initial = [
        initial_adapter(model.architecture, tuning.targets, tuning.rank, tuning.alpha, 0, (number,))
        for number in range(models)
    ]
    adapters = [Path(scratch) / str(number) for number in range(models)]
    for path, adapter in zip(adapters, initial, strict=True):
        save_adapter(path, adapter, folder, {})
    sides: dict[str, Side] = {
        "ours": Ours(work, model, initial, case),
        "peft": Peft(work, str(model.folder), adapters, case),
    }
    outcomes: dict[str, Outcome] = {}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(work.repeats + 1):
        for name, side in sides.items():
            side.reset()
            time.sleep(work.rest)
            start = time.perf_counter()
            outcomes[name] = side.run()
            # The first run compiles.
            if number:
                seconds[name].append(time.perf_counter() - start)
    ratios = np.asarray(seconds["peft"]) / np.asarray(seconds["ours"])
    row: dict[str, Any] = {
        "name": case.name,
        "models": models,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.state)),
        "ratio": round(float(np.median(ratios)), 3),
        "ratio_lowest": round(float(ratios.min()), 3),
        "ratio_highest": round(float(ratios.max()), 3),
    }
    for name, outcome in outcomes.items():
        row[f"{name}_tokens_per_s"] = round(outcome.tokens / float(np.median(seconds[name])), 1)
        row[f"{name}_seconds"] = [round(spent, 6) for spent in seconds[name]]
        row[f"{name}_tokens"] = outcome.tokens
        row[f"{name}_positions"] = outcome.positions
        row[f"{name}_loss"] = outcome.loss
    log.info("%s: %.2f times as fast as PEFT", case.name, row["ratio"])
    return row


def table(record: dict[str, Any]) -> str:
    """Returns the record as a plain text table."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines = [
        f"Tuning in float32, LoRA on {', '.join(record['targets'])}; {record['cores']} cores, {record['device']}: ours "
        f"on {record['devices']} devices, torch on {record['threads']} threads; load before {record['load']}; "
        f"{versions}; medians of {record['repeats']} runs",
        f"dense: each position has a label, {record['dense']} per step; tasks: answer tokens, in packed rows of "
        f"{record['packed']} (ours) or in batches of {record['examples_per_batch']} padded examples (PEFT)",
        f"{'':44}{'ours, tokens/s':>16}{'PEFT':>12}{'ratio':>8}{'':15}{'positions':>22}{'loss':>18}",
    ]
    for row in record["rows"]:
        span = f"{row['ratio_lowest']:.2f} to {row['ratio_highest']:.2f}"
        positions = f"{row['ours_positions']:,} / {row['peft_positions']:,}"
        loss = f"{row['ours_loss']:.4f} / {row['peft_loss']:.4f}"
        lines.append(
            f"{row['name']:44}{row['ours_tokens_per_s']:>16,.0f}{row['peft_tokens_per_s']:>12,.0f}{row['ratio']:>8.2f}"
            f"{span:>15}{positions:>22}{loss:>18}"
        )
    return "\n".join(lines)
