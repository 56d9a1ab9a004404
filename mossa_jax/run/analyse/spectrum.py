"""How many dimensions the states of a layer fill (the paper's figure 5)."""

from __future__ import annotations

from typing import Any

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.run.analyse.analysis import Analysis, TaskStates, all_tasks, one_table, own_models
from mossa_jax.run.context import Run
from mossa_jax.similarity.lineup import BASE, OWN, E
from mossa_jax.similarity.measures.spectrum import spectrum
from mossa_jax.tasks import Task

_MODELS = {PRETRAINED: BASE, TUNED: E, "control": OWN}


def _price(run: Run) -> str:
    tasks, arch = run.suite.tasks, run.architecture
    size = min(max(len(run.encoded(task, "test")) for task in tasks), arch.hidden)
    count = len(_MODELS) * (arch.layers + 2) * len(tasks)
    return f"eigenvalues of {count:,} matrices of {size:,} rows at most, dealt over the devices; no further passes"


def _rows(run: Run, task: Task, states: TaskStates | None) -> list[dict[str, Any]]:
    assert states is not None
    kept = states.kept
    # The base, E and the own control come first.
    figures = spectrum(kept.states, kept.valid, models=OWN + 1, rows=kept.rows)
    return [
        {
            "model": model,
            "layer": layer,
            "components_99": figures.components[at, k],
            "participation_ratio": figures.participation_ratio[at, k],
            "n": figures.n,
            "undefined": figures.undefined[at, k],
        }
        for model, at in _MODELS.items()
        for k, layer in enumerate(kept.names)
    ]


ANALYSIS = Analysis(
    name="spectrum",
    models=own_models,
    settings=(),
    table_names=("spectrum",),
    needs_states=True,
    price=_price,
    tasks=all_tasks,
    rows=_rows,
    tables=one_table("spectrum"),
)
