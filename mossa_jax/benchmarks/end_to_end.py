"""Part `models`: from two loaded models and token ids to CKA of all layers, beside other ways to get there.

The time includes neither loading nor compilation (each flow runs once before), but everything else. All flows read the
same Hugging Face folders and the same ids. No text is generated, which favours the paper's procedure: its script
generates up to 512 tokens per prompt.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from mossa_jax.benchmarks import machine, measuring
from mossa_jax.benchmarks.end_to_end_by_hand import best_flow, exact_values, paper_flow, usual_flow
from mossa_jax.benchmarks.end_to_end_tools import Values, packaged_flows
from mossa_jax.benchmarks.random_models import Workload, base_states, draw_prompts, write_models
from mossa_jax.llama.files.load import Model, load_model
from mossa_jax.log import log
from mossa_jax.similarity import compare_states
from mossa_jax.tokens.packing import Packing

Flow = Callable[[], Values]
_OURS = "mossa_jax"


def our_flow(models: Sequence[Model], prompts: Sequence[Sequence[int]], batch_rows: int) -> Values:
    """Computes both estimators with intervals, as `mossa.compare` does after loading and tokenizing.

    Args:
      models: two models.
      prompts: ids of each prompt.
      batch_rows: packed rows per forward pass.
    """
    kept = [base_states(model, prompts, batch_rows, Packing.fitting(prompts)) for model in models]
    similarities = compare_states(jnp.concatenate([states.states for states in kept]), kept[0].valid, [(0, 1)])
    # Hugging Face returns no state of the last block before the norm.
    value = np.delete(similarities.value[0], -2, axis=0)
    return {"biased": value[:, 0], "debiased": value[:, 1]}


def measure(work: Workload) -> dict[str, Any]:
    """Times all flows in turns.

    Returns:
      A JSON-ready record: sizes, tokens, and one row per flow: seconds, the ratio to ours (over rounds), prompts and
      tokens per second, the error of each layer against float64 of its estimator, and the mean of the values; or why
      the flow is absent.

    Raises:
      Refusal: 2 for sizes that cannot be measured.
    """
    work.check()
    prompts = draw_prompts(work)
    with tempfile.TemporaryDirectory() as scratch:
        folders = write_models(work, scratch)
        models = [load_model(folder) for folder in folders]
        flows: dict[str, Flow] = {_OURS: partial(our_flow, models, prompts, work.batch_rows)}
        absent: dict[str, str] = {}
        exact: Values | None = None
        if importlib.util.find_spec("torch") is None:
            absent["everything else"] = "not installed (pip install torch)"
        else:
            torch_models = _torch_models(folders)
            exact = exact_values(torch_models, prompts)
            flows |= {
                "float32 torch, sorted, no head (by hand)": partial(best_flow, torch_models, prompts, work.batch),
                "Hugging Face loop, padded (the usual)": partial(usual_flow, torch_models, prompts, work.batch),
                "the paper's procedure, no generation": partial(paper_flow, torch_models, prompts, scratch),
            }
            packaged, absent = packaged_flows(torch_models, prompts, work.batch, work.hook_batch)
            flows |= packaged
        rows = _time(flows, exact, work.rounds)
    tokens = sum(map(len, prompts))
    for row in rows:
        if not row["absent"]:
            row |= {"prompts_per_s": work.prompts / row["seconds"], "tokens_per_s": 2 * tokens / row["seconds"]}
    rows += [{"name": name, "absent": reason} for name, reason in absent.items()]
    return {**dataclasses.asdict(work), "tokens_of_a_pass": tokens, "rows": rows}


def _torch_models(folders: Sequence[str]) -> list[Any]:
    from transformers import AutoModelForCausalLM

    machine.set_threads()
    with measuring.quiet():
        models = [AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval() for folder in folders]
    return [model.to(machine.torch_device()) for model in models]


def _time(flows: Mapping[str, Flow], exact: Values | None, rounds: int) -> list[dict[str, Any]]:
    """Returns the rows of all flows; a flow of another package that fails is a result, too."""
    rows: list[dict[str, Any]] = []
    runnable: dict[str, Flow] = {}
    for name, flow in flows.items():
        row: dict[str, Any] = {"name": name, "absent": ""}
        rows.append(row)
        try:
            values = _quietly(flow)()
        except Exception as error:
            if name == _OURS:
                raise
            row["absent"] = f"fails ({measuring.failure(error)})"
            continue
        log.info("models, %s: ran once without being timed", name)
        runnable[name] = _quietly(flow)
        row["estimator"] = " and ".join(values)
        row["mean"] = {name: measuring.finite_or_none(np.mean(layers)) for name, layers in values.items()}
        if exact is not None:
            row["errors"] = {
                name: [measuring.finite_or_none(error) for error in np.abs(layers - exact[name])]
                for name, layers in values.items()
            }
    times = measuring.time_in_turns(runnable, rounds)
    for row in rows:
        if not row["absent"]:
            row |= measuring.summarize(times[row["name"]], times[_OURS])
    return rows


def _quietly(flow: Flow) -> Flow:
    def call() -> Values:
        with measuring.quiet():
            return flow()

    return call


def largest_error(row: Mapping[str, Any]) -> float:
    """Returns the largest error over layers and estimators; NaN if a value is missing or there is no exact one."""
    errors = [error for layers in row.get("errors", {}).values() for error in layers]
    return max(errors) if errors and None not in errors else float("nan")


def table(record: Mapping[str, Any]) -> str:
    """Returns the record as a plain text table."""
    lines = [
        f"From two models and token ids to CKA of all layers: D={record['hidden']}, {record['layers']} layers, "
        f"{record['prompts']} prompts, {record['tokens_of_a_pass']:,} tokens; medians of {record['rounds']} rounds",
        f"{'':44}{'s':>8}{'ratio':>8}{'CPU ratio':>26}{'prompts/s':>11}{'error':>9}  estimator",
    ]
    for row in record["rows"]:
        if row["absent"]:
            lines.append(f"{row['name']:44}{row['absent']}")
            continue
        span = f"({row['ratio_lowest']:.2f} to {row['ratio_highest']:.2f})"
        lines.append(
            f"{row['name']:44}{row['seconds']:>8.2f}{row['ratio']:>8.2f} {span:16}{row['cpu_ratio']:>9.2f}"
            f"{row['prompts_per_s']:>11.1f}"
            f"{largest_error(row):>9.0e}  {row['estimator']}"
        )
    return "\n".join(lines)
