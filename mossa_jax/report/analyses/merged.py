"""The section of the page on the mean of the specialists: is E more than that, and where?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.findings.curves import HEADLINE
from mossa_jax.findings.merged import CURVES, find_merged
from mossa_jax.findings.wording import counted
from mossa_jax.report.analyses import marks, words
from mossa_jax.report.analyses.section import AnalysisSection
from mossa_jax.report.charts.grammar import Axis, Chart, Mark, Panel, Points, Rule, View
from mossa_jax.report.charts.parts import cka_axis, layer_axis, lines, section_spans
from mossa_jax.report.inputs import ReportInputs
from mossa_jax.report.numbers import fixed
from mossa_jax.report.palette import PURPLE

_CURVES = {"tuned": (TUNED, "E"), "cka": (PURPLE, "mean of the specialists"), "pretrained": (PRETRAINED, "base")}
"""Column that a curve is drawn from -> its role and name."""

_POINTS = {"tuned": _CURVES["tuned"], "merged": _CURVES["cka"], "base": _CURVES["pretrained"]}
"""Model, as in the table of information -> the same."""


def _found(inputs: ReportInputs) -> dict[str, Any]:
    seed, draws = words.random_of(inputs)
    return _compare(inputs, seed, draws)


def _compare(inputs: ReportInputs, seed: int = 0, draws: int = 1) -> dict[str, Any]:
    """Compares E with the mean of the specialists; one draw is enough where no test is shown."""
    tables = inputs.analyses
    left_out = words.incompetent(inputs)
    return find_merged(tables["merged"], tables.get("merged_scores"), inputs.scores, left_out, seed, draws)


def _sentences(inputs: ReportInputs) -> list[str]:
    found = _found(inputs)
    if not found["n_tasks"]:
        return ["No competent task of the mixture has the mean of the specialists compared."]
    upper, half = found["upper"], found["half"]
    gap = upper["difference"]
    cka = {name: words.interval(upper[name], signed=False) for name in (*CURVES.values(), "cka_tuned")}
    sentences = [
        f"In layers {half[0]} to {half[-1]} (upper half), the mean of the specialists has CKA {cka['cka']} with a "
        f"task's own specialist, E {cka['tuned']} and the base {cka['pretrained']}. E less the mean: "
        f"{words.interval(gap)} over {words.units(gap)} ({words.p_value(gap)}).",
        f"{_where(found)} The CKA of E with the mean itself is {cka['cka_tuned']} in the upper half.",
    ]
    size, cosine = (found["means"][f"update_{name}_tuned"].mean for name in ("size", "cosine"))
    if np.isfinite(size).any():
        sentences.append(
            f"The mean's update is {words.mean(size, 2)} of the size of E's, and their cosine is "
            f"{words.mean(cosine, 2)} (means over blocks)."
        )
    scored = found["scored"]
    if scored["merged"]["n_tasks"]:
        values = ", ".join(
            f"{name} {words.interval(scored[model], 2, signed=False)}"
            for model, name in (("base", "base"), ("merged", "mean"), ("tuned", "E"), ("control", "specialists"))
        )
        sentences.append(f"Information that they use, in nats per prompt: {values}.")
    return sentences


def _where(found: dict[str, Any]) -> str:
    """Says in which layers E and the mean differ."""
    if found["apart_from"]:
        return f"E is nearer to the specialists than their mean from layer {found['apart_from']} on."
    if found["upper"]["difference"]["high"] < 0:
        return "Their mean is nearer to the specialists than E there."
    return "There is no layer from which on E is nearer to the specialists than their mean."


def _charts(inputs: ReportInputs) -> list[Chart]:
    found = _compare(inputs)
    layers, means = found["layers"], found["means"]
    spans = section_spans(inputs.analysis, layers)
    units = words.units(found["upper"]["difference"])
    curves = [marks.mean_curve(layers, means[column], name, role, units) for column, (role, name) in _CURVES.items()]
    gap = marks.mean_curve(layers, means["difference"], "E less the mean", TUNED, units, signed=True)
    cka = cka_axis(f"CKA with the task's specialist ({HEADLINE})", np.array([curve.y for curve in curves]))
    panels = (
        Panel(
            layer_axis(layers),
            cka,
            (*spans, *curves),
            title="Nearness to the specialists",
            note=counted(found["n_tasks"], "task"),
            empty="No competent task of the mixture was compared.",
        ),
        Panel(
            layer_axis(layers),
            Axis("difference of CKA", zero=True),
            (*spans, gap),
            title="E less the mean of the specialists",
            empty="The difference is undefined.",
        ),
        _information_panel(found["information"]),
    )
    named = {(name,): means[column] for column, (_, name) in _CURVES.items()}
    curve_rows = marks.means_table((named | {("E less the mean",): means["difference"]}).items(), layers, ["curve"])
    chart = Chart(
        name="merged",
        title="The mean of the specialists beside E",
        caption="CKA of E, of the mean of the specialists and of the base with each task's specialist over layers, "
        "their difference, and the information that each uses",
        views=(View(panels, columns=3),),
        data=pd.concat([curve_rows, _information_rows(found["information"])], ignore_index=True),
        width=marks.panel_width(len(layers)),
        height=4.0,
    )
    return [chart]


def _information_panel(rows: pd.DataFrame) -> Panel:
    """Builds the information of each model over that of the task's specialist, a point per task."""
    unit = "nats per prompt"
    drawn: list[Mark] = [Rule(name="as much as the specialist", axis="diagonal", dash="dash")]
    drawn += [_points(rows, model, role, name) for model, (role, name) in _POINTS.items()]
    has_scores = bool(len(rows)) and bool(np.isfinite(rows["merged"].to_numpy(float)).any())
    return Panel(
        Axis(f"information of the specialist ({unit})", zero=True),
        Axis(f"information ({unit})", zero=True),
        tuple(drawn) if has_scores else (),
        title="What they know of the answers",
        empty="No answers were scored.",
    )


def _points(rows: pd.DataFrame, model: str, role: str, name: str) -> Points:
    columns: Sequence[Any] = [rows[column] for column in ("task", "cluster", model, "control")]
    hover = [
        lines(str(task), str(cluster), f"{name}: {fixed(value, 2)} nats per prompt", f"specialist: {fixed(own, 2)}")
        for task, cluster, value, own in zip(*columns, strict=True)
    ]
    x, y = (rows[column].to_numpy(float) for column in ("control", model))
    return Points(name=name, role=role, x=x, y=y, hover=hover, opacity=0.85)


def _information_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns the points as tidy rows."""
    models = {**{model: name for model, (_, name) in _POINTS.items()}, "control": "specialist"}
    tidy = rows.melt(["task", "cluster"], list(models), "model", "mean")
    return tidy.assign(curve="information, " + tidy["model"].map(models).astype(str)).drop(columns="model")


SECTION = AnalysisSection(
    name="merged",
    title="The mean of the specialists",
    lead="A model that nobody trained: the base with the mean of the updates of all specialists of the mixture. If E "
    "were just that mean, the two would be equally near to each specialist and know the answers equally well. Means "
    "over clusters of competent tasks, with 95 % intervals; one point per task and model on the right.",
    tables=("merged",),
    sentences=_sentences,
    charts=_charts,
)
