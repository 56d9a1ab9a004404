"""What each similarity is made of, and what is left of it among prompts with the same template or answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.run.analyse.analysis import Analysis, TaskStates, all_tasks, own_models
from mossa_jax.run.analyse.answer_factor import answer_factor, gold_answers
from mossa_jax.run.context import Run
from mossa_jax.similarity.changes import interval_of
from mossa_jax.similarity.estimators import UndefinedSimilarity
from mossa_jax.similarity.factor_sums import WITHIN
from mossa_jax.similarity.factors import Split, split_states
from mossa_jax.similarity.intervals import confidence_interval, jackknife_error
from mossa_jax.similarity.projections import ANSWER, FACTORS, ITEM, REST, TEMPLATE, Factor
from mossa_jax.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

_EXPERIMENTALS = (PRETRAINED, TUNED)
_CHANGE = ("change", "change_low", "change_high", "change_p")
_NONE = dict.fromkeys(_CHANGE, np.nan)
# Matrices of float32 that a device has of one layer at a time.
_MATRICES = 36


def _price(run: Run) -> str:
    prompts = min(max(len(run.encoded(task, "test")) for task in run.suite.tasks), run.config.analyse.factor_prompts)
    room = _MATRICES * 4 * prompts**2 / 2**20
    return (
        f"no further passes; a few programs, about {room:,.0f} MiB per device while a layer of {prompts:,} prompts is "
        f"split, {run.config.analyse.factor_permutations} permutations of each factor"
    )


def _rows(run: Run, task: Task, states: TaskStates | None) -> list[dict[str, Any]]:
    assert states is not None
    settings, kept = run.config.analyse, states.kept
    prompts = states.prompts.first(settings.factor_prompts)
    count, slots = len(prompts), len(kept.valid)
    kind, answer = answer_factor(run.model, gold_answers(run.encoded(task, "test"), prompts.rows))
    factors = {ANSWER: answer, ITEM: Factor(labels=prompts.items)}
    if (prompts.templates >= 0).all():
        factors[TEMPLATE] = Factor(labels=prompts.templates)
    # Labels of rows that pad the array mean nothing.
    factors = {name: _padded(factor, slots) for name, factor in factors.items()}
    try:
        split = split_states(
            kept.states,
            kept.valid & (np.arange(slots) < count),
            factors,
            items=np.pad(prompts.items, (0, slots - count)),
            permutations=settings.factor_permutations,
            seed=run.config.seed,
            # Tasks share few numbers of rows, and a program each; a cut to fewer prompts is the same for all.
            rows=kept.rows if count == len(states.prompts) else count,
        )
    except UndefinedSimilarity as reason:
        return _undefined_rows(kept.names, kind, count, str(reason))
    return [*_factor_rows(split, kept.names, kind), *_within_rows(split, kept.names, kind)]


def _undefined_rows(layers: tuple[str, ...], kind: str, prompts: int, reason: str) -> list[dict[str, Any]]:
    """Returns the rows of a task with too few items."""
    figures = dict.fromkeys(["cka", "low", "high", "p", "share", "chance", "whole", *_CHANGE], np.nan)
    counts = {"levels": 0, "degrees": 0, "n": prompts, "units": 0}
    return [
        {"table": table, "experimental": experimental, "layer": layer, column: name, **figures, **counts,
         "answer": kind, "note": reason, "undefined": reason}
        for table, column, names in (("factors", "factor", FACTORS), ("within", "within", WITHIN))
        for experimental in _EXPERIMENTALS
        for layer in layers
        for name in names
    ]  # fmt: skip


def _padded(factor: Factor, slots: int) -> Factor:
    if factor.labels is not None:
        return Factor(labels=np.pad(factor.labels, (0, slots - len(factor.labels))))
    assert factor.columns is not None
    return Factor(columns=np.pad(factor.columns, ((0, slots - len(factor.columns)), (0, 0))))


def _factor_rows(split: Split, layers: tuple[str, ...], kind: str) -> list[dict[str, Any]]:
    """Returns a row per experimental model, layer and factor."""
    error = jackknife_error(split.part_replicates)  # [P, K, 4]
    low, high, _ = interval_of(split.part, error, split.units - 1)
    changes = _changes(split.part, split.part_replicates, split.units)
    design = split.design
    with np.errstate(divide="ignore", invalid="ignore"):
        share = split.part / split.whole[..., None]
    return [
        {
            "table": "factors",
            "experimental": experimental,
            "layer": layer,
            "factor": name,
            "cka": split.part[i, k, f],
            "low": low[i, k, f],
            "high": high[i, k, f],
            "p": split.p[i, k, f],
            "share": share[i, k, f],
            "chance": split.chance[i, k, f],
            "whole": split.whole[i, k],
            **(_NONE if experimental == PRETRAINED else {key: changes[key][k, f] for key in _CHANGE}),
            "levels": split.n if name == REST else design.levels[name],
            "degrees": design.degrees[name],
            "n": split.n,
            "units": split.units,
            "answer": kind,
            "note": design.notes.get(name, "") or split.within_undefined[0, i, k],
        }
        for i, experimental in enumerate(_EXPERIMENTALS)
        for k, layer in enumerate(layers)
        for f, name in enumerate(FACTORS)
    ]


def _within_rows(split: Split, layers: tuple[str, ...], kind: str) -> list[dict[str, Any]]:
    """Returns a row per experimental model, layer and what rows are centred within."""
    low, high = confidence_interval(split.within, jackknife_error(split.within_replicates), split.units)
    # [P, 4, K] as the parts are, with what rows are centred within in the place of the layer.
    values, replicates = np.moveaxis(split.within, 0, 1), np.moveaxis(split.within_replicates, 0, 1)
    changes = _changes(values, replicates, split.units)
    return [
        {
            "table": "within",
            "experimental": experimental,
            "layer": layer,
            "within": name,
            "cka": split.within[w, i, k],
            "low": low[w, i, k],
            "high": high[w, i, k],
            **(_NONE if experimental == PRETRAINED else {key: changes[key][w, k] for key in _CHANGE}),
            "n": split.n,
            "units": split.units,
            "answer": kind,
            "undefined": split.within_undefined[w, i, k],
        }
        for i, experimental in enumerate(_EXPERIMENTALS)
        for k, layer in enumerate(layers)
        for w, name in enumerate(WITHIN)
    ]


def _changes(values: np.ndarray, replicates: np.ndarray, units: int) -> dict[str, np.ndarray]:
    """Returns the change from the base to E with a paired interval; the first axis is that of the two models."""
    change = values[1] - values[0]
    error = jackknife_error(replicates[1] - replicates[0])
    return dict(zip(_CHANGE, (change, *interval_of(change, error, units - 1)), strict=True))


def _tables(_: Run, parts: pd.DataFrame) -> Mapping[str, pd.DataFrame]:
    first = ["task", "cluster", "held_out", "experimental", "layer"]
    figures = ["cka", "low", "high"]
    tail = [*_CHANGE, "n", "units", "answer"]
    columns = {
        "factors": ["factor", *figures, "p", "share", "chance", "whole", "levels", "degrees", *tail, "note"],
        "within": ["within", *figures, *tail, "undefined"],
    }
    tables = {}
    for name, own in columns.items():
        table = parts.loc[parts["table"] == name, [*first, *own]].reset_index(drop=True)
        counts = {column: "int64" for column in ("levels", "degrees", "n", "units") if column in own}
        tables[name] = table.astype(counts)
    return tables


ANALYSIS = Analysis(
    name="factors",
    models=own_models,
    settings=("factor_permutations", "factor_prompts"),
    table_names=("factors", "within"),
    needs_states=True,
    price=_price,
    tasks=all_tasks,
    rows=_rows,
    tables=_tables,
)
