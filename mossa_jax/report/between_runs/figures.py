"""Figures of a comparison of runs: curves on relative depth, and the differences of all cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mossa_jax.findings.cells import ordered_layers
from mossa_jax.findings.curves import HEADLINE
from mossa_jax.findings.run_tables import CHANGE
from mossa_jax.findings.trust import FDR
from mossa_jax.report.charts.grammar import Axis, Chart, Heat, Line, Panel, View
from mossa_jax.report.charts.parts import layer_axis
from mossa_jax.report.palette import BLUE, GREEN, ORANGE, PURPLE, SKY_BLUE, VERMILLION

if TYPE_CHECKING:
    from mossa_jax.findings.between_runs import Comparison

RUN_COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY_BLUE)
RUN_DASHES = ("solid", "dash", "dot")


def run_style(number: int) -> tuple[str, str]:
    """Returns the colour and the dashes of the n-th run, counted from 0; dashes change when colours are used up."""
    return RUN_COLOURS[number % len(RUN_COLOURS)], RUN_DASHES[number // len(RUN_COLOURS) % len(RUN_DASHES)]


def curves_chart(comparison: Comparison) -> Chart:
    """Builds d_t(l) of all runs on relative depth: median over tasks, and quartiles as bands."""
    curves = comparison.curves
    lines = []
    for number, name in enumerate(comparison.names):
        rows = curves[curves["run"] == name]
        x, y, low, high = (rows[column].to_numpy(float) for column in ("relative_depth", "median", "q1", "q3"))
        colour, dash = run_style(number)
        lines.append(Line(name=name, role=colour, x=x, y=y, low=low, high=high, dash=dash, symbol="circle"))  # type: ignore[arg-type]
    panel = Panel(
        Axis("relative depth (block l of L at l / L)", low=0.0, high=1.02),
        Axis("change of CKA", zero=True),
        tuple(lines),
        empty="No change is defined.",
    )
    title = "Change over relative depth"
    return Chart("curves", title, f"{title}, median and quartiles of each run", (View((panel,)),), curves, width=9.0)


def differences_chart(comparison: Comparison, run: str) -> Chart:
    """Builds the difference of the change from the reference, task by layer; what is not significant is hatched."""
    cells = comparison.cells
    cells = cells[(cells["run"] == run) & (cells["quantity"] == CHANGE) & (cells["estimator"] == HEADLINE)]
    title = f"change of {run} less that of {comparison.names[0]}"
    if cells.empty:
        panel = Panel(Axis(), Axis(), (), empty="No cell is compared.")
        return Chart("differences", title, title, (View((panel,)),), cells, height=1.6)
    tasks, layers, values = difference_matrix(cells, "difference")
    largest = max(float(np.nanmax(np.abs(values), initial=0.0)), 0.02)
    cluster_of = dict(zip(cells["task"], cells["cluster"], strict=True))
    heat = Heat(
        values=values,
        scale="change",
        low=-largest,
        high=largest,
        # Comparisons with NaN are false: what was not tested is not hatched.
        hatched=difference_matrix(cells, "q")[2] > FDR,
        hatched_name=f"not significant (q > {FDR})",
        groups=tuple(str(cluster_of[task]) for task in tasks),
        bar="difference of the change of CKA",
    )
    panel = Panel(layer_axis(layers), Axis(names=tuple(tasks), reverse=True), (heat,))
    width, height = max(7.0, 3.6 + 0.42 * len(layers)), 1.9 + 0.19 * len(tasks)
    return Chart("differences", title, title, (View((panel,)),), cells, width=width, height=height)


def difference_matrix(cells: pd.DataFrame, column: str) -> tuple[list[str], list[str], np.ndarray]:
    """Spreads one column of one run's cells, of one quantity and estimator, out.

    Returns:
      Tasks by cluster and name, layers in network order, and [tasks, layers] float64, NaN where undefined.
    """
    tasks = list(cells.drop_duplicates("task").sort_values(["cluster", "task"])["task"])
    layers = ordered_layers(cells["layer"].astype(str))
    wide = cells.pivot_table(index="task", columns="layer", values=column, dropna=False)
    return tasks, layers, wide.reindex(index=tasks, columns=layers).to_numpy(float)
