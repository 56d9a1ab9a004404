"""Static figures of a comparison of runs: curves on relative depth, and the differences of all cells."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mossa_jax.findings.cells import ordered_layers
from mossa_jax.findings.curves import HEADLINE
from mossa_jax.findings.run_tables import CHANGE
from mossa_jax.findings.trust import FDR
from mossa_jax.report.drawing import figure_elements as elements
from mossa_jax.report.drawing.glyphs import say_missing
from mossa_jax.report.palette import BLUE, GREEN, ORANGE, PURPLE, SKY_BLUE, UNDEFINED, VERMILLION, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mossa_jax.findings.between_runs import Comparison

RUN_COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY_BLUE)
RUN_DASHES = ("solid", "dash", "dot", "dashdot")
_STYLES = dict(zip(RUN_DASHES, ("-", "--", ":", "-."), strict=True))


def run_style(number: int) -> tuple[str, str]:
    """Returns the colour and the dashes of the n-th run, counted from 0; dashes change when colours are used up."""
    return RUN_COLOURS[number % len(RUN_COLOURS)], RUN_DASHES[number // len(RUN_COLOURS) % len(RUN_DASHES)]


def draw_curves(comparison: Comparison) -> Figure:
    """Draws d_t(l) of all runs on relative depth: median over tasks, and quartiles as bands."""
    figure = elements.new_figure(9.0, 4.2)
    axes = figure.subplots()
    curves = comparison.curves
    if not curves["median"].notna().any():
        elements.empty_panel(axes, "No change is defined.")
        return figure
    handles = []
    for number, name in enumerate(comparison.names):
        rows = curves[curves["run"] == name]
        colour, dashes = run_style(number)
        axes.fill_between(rows["relative_depth"], rows["q1"], rows["q3"], color=colour, alpha=0.12, lw=0)
        handles += axes.plot(
            rows["relative_depth"],
            rows["median"],
            color=colour,
            ls=_STYLES[dashes],
            marker="o",
            ms=3,
            label=shorten(name),
        )
    axes.axhline(0, color="#888888", lw=1)
    axes.set(xlim=(0, 1.02), xlabel="relative depth (block l of L at l / L)", ylabel="change of CKA")
    axes.grid(axis="y", color="#dddddd", lw=0.6)
    # Named one by one: matplotlib leaves labels that begin with an underscore out.
    figure.legend(handles=handles, loc="outside upper right", ncols=4, fontsize=8)
    return figure


def draw_differences(comparison: Comparison, run: str) -> Figure:
    """Draws the difference of the change from the reference, task by layer; a dot marks q at most 5 %."""
    cells = comparison.cells
    cells = cells[(cells["run"] == run) & (cells["quantity"] == CHANGE) & (cells["estimator"] == HEADLINE)]
    if cells.empty:
        figure = elements.new_figure(8.0, 1.6)
        elements.empty_panel(figure.subplots(), f"{shorten(run)}: no cell is compared.")
        return figure
    tasks, layers, values = difference_matrix(cells, "difference")
    figure = elements.new_figure(max(7.0, 3.6 + 0.42 * len(layers)), 1.5 + 0.19 * len(tasks))
    axes = figure.subplots()
    largest = max(float(np.nanmax(np.abs(values), initial=0.0)), 0.02)
    axes.patch.set(facecolor=UNDEFINED, hatch="////", edgecolor="white")
    image = axes.imshow(np.ma.masked_invalid(values), aspect="auto", cmap="PuOr_r", vmin=-largest, vmax=largest)
    at = np.argwhere(difference_matrix(cells, "q")[2] <= FDR)
    axes.scatter(at[:, 1], at[:, 0], s=8, color="black", lw=0)
    elements.layer_axis(axes, layers)
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.set_yticks(range(len(tasks)), [shorten(task, 48) for task in tasks], fontsize=7)
    axes.set_title(f"change of {shorten(run)} less that of {shorten(comparison.names[0])}")
    figure.colorbar(image, ax=axes, shrink=0.8)
    return figure


def difference_matrix(cells: pd.DataFrame, column: str) -> tuple[list[str], list[str], np.ndarray]:
    """Spreads one column of one run's cells, of one quantity and estimator, out.

    Returns:
      Tasks by cluster and name, layers in network order, and [tasks, layers] float64, NaN where undefined.
    """
    tasks = list(cells.drop_duplicates("task").sort_values(["cluster", "task"])["task"])
    layers = ordered_layers(cells["layer"].astype(str))
    wide = cells.pivot_table(index="task", columns="layer", values=column, dropna=False)
    return tasks, layers, wide.reindex(index=tasks, columns=layers).to_numpy(float)


def picture(figure: Figure) -> bytes:
    """Returns a figure as PNG, and says which characters no font here has."""
    buffer = io.BytesIO()
    say_missing(elements.settle(figure))
    with elements.figure_style():
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
