"""Part `models`: from two loaded models and token ids to CKA of all layers, beside other ways to get there.

The time includes neither loading nor compilation (each flow runs once before), but everything else. All flows read the
same Hugging Face folders and the same ids. The paper's procedure has two rows: without the answers that its script
generates, and with them. The script generates up to 512 tokens per prompt, so both models answer a few prompts, once,
and the time of these answers is scaled up to all prompts and added to the time without them.
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
from mossa_jax.benchmarks.end_to_end_by_hand import (
    best_flow,
    exact_values,
    kept_prefix_flow,
    paper_flow,
    time_generation,
    usual_flow,
)
from mossa_jax.benchmarks.end_to_end_tools import Values, packaged_flows
from mossa_jax.benchmarks.random_models import Workload, base_states, draw_prompts, write_models
from mossa_jax.llama.files.load import Model, load_model
from mossa_jax.llama.model import can_share_prefix
from mossa_jax.log import log
from mossa_jax.similarity import compare_states
from mossa_jax.tokens.packing import Packing

Flow = Callable[[], Values]
_OURS = "mossa_jax"
_BEST = "float32 torch, sorted, no head (by hand)"
_KEPT = "the same, shared keys and values kept"
_USUAL = "Hugging Face loop, padded (the usual)"
_PAPER = "the paper's procedure, no generation"
_GENERATING = "the paper's procedure, with generation"


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
      the flow is absent. `own_tokens` are the fewest and the most ids of a prompt after the shared ones,
      `shared_by_ours` the ids that our flow runs once for all prompts, and `generation_seconds` the time of the answers
      to the first `generated` prompts. A row that is `extrapolated` from them was not measured whole.

    Raises:
      Refusal: 2 for sizes that cannot be measured.
    """
    work.check()
    work.check_generation()
    prompts = draw_prompts(work)
    with tempfile.TemporaryDirectory() as scratch:
        folders = write_models(work, scratch)
        models = [load_model(folder) for folder in folders]
        may_share = can_share_prefix(models[0].architecture)
        shared_by_ours = Packing.fitting(prompts).prompts(prompts, may_share).sizes.prefix
        flows: dict[str, Flow] = {_OURS: partial(our_flow, models, prompts, work.batch_rows)}
        absent: dict[str, str] = {}
        exact: Values | None = None
        torch_models: list[Any] = []
        if importlib.util.find_spec("torch") is None:
            absent["everything else"] = "not installed (pip install torch)"
        else:
            torch_models = _torch_models(folders)
            exact = exact_values(torch_models, prompts)
            flows |= {
                _BEST: partial(best_flow, torch_models, prompts, work.batch),
                _KEPT: partial(kept_prefix_flow, torch_models, prompts, work.batch, work.shared),
                _USUAL: partial(usual_flow, torch_models, prompts, work.batch),
                _PAPER: partial(paper_flow, torch_models, prompts, scratch),
            }
            if not work.shared:
                del flows[_KEPT]
            packaged, absent = packaged_flows(torch_models, prompts, work.batch, work.hook_batch)
            flows |= packaged
        rows, times = _time(flows, exact, work.rounds)
        answers = None
        if torch_models and work.generated:
            place = next(place for place, row in enumerate(rows, 1) if row["name"] == _PAPER)
            row, answers = _generating_row(work, torch_models, prompts, rows[place - 1], times)
            rows.insert(place, row)
    tokens, own = sum(map(len, prompts)), [len(ids) - work.shared for ids in prompts]
    for row in rows:
        if not row["absent"]:
            row |= {"prompts_per_s": work.prompts / row["seconds"], "tokens_per_s": 2 * tokens / row["seconds"]}
    rows += [{"name": name, "absent": reason} for name, reason in absent.items()]
    config = work.config()
    return {
        **dataclasses.asdict(work),
        "kv_heads": config["num_key_value_heads"],
        "feed_forward": config["intermediate_size"],
        "own_tokens": [min(own), max(own)],
        "tokens_of_a_pass": tokens,
        "shared_by_ours": shared_by_ours,
        "generation_seconds": None if answers is None else answers.clock,
        "rows": rows,
    }


def _torch_models(folders: Sequence[str]) -> list[Any]:
    from transformers import AutoModelForCausalLM

    machine.set_threads()
    with measuring.quiet():
        models = [AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval() for folder in folders]
    return [model.to(machine.torch_device()) for model in models]


def _time(
    flows: Mapping[str, Flow], exact: Values | None, rounds: int
) -> tuple[list[dict[str, Any]], dict[str, list[measuring.Times]]]:
    """Returns the rows of all flows, and the times of those that run.

    A flow of another package that fails is a result, too.
    """
    rows: list[dict[str, Any]] = []
    runnable: dict[str, Flow] = {}
    for name, flow in flows.items():
        row: dict[str, Any] = {"name": name, "absent": "", "extrapolated": False}
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
    return rows, times


def _generating_row(
    work: Workload,
    models: Sequence[Any],
    prompts: Sequence[Sequence[int]],
    without: Mapping[str, Any],
    times: Mapping[str, Sequence[measuring.Times]],
) -> tuple[dict[str, Any], measuring.Times | None]:
    """Scales the answers to a few prompts up to all, and adds them to the paper's procedure without generation.

    Args:
      work: sizes.
      models: two `LlamaForCausalLM`.
      prompts: ids of each prompt.
      without: the row of the paper's procedure without generation. Its values are those with generation, too, since the
        states are read before.
      times: of all flows.

    Returns:
      The row, and the time of the answers that were generated; None if they fail.
    """
    row = {**without, "name": _GENERATING, "extrapolated": work.generated < work.prompts}
    if without["absent"]:
        return row, None
    try:
        with measuring.quiet():
            answers = time_generation(models, prompts[: work.generated], work.new_tokens)
    except Exception as error:
        return {"name": _GENERATING, "absent": f"fails ({measuring.failure(error)})", "extrapolated": False}, None
    log.info("models, generation: %.1f s for the first %d prompts", answers.clock, work.generated)
    scale = work.prompts / work.generated
    scaled = [
        measuring.Times(time.clock + scale * answers.clock, time.cpu + scale * answers.cpu) for time in times[_PAPER]
    ]
    return row | measuring.summarize(scaled, times[_OURS]), answers


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
    shared, (fewest, most) = record["shared"], record["own_tokens"]
    once = f" (ours runs {record['shared_by_ours']} of them once)" if shared else ""
    lines = [
        f"From two models and token ids to CKA of all layers: D={record['hidden']}, {record['layers']} layers, "
        f"{record['prompts']} prompts of {shared} shared ids{once} and {fewest} to {most} own ids, "
        f"{record['tokens_of_a_pass']:,} tokens; medians of {record['rounds']} rounds",
        f"{'':44}{'s':>8}{'ratio':>8}{'CPU ratio':>26}{'prompts/s':>11}{'error':>9}  estimator",
    ]
    for row in record["rows"]:
        if row["absent"]:
            lines.append(f"{row['name']:44}{row['absent']}")
            continue
        span = f"({row['ratio_lowest']:.2f} to {row['ratio_highest']:.2f})"
        mark = ", extrapolated" if row["extrapolated"] else ""
        lines.append(
            f"{row['name']:44}{row['seconds']:>8.2f}{row['ratio']:>8.2f} {span:16}{row['cpu_ratio']:>9.2f}"
            f"{row['prompts_per_s']:>11.1f}"
            f"{largest_error(row):>9.0e}  {row['estimator']}{mark}"
        )
    if record["generation_seconds"] is not None:
        generated, seconds = record["generated"], record["generation_seconds"]
        lines.append(
            f"Generation: {seconds / generated:.2f} s per prompt for {record['new_tokens']} tokens from each of both "
            f"models, timed once on the first {generated} of {record['prompts']} prompts; the row adds "
            f"{record['prompts']} times that to the time without. Random models do not stop by themselves, so every "
            "answer has its full length."
        )
    return "\n".join(lines)
