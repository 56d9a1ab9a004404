"""Where the time of a run went: useful work and named losses, stage by stage."""

from __future__ import annotations

import numpy as np

from mossa_jax.monitoring.clock import clock
from mossa_jax.monitoring.goodput import CAUSES
from mossa_jax.report import palette
from mossa_jax.report.charts.grammar import Axis, Bars, Chart, Mark, Panel, View
from mossa_jax.report.charts.parts import lines
from mossa_jax.report.inputs import ReportInputs
from mossa_jax.report.numbers import percent

_MEANINGS = {"useful": "steps, tasks, tables and figures"} | CAUSES

_SHORTEST = 0.05
"""Seconds; causes of less time in all are left out."""


def time_chart(inputs: ReportInputs) -> Chart | None:
    """Builds a stacked bar per stage; None if no time was recorded."""
    times = inputs.times
    if times is None or times.empty:
        return None
    causes = [cause for cause in _MEANINGS if times[cause].sum() >= _SHORTEST]
    if not causes:
        return None
    longest = float(times["wall"].max())
    unit, seconds = ("s", 1.0) if longest < 120 else ("min", 60.0) if longest < 7200 else ("h", 3600.0)
    stages, wall = [str(stage) for stage in times["stage"]], times["wall"].to_numpy(float)
    base = np.zeros(len(times))
    marks: list[Mark] = []
    for cause in causes:
        spent = times[cause].to_numpy(float)
        hover = [
            lines(
                f"{stage}, {cause}: {_duration(part)}",
                f"{percent(part / max(whole, 1e-9))} of the {_duration(whole)} of this stage",
                _MEANINGS[cause],
            )
            for stage, part, whole in zip(stages, spent, wall, strict=True)
        ]
        bars = Bars(
            name=cause,
            role=palette.TIME_COLOURS[cause],
            x=spent / seconds,
            y=np.arange(len(times)),
            base=base / seconds,
            width=0.7,
            hover=hover,
            level=True,
        )
        marks.append(bars)
        base = base + spent
    data = times.melt(id_vars=["stage", "attempts"], value_vars=causes, var_name="cause", value_name="seconds")
    panel = Panel(Axis(f"time ({unit})", low=0), Axis(names=tuple(stages), reverse=True), tuple(marks))
    return Chart(
        name="time",
        title="Where the time went",
        caption="Time of every stage, useful and lost by cause",
        views=(View((panel,)),),
        data=data,
        height=max(2.4, 1.3 + 0.34 * len(stages)),
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else clock(seconds)
