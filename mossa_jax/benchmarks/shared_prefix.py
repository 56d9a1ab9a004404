"""Part `prefix`: the time saved by running a shared prefix (a template, a system prompt) once for all prompts."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from mossa_jax.benchmarks import measuring
from mossa_jax.benchmarks.random_models import Workload, base_states, write_models
from mossa_jax.llama.files.load import Model, load_model
from mossa_jax.tokens.packing import Packing

# The shared prefix is as long as Llama-2's template with its system prompt.
SHARED_IDS, OWN_IDS = 133, 60


def draw_prompts(work: Workload) -> list[list[int]]:
    """Returns prompts of `OWN_IDS` random ids after the same `SHARED_IDS` ids, of which the first is BOS."""
    rng = np.random.default_rng(work.seed)
    prefix = [1, *rng.integers(3, work.vocab, SHARED_IDS - 1).tolist()]
    return [prefix + rng.integers(3, work.vocab, OWN_IDS).tolist() for _ in range(work.prompts)]


def states(model: Model, prompts: list[list[int]], batch_rows: int, share: bool) -> jax.Array:
    """Returns the states of the prompts' last tokens.

    Args:
      model: the base.
      prompts: from `draw_prompts`.
      batch_rows: packed rows per forward pass.
      share: True runs the shared ids once; False runs them in each prompt.

    Returns:
      [1, L + 2, n, D] float32.
    """
    row_length = Packing.fitting([prompt[SHARED_IDS:] for prompt in prompts] if share else prompts).row_length
    kept = base_states(model, prompts, batch_rows, Packing(row_length, share_prefix=share))
    return kept.states[:, :, : len(prompts)]


def measure(work: Workload) -> dict[str, Any]:
    """Times the states of prompts with a shared prefix, run once or in each prompt, in turns.

    Returns:
      A JSON-ready record: sizes, one row for either way, and the largest difference of their states as a share of the
      largest state.

    Raises:
      Refusal: 2 for sizes that cannot be measured.
    """
    work.check()
    prompts = draw_prompts(work)
    with tempfile.TemporaryDirectory() as scratch:
        model = load_model(write_models(work, scratch, 1)[0])
    ways = {"once": True, "in every prompt": False}
    runs = {name: partial(states, model, prompts, work.batch_rows, share) for name, share in ways.items()}
    shared, unshared = (np.asarray(run()) for run in runs.values())
    timed_runs = {name: partial(_finish, run) for name, run in runs.items()}
    times = measuring.time_in_turns(timed_runs, work.rounds)
    rows = [{"name": name} | measuring.summarize(times[name], times["once"]) for name in runs]
    for row in rows:
        row["prompts_per_s"] = work.prompts / row["seconds"]
    difference = float(np.abs(shared - unshared).max() / np.abs(unshared).max())
    return {**dataclasses.asdict(work), "lead": SHARED_IDS, "own": OWN_IDS, "difference": difference, "rows": rows}


def _finish(run: Callable[[], jax.Array]) -> None:
    jax.block_until_ready(run())


def table(record: dict[str, Any]) -> str:
    """Returns the record as a plain text table."""
    lines = [
        f"States of prompts with {record['own']} ids after {record['lead']} shared ones: D={record['hidden']}, "
        f"{record['layers']} layers, {record['prompts']} prompts; medians of {record['rounds']} rounds; "
        f"largest difference {record['difference']:.0e}",
        f"{'shared ids are run':28}{'s':>8}{'ratio':>8}{'prompts/s':>27}",
    ]
    for row in record["rows"]:
        span = f"({row['ratio_lowest']:.2f} to {row['ratio_highest']:.2f})"
        lines.append(
            f"{row['name']:28}{row['seconds']:>8.2f}{row['ratio']:>8.2f} {span:16}{row['prompts_per_s']:>10.1f}"
        )
    return "\n".join(lines)
