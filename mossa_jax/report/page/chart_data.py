"""What the interactive charts of the page draw, in JSON's own types; `charts.js` reads it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mossa_jax.findings import to_json_types
from mossa_jax.findings.curves import EXPERIMENTALS, REPORTED_ESTIMATORS, clusters_of, layer_order, task_layer_matrix
from mossa_jax.report import palette
from mossa_jax.report.inputs import ReportInputs, left_out, scores_by_model

_DIGITS = 4
"""Decimals of a number: what can be read off a chart."""


def chart_data(inputs: ReportInputs) -> dict[str, Any]:
    """Gathers the data of all charts.

    Returns:
      `layers`: names in network order, and `layer_labels`: the same for an axis.
      `tasks`: dicts `name, cluster, held_out, n`, and `left_out`: why the findings leave it out, or "".
      `cells[experimental][estimator]`: `cka`, `low` and `high`, each [tasks][layers] with None where undefined.
      `undefined[experimental]`: a list of [task, layer, reason], by index.
      `change[estimator]`: `low`, `high`, `p` and `q` of tuned minus pre-trained, each like a cell; None if not tested.
      `ceiling[estimator]`: one value per layer; None if no seeds of specialists were compared.
      `sections`, `ranking`: from the analysis.
      `specificity[foreign]`: rows `layer, mean, low, high, n_tasks` per foreign control that was compared.
      `training[model]`: `step` and `loss`.
      `scores[metric][model]`: one value per task.
      `names`, `colours`: how models, scores and sections are named and drawn.
    """
    table = inputs.table
    layers, cluster_of = layer_order(table), clusters_of(table)
    names = list(task_layer_matrix(table, EXPERIMENTALS[0], held_out=None).index)
    names += [task for task in cluster_of if task not in names]
    held_out = set(table.loc[table["held_out"].astype(bool), "task"])
    prompts = table.groupby("task")["n"].max()
    reasons = left_out(inputs.analysis)
    return {
        "layers": layers,
        "layer_labels": [palette.layer_label(layer) for layer in layers],
        "tasks": [
            {
                "name": name,
                "cluster": cluster_of[name],
                "held_out": name in held_out,
                "n": to_json_types(prompts.get(name)),
                "left_out": reasons.get(name, ""),
            }
            for name in names
        ],
        "cells": _cells(table, names),
        "undefined": _undefined_cells(table, names, layers),
        "change": _changes(inputs.change, names, layers),
        "ceiling": ceiling_values(inputs.analysis, layers),
        "sections": inputs.analysis["sections"],
        "ranking": inputs.analysis["clusters"]["ranking"],
        "specificity": {
            name: inputs.analysis["specificity"][name]["by_layer"]
            for name in palette.FOREIGN_NAMES
            if inputs.analysis["specificity"][name]["tuned"]["n_tasks"]
        },
        "training": _training(inputs.curves),
        "scores": _scores(inputs.scores, names),
        "names": {
            "models": palette.MODEL_NAMES,
            "scores": palette.SCORE_NAMES,
            "metrics": palette.METRIC_NAMES,
            "foreign": palette.FOREIGN_NAMES,
        },
        "colours": {
            "models": palette.MODEL_COLOURS,
            "scores": palette.SCORE_COLOURS,
            "sections": palette.SECTION_COLOURS,
            "foreign": palette.FOREIGN_COLOURS,
            "undefined": palette.UNDEFINED,
        },
    }


def ceiling_values(analysis: dict[str, Any], layers: list[str]) -> dict[str, list[float | None]] | None:
    """Returns the ceiling at every layer by estimator, None where it was not measured; None without any."""
    if not analysis["ceiling"]["measured"]:
        return None
    values = {}
    for estimator in REPORTED_ESTIMATORS:
        ceiling = analysis["robustness"][estimator]["ceiling"]
        by_layer = dict(zip(ceiling["layers"], ceiling["by_layer"], strict=True))
        values[estimator] = [by_layer.get(layer) for layer in layers]
    return values


def change_matrix(change: pd.DataFrame, column: str, estimator: str, names: list[str], layers: list[str]) -> np.ndarray:
    """Spreads one column of the table of changes out, [tasks, layers] float64; NaN where a cell is absent."""
    rows = change[change["estimator"] == estimator]
    rows = rows.assign(layer=rows["layer"].astype(str), value=pd.to_numeric(rows[column], errors="coerce"))
    wide = rows.pivot_table(index="task", columns="layer", values="value", aggfunc="mean", dropna=False)
    return wide.reindex(index=names, columns=layers).to_numpy(float)


def _changes(
    change: pd.DataFrame | None, names: list[str], layers: list[str]
) -> dict[str, dict[str, list[list[float | None]]]] | None:
    if change is None or change.empty:
        return None
    return {
        estimator: {
            # Small p values are told apart; the ends of an interval are as precise as the cells.
            column: to_json_types(np.round(change_matrix(change, column, estimator, names, layers), digits))
            for column, digits in (("low", _DIGITS), ("high", _DIGITS), ("p", 6), ("q", 6))
        }
        for estimator in REPORTED_ESTIMATORS
    }


def _cells(table: pd.DataFrame, names: list[str]) -> dict[str, dict[str, dict[str, list]]]:
    """Spreads out value and interval of every matched cell."""

    def rows(experimental: str, estimator: str, column: str) -> list:
        matrix = task_layer_matrix(table, experimental, estimator, held_out=None, column=column).reindex(names)
        return to_json_types(np.round(matrix.to_numpy(float), _DIGITS))

    return {
        experimental: {
            estimator: {column: rows(experimental, estimator, column) for column in ("cka", "low", "high")}
            for estimator in REPORTED_ESTIMATORS
        }
        for experimental in EXPERIMENTALS
    }


def _undefined_cells(table: pd.DataFrame, names: list[str], layers: list[str]) -> dict[str, list[list]]:
    """Lists every undefined matched cell once, with its reason."""
    cells = table[(table["undefined"].fillna("") != "") & (table["control"] == table["task"])]
    cells = cells[cells["experimental"].isin(EXPERIMENTALS)].drop_duplicates(["experimental", "task", "layer"])
    task_index = {name: i for i, name in enumerate(names)}
    layer_index = {name: i for i, name in enumerate(layers)}
    undefined: dict[str, list[list]] = {experimental: [] for experimental in EXPERIMENTALS}
    columns = cells[["experimental", "task", "layer", "undefined"]]
    for experimental, task, layer, reason in columns.itertuples(index=False, name=None):
        undefined[experimental].append([task_index[task], layer_index[str(layer)], reason])
    return undefined


def _training(curves: pd.DataFrame) -> dict[str, dict[str, list]]:
    """Splits the training loss by model."""
    return {
        str(model): {
            "step": to_json_types(rows["step"]),
            "loss": to_json_types(rows["loss"].astype(float).round(_DIGITS)),
        }
        for model, rows in curves.sort_values("step").groupby("model", sort=True)
    }


def _scores(scores: pd.DataFrame, names: list[str]) -> dict[str, dict[str, list]]:
    """Spreads scores out over tasks, per metric and model."""
    return {
        metric: {
            model: to_json_types(column.round(_DIGITS))
            for model, column in scores_by_model(scores, metric).reindex(index=names).items()
            if column.notna().any()
        }
        for metric in palette.METRIC_NAMES
        if metric in set(scores["metric"])
    }
