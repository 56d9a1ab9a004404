"""The section of the page on the updates of E and of the specialists."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mossa_jax.findings.layer_means import sound_rows
from mossa_jax.findings.weights import find_weights
from mossa_jax.findings.wording import counted
from mossa_jax.report.analyses import marks, words
from mossa_jax.report.analyses.section import AnalysisSection
from mossa_jax.report.charts.grammar import Axis, Chart, Choice, Mark, Panel, View
from mossa_jax.report.charts.parts import layer_axis, section_spans
from mossa_jax.report.inputs import ReportInputs
from mossa_jax.report.numbers import fixed
from mossa_jax.report.palette import GREEN, ORANGE

_MEASURES = {
    "cosine": "cosine of the updates",
    "overlap_in": "overlap of what they read",
    "overlap_out": "overlap of what they write to",
}
_SIZES = {"tuned": ("tuned", "E"), "control": ("control", "specialists")}
_AGAINST = {
    "seed": ("ceiling", "two seeds of one specialist"),
    "own": (GREEN, "E and the task's specialist"),
    "other": (ORANGE, "E and a specialist of another cluster"),
}
"""What two updates are -> the role and name of their curve."""

_CHANCE = "random directions"
_SIZE_TITLE = "size of the updates"
_ALL = "all"


def _found(inputs: ReportInputs) -> dict[str, Any]:
    seed, draws = words.random_of(inputs)
    return find_weights(inputs.analyses["weights"], words.incompetent(inputs), seed, draws)


def _sentences(inputs: ReportInputs) -> list[str]:
    found = _found(inputs)
    if not found["n_tasks"]:
        return ["No competent task of the mixture has an update to compare."]
    tuned, control = (found["relative"][name].mean for name in ("tuned", "control"))
    sentences = [
        f"E's update is {words.mean(tuned)} of the norm of the base's projections, a specialist's "
        f"{words.mean(control)} (means over layers)."
    ]
    cosine, gain = found["cosine"], found["gain"]
    seeds = cosine["seed"].mean
    scale = f"; two seeds of one specialist reach {words.mean(seeds)}" if np.isfinite(seeds).any() else ""
    sentences.append(
        f"The cosine of E's update with that of the task's own specialist is {words.mean(cosine['own'].mean)}{scale}. "
        f"Own less other specialists: {words.interval(gain['cosine'])} over {words.units(gain['cosine'])} "
        f"({words.p_value(gain['cosine'])})."
    )
    sides = []
    for side, name in (("in", "reads"), ("out", "writes to")):
        overlap = found[f"overlap_{side}"]
        sides.append(
            f"what it {name} {words.mean(overlap['own'].mean)} (random directions {words.mean(overlap['chance'])}; own "
            f"less other {words.interval(gain[f'overlap_{side}'])})"
        )
    sentences.append(f"Mean squared cosine between the subspaces of E and the specialist: {'; '.join(sides)}.")
    return sentences


def _charts(inputs: ReportInputs) -> list[Chart]:
    table, left_out = inputs.analyses["weights"], words.incompetent(inputs)
    targets = [str(target) for target in table["target"].unique()]
    projections = {_ALL: "all projections"} | ({target: target for target in targets} if len(targets) > 1 else {})
    views, rows = [], []
    layers: list[str] = []
    for target in projections:
        own = table if target == _ALL else table[table["target"] == target]
        # The tests of the words are not drawn.
        found = find_weights(own, left_out, draws=1)
        layers = found["layers"]
        units = words.units_of(sound_rows(own, left_out))
        views.append(View(_panels(inputs, found, units), columns=2, choices={"projection": target}))
        rows.append(_data(found).assign(projection=projections[target]))
    chart = Chart(
        name="weights",
        title="What tuning adds to the weights",
        caption="Norm of the updates of E and of the specialists over layers, and the cosine and the overlap of E's "
        "updates with those of own and other specialists",
        views=tuple(views),
        data=pd.concat(rows, ignore_index=True),
        choices={"projection": Choice("Projection", projections)},
        width=marks.panel_width(len(layers), least=5.0),
        height=3.3,
    )
    return [chart]


def _panels(inputs: ReportInputs, found: dict[str, Any], units: str) -> tuple[Panel, ...]:
    layers = found["layers"]
    spans = section_spans(inputs.analysis, layers)
    sizes = [
        marks.mean_curve(layers, found["relative"][name], label, role, units) for name, (role, label) in _SIZES.items()
    ]
    first = Panel(
        layer_axis(layers),
        Axis("norm / norm of the base's projections", low=0.0),
        (*spans, *sizes),
        title=_SIZE_TITLE,
        note=counted(found["n_tasks"], "task"),
        empty="No competent task of the mixture has an update.",
    )
    return first, *(_similarity_panel(found, measure, spans, units) for measure in _MEASURES)


def _similarity_panel(found: dict[str, Any], measure: str, spans: tuple[Mark, ...], units: str) -> Panel:
    """Builds the panel of the cosine, or of one side's overlap, beside what random directions have."""
    layers, signed = found["layers"], measure == "cosine"
    curves = [
        marks.mean_curve(layers, found[measure][name], label, role, units, signed)
        for name, (role, label) in _AGAINST.items()
    ]
    chance = np.zeros(len(layers)) if signed else found[measure]["chance"]
    drawn: list[Mark] = [*spans]
    if any(np.isfinite(np.asarray(curve.y, float)).any() for curve in curves):
        drawn += [marks.curve(layers, chance, _CHANCE, "ink", dash="dash", symbol=""), *curves]
    axis = Axis("cosine") if signed else Axis("mean squared cosine of angles", low=0.0)
    title = _MEASURES[measure]
    return Panel(layer_axis(layers), axis, tuple(drawn), title=title, empty=f"The {title} is undefined.")


def _data(found: dict[str, Any]) -> pd.DataFrame:
    curves = {(_SIZE_TITLE, label): found["relative"][name] for name, (_, label) in _SIZES.items()}
    for measure, title in _MEASURES.items():
        curves |= {(title, label): found[measure][name] for name, (_, label) in _AGAINST.items()}
    tidy = marks.means_table(curves.items(), found["layers"], ["measure", "between"])
    chances = [
        pd.DataFrame({"measure": title, "between": _CHANCE, "layer": found["layers"], "mean": found[measure]["chance"]})
        for measure, title in _MEASURES.items()
        if "chance" in found[measure]
    ]
    return pd.concat([tidy, *chances], ignore_index=True)


def _rows(inputs: ReportInputs) -> list[tuple[str, ...]]:
    """Returns a row per projection: means over layers and competent tasks of the mixture."""
    rows = sound_rows(inputs.analyses["weights"], words.incompetent(inputs))
    columns = (
        "relative_tuned relative_control cosine cosine_other cosine_seed overlap_in chance_in overlap_out chance_out"
    )
    means = rows.groupby("target", sort=False)[columns.split()].mean()
    return [(str(target), *map(fixed, values)) for target, *values in means.itertuples(name=None)]


SECTION = AnalysisSection(
    name="weights",
    title="Weights",
    lead="What tuning adds to the weights, beside what it does to the states: the size of the updates, and how far E's "
    "update coincides with that of each task's specialist. All figures are of the products of an adapter's factors, "
    "which alone act. The scale is from random directions to two seeds of one specialist; a specialist of another "
    "cluster shows what any two updates of this base have in common. Means over clusters of competent tasks, with 95 % "
    "intervals.",
    tables=("weights",),
    sentences=_sentences,
    charts=_charts,
    columns=(
        "projection",
        "norm, E / base",
        "norm, specialist / base",
        "cosine, own",
        "cosine, other",
        "cosine, two seeds",
        "overlap read",
        "by chance",
        "overlap written",
        "by chance",
    ),
    rows=_rows,
)
