"""The cards of a run's models: what is recorded for them at export, and their scores once there are some."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
from typing import TYPE_CHECKING, Any

from mossa_jax.files.write import write_text
from mossa_jax.llama.files.card import CARD, model_card
from mossa_jax.run.context import Run
from mossa_jax.run.exported import model_about

if TYPE_CHECKING:
    import pandas as pd

_PACKAGES = ("mossa_jax", "jax", "transformers")


def card_record(run: Run, tasks: Iterable[str]) -> dict[str, Any]:
    """Returns what the card of a model needs beside how it was tuned.

    Args:
      run: the run.
      tasks: names of the tasks that the model is tuned on.

    Returns:
      `revision` of the base; `sources`, task -> `cluster`, `source` and `licence` of its rows; `versions` of packages.
    """
    of_name = {task.name: task for task in run.suite.tasks}
    sources = {
        name: {"cluster": task.cluster, "source": task.source, "licence": task.licence}
        for name, task in ((name, of_name[name]) for name in tasks)
    }
    versions = {name: metadata.version(name) for name in _PACKAGES}
    return {"revision": run.config.revision, "sources": sources, "versions": versions}


def add_scores(run: Run, table: pd.DataFrame) -> None:
    """Writes the scores of all models into their cards; their weights are not touched. The writer alone calls this.

    Args:
      run: the run.
      table: the scores of all tasks.
    """
    scores: dict[str, list[dict[str, Any]]] = {}
    rows_of: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in table.to_dict("records"):
        rows_of.setdefault((row["task"], row["model"]), []).append(row)
    for task in run.suite.tasks:
        for label, name in run.scored_models(task).items():
            # The base has no card; `tuned` and `control` are listed with their names.
            if name is None:
                continue
            for of, model in (("model", label), ("base", "base")):
                scores.setdefault(name, []).extend({**row, "of": of} for row in rows_of.get((task.name, model), []))
    for name, rows in scores.items():
        folder = run.tuned_folder(name)
        text = model_card(model_about(run, name), run.base, is_whole=run.is_whole(name), scores=rows)
        path = folder / CARD
        if not path.exists() or path.read_text() != text:
            write_text(path, text)
