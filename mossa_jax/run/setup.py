"""What a run was set up to be, in words and numbers: base, data, tuning, comparison and machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mossa_jax.config import Config
from mossa_jax.config.fields import Schedule
from mossa_jax.findings.wording import counted
from mossa_jax.llama.adapters import target_sizes
from mossa_jax.llama.architecture import Architecture
from mossa_jax.tasks.controls import Control

Setup = dict[str, dict[str, str]]
"""Group -> what is set -> its value; what is not known is absent."""

_FORMS = {"lora": "LoRA", "full": "every parameter"}
_POOLS = {"last": "the last token of the prompt", "mean": "the mean over the prompt's tokens", "all": "every token"}


def run_setup(
    config: Config,
    record: Mapping[str, Any],
    environment: Mapping[str, Any],
    controls: Sequence[Control],
    steps: Mapping[str, int],
) -> Setup:
    """Describes a run.

    Args:
      config: of the run.
      record: of its data (`read_record`).
      environment: environment.json.
      controls: all control models.
      steps: optimizer steps of E (`tuned`) and of each task's specialist.
    """
    architecture = recorded_architecture(record)
    groups = {
        "Base model": _base(config, record, architecture),
        "Tasks": _tasks(config, record),
        "Tuning": _tuning(config, architecture, controls),
        "E": _schedule(config, config.tuning.experimental, [steps["tuned"]] if "tuned" in steps else []),
        "Specialists": _schedule(
            config, config.tuning.control, [count for name, count in steps.items() if name != "tuned"]
        ),
        "Comparison": _comparison(config),
        "Machine": _machine(environment),
    }
    return {group: {name: value for name, value in rows.items() if value} for group, rows in groups.items()}


def recorded_architecture(record: Mapping[str, Any]) -> Architecture | None:
    """Returns the sizes of the base model as the record of a run's data has them; None if it has none.

    Only sizes are to be read off it: what begins and ends texts is not in the record.
    """
    known = record.get("fingerprints", {}).get("architecture")
    if not known:
        return None
    names = {field.name for field in dataclasses.fields(Architecture)}
    fields: dict[str, Any] = {"bos": None, "eos": ()}
    fields |= {name: known[name] for name in known if name in names}
    return Architecture(**fields)


def _base(config: Config, record: Mapping[str, Any], architecture: Architecture | None) -> dict[str, str]:
    weights = record.get("fingerprints", {}).get("weights", "")
    rows = {
        "Model": config.base,
        "Revision": config.revision,
        "Digest of the weights": weights,
        "Precision": config.dtype,
    }
    if architecture is None:
        return rows
    return rows | {
        "Family": architecture.family,
        "Parameters of its matrices": short_count(parameters(architecture)),
        "Layers": str(architecture.layers),
        "Width of a state": f"{architecture.hidden:,}",
        "Attention heads": _heads(architecture),
        "Vocabulary": f"{architecture.vocab:,}",
    }


def _heads(architecture: Architecture) -> str:
    shared = f", {architecture.kv_heads} of keys and values" if architecture.kv_heads != architecture.heads else ""
    return f"{architecture.heads}{shared}"


def parameters(architecture: Architecture) -> int:
    """Counts the parameters of a base model's matrices: blocks, head, and the embedding if it is another matrix."""
    embedding = 0 if architecture.tied_head else architecture.vocab * architecture.hidden
    return architecture.matrix_parameters + embedding


def _tasks(config: Config, record: Mapping[str, Any]) -> dict[str, str]:
    tasks, template = record["tasks"], record["template"]
    held_out = [name for name, task in tasks.items() if task["held_out"]]
    clusters = {task["cluster"] for task in tasks.values()}
    mixture = [task["train"]["rows"] for task in tasks.values() if not task["held_out"]]
    return {
        "Suite": record["suite"],
        "Tasks": f"{len(tasks)} in {counted(len(clusters), 'cluster')}",
        "Held out of the mixture": str(len(held_out)) if held_out else "none",
        "Training rows per task": _range([task["train"]["rows"] for task in tasks.values()]),
        "Training rows of the tasks in the mixture": f"{sum(mixture):,}",
        "Test prompts per task": _range([task["test"]["rows"] for task in tasks.values()]),
        "Longest row": f"{config.tokens.max_tokens:,} tokens ({config.tokens.truncation.replace('_', ' ')})",
        "Template": f"{template['name']}: {template['text']}",
        "Digest of the template": template["digest"],
    }


def _tuning(config: Config, architecture: Architecture | None, controls: Sequence[Control]) -> dict[str, str]:
    tuning = config.tuning
    rows = {}
    if "lora" in (tuning.control.method, tuning.experimental.method):
        rows = {
            "Rank, alpha": f"{tuning.rank}, {tuning.alpha:g}",
            "Targets": ", ".join(tuning.targets),
            "First tuned layer": str(tuning.first_layer + 1),
        }
        if architecture is not None:
            rows["Parameters of an adapter"] = short_count(adapter_parameters(config, architecture))
    seeds = len(controls) - len({control.task.name for control in controls}) - sum(each.is_twin for each in controls)
    return rows | {
        "Seed": str(config.seed),
        "Models of E": str(tuning.seeds),
        "Specialists": str(len({control.task.name for control in controls})),
        "Further seeds of specialists": str(seeds),
        "Twins": str(sum(control.is_twin for control in controls)),
        "Adam": f"beta {tuning.beta1:g} and {tuning.beta2:g}, weight decay {tuning.weight_decay:g}",
        "Largest gradient norm": f"{tuning.clip:g}",
        "Warm-up": f"{100 * tuning.warmup:g} % of the steps",
    }


def adapter_parameters(config: Config, architecture: Architecture) -> int:
    """Counts the parameters of one adapter."""
    sizes = target_sizes(architecture)
    per_layer = sum(config.tuning.rank * sum(sizes[target]) for target in config.tuning.targets)
    return per_layer * (architecture.layers - config.tuning.first_layer)


def _schedule(config: Config, schedule: Schedule, steps: Sequence[int]) -> dict[str, str]:
    row_length = config.tokens.row_length
    rows = {
        "Tuned": _FORMS[schedule.method],
        "Peak learning rate": f"{schedule.learning_rate:g}, decayed by a cosine",
        "Batch": f"{counted(schedule.batch_rows, 'row')} of {row_length:,} tokens "
        f"({schedule.batch_rows * row_length:,} tokens)",
        "Epochs": f"{schedule.epochs:g}" + (f", at most {schedule.max_steps:,} steps" if schedule.max_steps else ""),
        "Steps": _range(steps),
    }
    return rows if schedule.method == "lora" else rows | {"Optimizer": schedule.optimizer}


def _comparison(config: Config) -> dict[str, str]:
    compare = config.compare
    return {
        "State of a prompt": _POOLS[compare.pool],
        "Estimators": "debiased (headline) and biased (the paper's)",
        "Resamples of the findings": f"{compare.draws:,}",
        "Permutations per cell": f"{compare.permutations:,}" if compare.permutations else "none",
        "Foreign specialists per task": str(compare.mismatched),
        "Prompts scored per task": f"at most {config.tuning.score_prompts:,}"
        if config.tuning.score_prompts
        else "none",
    }


def _machine(environment: Mapping[str, Any]) -> dict[str, str]:
    starts = environment.get("starts") or [environment]
    machines = [
        f"{start['devices']} × {start['device']} ({counted(start['processes'], 'process')})"
        for start in starts
        if {"devices", "device", "processes"} <= start.keys()
    ]
    # An installed package has none; folders of before have no record of it.
    commits = [start["commit"] or "none, an installed package" for start in starts if "commit" in start]
    packages = environment.get("packages", {})
    return {
        "Devices": "; ".join(dict.fromkeys(machines)),
        "Commit of mossa_jax": "; ".join(dict.fromkeys(commits)),
        "mossa_jax, JAX": ", ".join(packages[name] for name in ("mossa_jax", "jax") if name in packages),
    }


def short_count(number: int) -> str:
    """Writes a large number in three digits: "6.74 billion", "441 thousand"."""
    for unit, name in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if number >= unit:
            return f"{number / unit:.3g} {name}" if number < 999.5 * unit else f"{number / unit:,.0f} {name}"
    return str(number)


def _range(values: Sequence[int]) -> str:
    if not values:
        return ""
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
