"""Several run folders beside one another: what `mossa runs` shows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mossa_jax.config import describe_fields, kinds
from mossa_jax.existing.runs import Run
from mossa_jax.files.names import digest
from mossa_jax.findings.between_runs import compare_runs
from mossa_jax.findings.run_tables import RunTables
from mossa_jax.report.between_runs.inputs import RunFacts, RunsInputs

if TYPE_CHECKING:
    import pandas as pd

FREE = (*kinds.FREE, "tuning.slots", "tuning.remat")
"""Fields of the configuration that no result depends on, as far as rounding goes."""


def compare_folders(folders: Sequence[str], paired: bool = False) -> RunsInputs:
    """Opens run folders and compares each with the first.

    Args:
      folders: at least two run folders, or variants of them; one may stand there twice.
      paired: whether to run the models again where two runs have the same test prompts, so that intervals of cells
        leave out what the rows have in common.

    Raises:
      Refusal: 3 for what is no finished run; with `paired`, for models or rows that are no longer there.
    """
    runs = [Run(folder) for folder in folders]
    names = _names(runs)
    tables = [_tables(run, name) for run, name in zip(runs, names, strict=True)]
    facts = [_facts(run, each) for run, each in zip(runs, tables, strict=True)]
    command = " ".join(["mossa runs", *map(str, folders)])
    errors = {}
    if paired:
        command += " --paired"
        pairs = zip(runs[1:], tables[1:], strict=True)
        errors = {each.name: _paired_errors(runs[0], tables[0], run, each) for run, each in pairs}
    return RunsInputs(facts, compare_runs(tables, FREE, errors), command)


def _paired_errors(reference: Run, first: RunTables, run: Run, second: RunTables) -> pd.DataFrame | None:
    """Returns the errors of differences over the rows that two runs share; None where no rows can be paired."""
    tasks = [task for task, prompts in first.prompts.items() if second.prompts.get(task) == prompts]
    both = ((reference, first), (run, second))
    bases = {(each.config.base, each.config.revision, len(tables.blocks)) for each, tables in both}
    keeps_rows = all(each.config.compare.pool != "all" for each, _ in both)
    is_same = reference.page == run.page
    if not tasks or len(bases) > 1 or not keeps_rows or is_same:
        return None
    from mossa_jax.existing.paired_rows import paired_rows

    return paired_rows(reference.opened_models, run.opened_models, tasks)


def _names(runs: Sequence[Run]) -> list[str]:
    """Names runs by the ends of their paths, as short as they stay different; one that repeats gets a number."""
    parts = [(*run.folder.parts, *([run.variant_name] if run.variant_name else [])) for run in runs]
    places = set(parts)
    length = 1
    while len({each[-length:] for each in places}) < len(places):
        length += 1
    seen: Counter[str] = Counter()
    names = []
    for each in parts:
        name = "/".join(each[-length:])
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return names


def _tables(run: Run, name: str) -> RunTables:
    return RunTables(
        name=name,
        table=run.raw_table("cka"),
        change=run.raw_table("change") if "change" in run.tables else None,
        analysis=run.analysis,
        settings=settings_of(run),
        prompts={task: _prompts_digest(run, record["test"]) for task, record in run.data["tasks"].items()},
    )


def settings_of(run: Run) -> dict[str, Any]:
    """Returns every field of a run's configuration by its dotted name, in the order of the reference."""
    record = json.loads(json.dumps(asdict(run.config)))
    settings = {}
    for entry in describe_fields():
        value: Any = record
        for part in entry.name.split("."):
            value = value[part]
        settings[entry.name] = value
    return settings


def _prompts_digest(run: Run, test: dict[str, Any]) -> str:
    """Identifies the test prompts of a task as the run read them."""
    if "digest" in test:
        return str(test["digest"])
    config = run.config
    # All rows of a split are the same prompts in whatever order they were drawn.
    is_drawn = config.tasks.test_order == "sample" and test["rows"] >= config.tasks.max_test
    tokens = (run.data["template"]["digest"], config.tokens.max_tokens, config.tokens.truncation)
    return digest([test["fingerprint"], test["rows"], test.get("distinct"), config.seed if is_drawn else None, *tokens])


def _facts(run: Run, tables: RunTables) -> RunFacts:
    held_out, incompetent = tables.held_out, tables.incompetent
    return RunFacts(
        name=tables.name,
        folder=str(run.page.parent),
        base=run.config.base,
        layers=len(tables.blocks),
        tasks={
            task: ("held out" if task in held_out else "mixture") + (", left out" if task in incompetent else "")
            for task in run.data["tasks"]
        },
        settings=tables.settings,
        versions={**run.environment.get("packages", {}), "python": run.environment.get("python", "")},
        findings=tables.analysis["findings"],
        scores=run.raw_table("scores") if "scores" in run.tables else None,
    )
