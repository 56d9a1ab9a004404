"""The report page: one offline HTML file with interactive charts, and static figures where there is no script."""

import base64
import io
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
from etils import epath
from PIL import Image
from plotly.offline import get_plotlyjs

from mossa_jax.errors import Refusal
from mossa_jax.files.write import write_text
from mossa_jax.findings import plain, verdicts
from mossa_jax.findings.curves import ESTIMATORS, EXPERIMENTALS, clusters_of, layer_order, task_layer_matrix
from mossa_jax.report import palette
from mossa_jax.report.time_spent import time_rows

FIGURES = {
    "layers": "Box plots of CKA per layer over tasks, pre-trained beside tuned",
    "clusters": "Box plots of CKA per layer, one panel per cluster",
    "held_out": "Box plots of CKA per layer over the tasks held out of the mixture",
    "heatmap": "Heat maps of CKA, a row per task and a column per layer: pre-trained, tuned, difference",
    "estimators": "Biased against debiased CKA, a point per task and layer",
    "training": "Training loss per answer token against step",
    "scores": "Exact match per task of base, multi-task model and specialist",
}
SPECIAL = ("command", "warnings", "versions")


def _numbers(frame: pd.DataFrame) -> list:
    """Rows of a frame as lists, rounded to what can be read off a chart, NaN as None."""
    return plain(np.round(frame.to_numpy(float), 4))


def chart_data(table: pd.DataFrame, found: dict, scores: pd.DataFrame, curves: pd.DataFrame) -> dict:
    """What the interactive charts draw, in JSON's own types.

    Returns:
        `layers`, `tasks` (name, cluster, held_out, n), `cells[experimental][estimator]` with `cka`, `low`,
        `high` as [tasks][layers], `undefined[experimental]` (a list of [task, layer, reason] by index),
        `sections`, `ranking`, `training`, `scores`, `colours`.
    """
    layers, of = layer_order(table), clusters_of(table)
    names = list(task_layer_matrix(table, EXPERIMENTALS[0], held_out=None).index)
    names += [task for task in of if task not in names]
    held = set(table.loc[table["held_out"].astype(bool), "task"])
    prompts = table.groupby("task")["n"].max()
    cells = {
        experimental: {
            estimator: {
                value: _numbers(task_layer_matrix(table, experimental, estimator, None, value=value).reindex(names))
                for value in ("cka", "low", "high")
            }
            for estimator in ESTIMATORS
        }
        for experimental in EXPERIMENTALS
    }
    gone = table[(table["undefined"].fillna("") != "") & (table["control"] == table["task"])]
    gone = gone.drop_duplicates(["experimental", "task", "layer"])
    row, column = {name: i for i, name in enumerate(names)}, {name: i for i, name in enumerate(layers)}
    undefined = {experimental: [] for experimental in EXPERIMENTALS}
    for item in gone.itertuples():
        undefined[item.experimental].append([row[item.task], column[str(item.layer)], item.undefined])
    training = {
        model: {"step": plain(rows["step"]), "loss": plain(rows["loss"].astype(float).round(4))}
        for model, rows in curves.sort_values("step").groupby("model", sort=True)
    }
    wide = scores.pivot_table(index="task", columns="model", values="exact_match", aggfunc="mean")
    wide = wide.reindex(index=names, columns=list(palette.SCORE_NAMES)).astype(float)
    return {
        "layers": layers,
        "tasks": [
            {"name": name, "cluster": of[name], "held_out": name in held, "n": plain(prompts.get(name))}
            for name in names
        ],
        "cells": cells,
        "undefined": undefined,
        "sections": found["sections"],
        "ranking": found["clusters"]["ranking"],
        "training": training,
        "scores": {model: plain(wide[model].round(4)) for model in wide.columns},
        "colours": {
            "models": palette.MODEL_COLOURS,
            "scores": palette.SCORE_COLOURS,
            "sections": palette.SECTION_COLOURS,
            "undefined": palette.UNDEFINED,
        },
    }


def _embedded(figure: epath.Path) -> str:
    """A PNG as a data URI, with a palette of 96 colours: a third of the bytes, no visible difference."""
    try:
        with Image.open(io.BytesIO(figure.read_bytes())) as image:
            small = image.convert("RGB").quantize(96, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    except FileNotFoundError as error:
        raise Refusal(3, f"figure {figure} is missing; write the figures before the page") from error
    data = io.BytesIO()
    small.save(data, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode("ascii")


def _score_rows(scores: pd.DataFrame, tasks: pd.DataFrame) -> list[dict]:
    """One row per task for the table of data and scores."""
    wide = scores.pivot_table(index="task", columns="model", values="exact_match", aggfunc="mean")
    wide = wide.reindex(columns=list(palette.SCORE_NAMES)).astype(float)
    rows = tasks.sort_values(["cluster", "task"]).to_dict("records")
    blank = dict.fromkeys(palette.SCORE_NAMES)
    return plain([row | (dict(wide.loc[row["task"]]) if row["task"] in wide.index else blank) for row in rows])


def _parity_data(parity: pd.DataFrame | str) -> dict:
    """What the page says of the comparison with transformers: a reason, or a row per layer and the worst of them."""
    if isinstance(parity, str):
        return {"reason": parity}
    rows = parity.assign(relative=parity["max_abs_difference"] / parity["largest"])
    worst = rows.loc[rows["relative"].fillna(np.inf).idxmax()]  # what is not finite is no agreement
    return plain({"reason": "", "rows": rows.to_dict("records"), "worst": worst.to_dict()})


def write_page(
    path: epath.PathLike,
    table: pd.DataFrame,
    found: dict,
    scores: pd.DataFrame,
    curves: pd.DataFrame,
    tasks: pd.DataFrame,
    parity: pd.DataFrame | str,
    about: dict,
    figures_folder: epath.PathLike,
    times: pd.DataFrame | None = None,
) -> None:
    """Write the report page, whole or not at all.

    Args:
        path: The HTML file.
        table: The tidy results table.
        found: From `mossa_jax.findings.find`.
        scores: Columns `task, cluster, held_out, model, exact_match, n`.
        curves: Columns `model, step, loss`.
        tasks: Columns `task, cluster, held_out, train_rows, test_rows, truncated_rows, truncated_prompts, steps`.
        parity: Columns `layer, max_abs_difference, largest` (`mossa_jax.states.parity`), or why there are none.
        about: What the run was: strings and numbers shown as they are under their key; `dtype` is named beside the
            parity, `command` (string), `warnings` (list of strings) and `versions` (dict) have their own places.
        figures_folder: Where `write_figures` put the PNG files.
        times: From `mossa_jax.goodput.times`.

    Raises:
        Refusal: Code 3, when a figure is missing.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    about = plain(about)
    page = environment.get_template("page.html.j2").render(
        data=chart_data(table, found, scores, curves),
        found=found,
        rows=_score_rows(scores, tasks),
        facts={key: value for key, value in about.items() if key not in SPECIAL},
        command=about.get("command") or "",
        warnings=about.get("warnings") or [],
        versions=about.get("versions") or {},
        images={name: _embedded(epath.Path(figures_folder) / f"{name}.png") for name in FIGURES},
        captions=FIGURES,
        parity=_parity_data(parity),
        time=time_rows(times),
        rules=verdicts.RULES,
        score_names=palette.SCORE_NAMES,
        plotly=get_plotlyjs(),
    )
    write_text(path, page)
