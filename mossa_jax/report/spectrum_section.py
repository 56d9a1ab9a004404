"""The section of the page on the dimensions that states fill (the paper's figure 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mossa_jax.config import TUNED
from mossa_jax.findings.curves import layer_order
from mossa_jax.report import figure_elements as elements
from mossa_jax.report.analysis_section import AnalysisSection
from mossa_jax.report.inputs import ReportInputs
from mossa_jax.report.palette import MODEL_COLOURS, SCORE_COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMES = {"pretrained": "pre-trained", TUNED: "multi-task (E)", "control": "specialists"}
_COLOURS = MODEL_COLOURS | {"control": SCORE_COLOURS["control"]}


def _sentences(inputs: ReportInputs) -> list[str]:
    table = inputs.analyses["spectrum"]
    last = table[table["layer"].astype(str).str.isdigit()]
    last = last[last["layer"].astype(int) == last["layer"].astype(int).max()]
    means = last.groupby("model")["components_99"].mean()
    parts = [f"{_NAMES[model]} {means[model]:.1f}" for model in _NAMES if model in means]
    return [f"Dimensions for 99 % of the variance in the last block, mean over tasks: {', '.join(parts)}."]


def _draw(inputs: ReportInputs) -> Figure:
    table = inputs.analyses["spectrum"]
    layers = layer_order(inputs.table)
    figure = elements.new_figure(9.0, 3.6)
    panels = {"components_99": "dimensions for 99 % of the variance", "participation_ratio": "participation ratio"}
    for axes, (column, name) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for model, label in _NAMES.items():
            rows = table[table["model"] == model].groupby("layer")[column].mean().reindex(layers)
            axes.plot(np.arange(len(layers)), rows.to_numpy(float), color=_COLOURS[model], lw=1.8, label=label)
        elements.layer_axis(axes, layers, max_ticks=18)
        axes.set_title(name)
        axes.set_ylim(bottom=0)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=3, fontsize=8)
    return figure


SECTION = AnalysisSection(
    name="spectrum",
    title="Dimensions",
    lead="How many dimensions the states of a task's prompts fill at each layer: the components that hold 99 % of the "
    "variance, and the participation ratio.",
    tables=("spectrum",),
    sentences=_sentences,
    figures={"spectrum": _draw},
    captions={"spectrum": "Dimensions of the states over layers, for the base, E and the specialists"},
)
