"""Part `prefix`: what it saves to work through ids once that all prompts begin with (a template, a system prompt)."""

from __future__ import annotations

import dataclasses
import tempfile
from functools import partial
from typing import Any

import jax
import numpy as np

from mossa_jax.benchmarks import machine
from mossa_jax.benchmarks.end_to_end import Workload, row_length, write_folders
from mossa_jax.llama.adapters import stack, zero_adapter
from mossa_jax.llama.files.load import Model, load_model
from mossa_jax.states import keep_states

LEAD, OWN = 133, 60  # ids of Llama-2's template with its system prompt; of a prompt itself


def draw(work: Workload) -> list[list[int]]:
    """Prompts of `OWN` random ids behind the same `LEAD`, of which the first is BOS."""
    rng = np.random.default_rng(work.seed)
    prefix = [1, *rng.integers(3, work.vocab, LEAD - 1).tolist()]
    return [prefix + rng.integers(3, work.vocab, OWN).tolist() for _ in range(work.prompts)]


def states(model: Model, prompts: list[list[int]], batch_rows: int, share: bool) -> jax.Array:
    """[1, L + 2, n, D] states of the prompts' last tokens; unshared ids take a place in every row."""
    adapters = stack(model.architecture, [zero_adapter(model.architecture)])
    own = [prompt[LEAD:] for prompt in prompts] if share else prompts
    kept = keep_states(
        model.architecture, model.state, adapters, prompts, model.mesh,
        pool="last", row_length=row_length(own), batch_rows=batch_rows, share_prefix=share,
    )  # fmt: skip
    return kept.states[:, :, : len(prompts)]


def measure(work: Workload) -> dict[str, Any]:
    """States behind shared ids, these worked through once and in every prompt, in turns.

    Returns:
      A JSON-ready record: sizes, a row for either way, and the largest difference of their states in shares of the
      largest state.

    Raises:
      Refusal: 2 for sizes that cannot be measured.
    """
    work.check()
    prompts = draw(work)
    with tempfile.TemporaryDirectory() as scratch:
        model = load_model(write_folders(work, scratch, 1)[0])
    ways = {"once": True, "in every prompt": False}
    runs = {name: partial(states, model, prompts, work.batch_rows, share) for name, share in ways.items()}
    found = [np.asarray(run()) for run in runs.values()]
    timed = {name: (lambda run=run: jax.block_until_ready(run())) for name, run in runs.items()}
    times = machine.in_turns(timed, work.rounds)
    rows = [{"name": name} | machine.summary(times[name], times["once"]) for name in runs]
    for row in rows:
        row["prompts_per_s"] = work.prompts / row["seconds"]
    apart = np.abs(found[0] - found[1]).max() / np.abs(found[1]).max()
    return {**dataclasses.asdict(work), "lead": LEAD, "own": OWN, "difference": float(apart), "rows": rows}


def table(record: dict[str, Any]) -> str:
    """The record as a plain text table."""
    lines = [
        f"States of prompts of {record['own']} ids behind {record['lead']} shared ones: D={record['hidden']}, "
        f"{record['layers']} layers, {record['prompts']} prompts; medians of {record['rounds']}; "
        f"largest difference {record['difference']:.0e}",
        f"{'shared ids worked through':28}{'s':>8}{'ratio':>8}{'prompts/s':>27}",
    ]
    for row in record["rows"]:
        span = f"({row['ratio_lowest']:.2f} to {row['ratio_highest']:.2f})"
        lines.append(
            f"{row['name']:28}{row['seconds']:>8.2f}{row['ratio']:>8.2f} {span:16}{row['prompts_per_s']:>10.1f}"
        )
    return "\n".join(lines)
