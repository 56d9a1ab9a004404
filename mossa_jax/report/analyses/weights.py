"""The section of the page on the updates of E and of the specialists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mossa_jax.findings.layer_means import sound_rows
from mossa_jax.findings.weights import find_weights
from mossa_jax.report.analyses import words
from mossa_jax.report.analyses.section import AnalysisSection
from mossa_jax.report.drawing import figure_elements as elements
from mossa_jax.report.inputs import ReportInputs
from mossa_jax.report.palette import GREEN, ORANGE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MEASURES = {
    "cosine": "cosine of the updates",
    "overlap_in": "overlap of what they read",
    "overlap_out": "overlap of what they write to",
}


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


def _draw(inputs: ReportInputs) -> Figure:
    found = _found(inputs)
    figure = elements.new_figure(10.4, 7.0)
    panels = figure.subplots(2, 2)
    layers = found["layers"]
    x = np.arange(len(layers))
    against = {
        "seed": (inputs.palette.ceiling, "two seeds of one specialist"),
        "own": (GREEN, "E and the task's specialist"),
        "other": (ORANGE, "E and a specialist of another cluster"),
    }
    axes = panels[0, 0]
    drawn = [
        words.draw_means(axes, x, found["relative"][name], inputs.palette.scores[name], label)
        for name, label in (("tuned", "E"), ("control", "specialists"))
    ]
    axes.set_title("norm of the update / norm of the base's projections")
    if any(drawn):
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8)
        elements.layer_axis(axes, layers, label=False, max_ticks=18)
    else:
        elements.empty_panel(axes, "No competent task of the mixture has an update.")
    for axes, (measure, title) in zip(panels.flat[1:], _MEASURES.items(), strict=True):
        drawn = [
            words.draw_means(axes, x, found[measure][name], colour, label) for name, (colour, label) in against.items()
        ]
        axes.set_title(title)
        if not any(drawn):
            elements.empty_panel(axes, f"{title}: undefined")
            continue
        if measure == "cosine":
            axes.axhline(0, color="#555555", lw=1.2, ls="--")
        else:
            axes.plot(x, found[measure]["chance"], color="#555555", lw=1.2, ls="--", label="random directions")
            axes.set_ylabel("mean squared cosine of angles")
            axes.set_ylim(bottom=0)
        elements.layer_axis(axes, layers, label=False, max_ticks=18)
    for axes in panels.flat:
        axes.grid(axis="y", color="#dddddd", lw=0.6)
        axes.set_axisbelow(True)
    for axes in panels[1]:
        axes.set_xlabel("block")
    handles, labels = panels[1, 1].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    return figure


def _rows(inputs: ReportInputs) -> list[tuple[str, ...]]:
    """Returns a row per projection: means over layers and competent tasks of the mixture."""
    rows = sound_rows(inputs.analyses["weights"], words.incompetent(inputs))
    columns = (
        "relative_tuned relative_control cosine cosine_other cosine_seed overlap_in chance_in overlap_out chance_out"
    )
    means = rows.groupby("target", sort=False)[columns.split()].mean()
    return [
        (str(target), *("" if not np.isfinite(value) else f"{value:.3f}" for value in values))
        for target, *values in means.itertuples(name=None)
    ]


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
    figures={"weights": _draw},
    captions={
        "weights": "Norm of the updates of E and of the specialists over layers, and the cosine and the overlap of E's "
        "updates with those of own and other specialists"
    },
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
