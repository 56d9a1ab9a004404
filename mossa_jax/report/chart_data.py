"""What the interactive charts of the page draw, in JSON's own types; `charts.js` reads it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mossa_jax.findings import to_json_types
from mossa_jax.findings.curves import EXPERIMENTALS, REPORTED_ESTIMATORS, clusters_of, layer_order, task_layer_matrix
from mossa_jax.report import palette
from mossa_jax.report.inputs import ReportInputs, scores_by_model

_DIGITS = 4
"""Decimals of a number: what can be read off a chart."""


def chart_data(inputs: ReportInputs) -> dict[str, Any]:
    """Gathers the data of all charts.

    Returns:
      `layers`: names in network order, and `layer_labels`: the same for an axis.
      `tasks`: dicts `name, cluster, held_out, n`.
      `cells[experimental][estimator]`: `cka`, `low` and `high`, each [tasks][layers] with None where undefined.
      `undefined[experimental]`: a list of [task, layer, reason], by index.
      `sections`, `ranking`: from the analysis.
      `training[model]`: `step` and `loss`.
      `scores[model]`: exact match per task.
      `names`, `colours`: how models, scores and sections are named and drawn.
    """
    table = inputs.table
    layers, cluster_of = layer_order(table), clusters_of(table)
    names = list(task_layer_matrix(table, EXPERIMENTALS[0], held_out=None).index)
    names += [task for task in cluster_of if task not in names]
    held_out = set(table.loc[table["held_out"].astype(bool), "task"])
    prompts = table.groupby("task")["n"].max()
    return {
        "layers": layers,
        "layer_labels": [palette.layer_label(layer) for layer in layers],
        "tasks": [
            {
                "name": name,
                "cluster": cluster_of[name],
                "held_out": name in held_out,
                "n": to_json_types(prompts.get(name)),
            }
            for name in names
        ],
        "cells": _cells(table, names),
        "undefined": _undefined_cells(table, names, layers),
        "sections": inputs.analysis["sections"],
        "ranking": inputs.analysis["clusters"]["ranking"],
        "training": _training(inputs.curves),
        "scores": _scores(inputs.scores, names),
        "names": {"models": palette.MODEL_NAMES, "scores": palette.SCORE_NAMES},
        "colours": {
            "models": palette.MODEL_COLOURS,
            "scores": palette.SCORE_COLOURS,
            "sections": palette.SECTION_COLOURS,
            "undefined": palette.UNDEFINED,
        },
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
    cells = cells.drop_duplicates(["experimental", "task", "layer"])
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


def _scores(scores: pd.DataFrame, names: list[str]) -> dict[str, list]:
    """Spreads out exact match over tasks, per model."""
    wide = scores_by_model(scores).reindex(index=names)
    return {model: to_json_types(wide[model].round(_DIGITS)) for model in palette.SCORE_NAMES}
