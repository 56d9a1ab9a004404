"""Task by layer: the change, and the similarity of either model."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mossa_jax.findings.curves import EXPERIMENTALS, REPORTED_ESTIMATORS
from mossa_jax.findings.trust import FDR
from mossa_jax.report import palette
from mossa_jax.report.charts.grammar import Axis, Chart, Choice, Heat, Panel, View
from mossa_jax.report.charts.parts import ESTIMATOR, Cells, cells_of, layer_axis
from mossa_jax.report.inputs import ReportInputs

SHOW = Choice("Show", {"change": "tuned − pre-trained", **palette.MODEL_NAMES})


def heatmap_chart(inputs: ReportInputs) -> Chart | None:
    """Builds the heat map of all tasks, those that are held out or left out among them."""
    cells = cells_of(inputs)
    if not cells.tasks:
        return None
    shows = ("change", *EXPERIMENTALS)
    return Chart(
        name="heatmap",
        title="Every task at every layer",
        caption="Change of CKA by task and layer, or the CKA of either model; rows by cluster",
        views=tuple(
            View((_panel(cells, show, estimator),), choices={"show": show, "estimator": estimator})
            for show in shows
            for estimator in REPORTED_ESTIMATORS
        ),
        data=pd.concat(
            [cells.frame(range(len(cells.tasks)), show, name) for show in shows for name in REPORTED_ESTIMATORS],
            ignore_index=True,
        ),
        choices={"show": SHOW, "estimator": ESTIMATOR},
        width=max(7.0, min(16.0, 4.0 + 0.34 * len(cells.layers))),
        height=max(2.8, 1.5 + 0.17 * len(cells.tasks)),
        rows_menu=True,
    )


def _panel(cells: Cells, show: str, estimator: str) -> Panel:
    is_change = show == "change"
    q = cells.tested("q", estimator) if is_change else None
    # Comparisons with NaN are false: what was not tested is not hatched.
    hatched = None if q is None else np.greater(q, FDR)
    heat = Heat(
        values=cells.difference(estimator) if is_change else cells.matrix(show, estimator),
        hover=[cells.about(row) for row in range(len(cells.tasks))],
        cells=cells.texts(show, estimator, about=False),
        scale="change" if is_change else "share",
        hatched=hatched,
        hatched_name=f"not significant (q > {FDR})" if hatched is not None and hatched.any() else "",
        groups=tuple(str(cells.cluster_of[task]) for task in cells.tasks),
        faint_rows=tuple(row for row, task in enumerate(cells.tasks) if task in cells.left_out),
        bar=f"{SHOW.options[show]} CKA ({estimator})",
    )
    names = tuple(cells.label(row) for row in range(len(cells.tasks)))
    return Panel(layer_axis(cells.layers), Axis(names=names, reverse=True), (heat,), title=SHOW.options[show])
