"""Where the time of a run went, for the page: one row per stage, in words."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from mossa_jax.monitoring.clock import clock
from mossa_jax.monitoring.goodput import CAUSES
from mossa_jax.report import palette

_SHORTEST = 0.05
"""Seconds; a shorter time is not written as a number."""

_NOTHING = "–"


@dataclass(frozen=True)
class TimeRow:
    """The time of one stage, or of all together.

    Attributes:
      stage: its name, `all` for the last row.
      attempts: number of attempts; empty for all stages together.
      wall: its time, as text.
      share: useful share of it, in percent.
      cells: one text per column of the table.
    """

    stage: str
    attempts: int | str
    wall: str
    share: int
    cells: list[str]


@dataclass(frozen=True)
class TimeTable:
    """What the page says about time.

    Attributes:
      columns: (name, meaning, colour) of useful time and of every cause of lost time that occurred.
      rows: one per stage, and one for all together at the end.
      device_hours: wall time times devices.
      useful_hours: the useful part of it.
      outside: the time that belongs to no stage, as text.
    """

    columns: list[tuple[str, str, str]]
    rows: list[TimeRow]
    device_hours: float
    useful_hours: float
    outside: str


def time_table(times: pd.DataFrame | None) -> TimeTable | None:
    """Lays out where the time went.

    Args:
      times: from `mossa_jax.monitoring.goodput.times`.

    Returns:
      The table, or None if nothing was recorded.
    """
    if times is None or times.empty:
        return None
    causes = [cause for cause in CAUSES if times[cause].sum() >= _SHORTEST]
    names = ["useful", *causes]
    total = times[["wall", *names]].sum()
    meanings = {"useful": "steps, tasks, tables and figures"} | CAUSES
    return TimeTable(
        columns=[(name, meanings[name], palette.TIME_COLOURS[name]) for name in names],
        rows=[
            *(_row(row["stage"], row["attempts"], row, names) for _, row in times.iterrows()),
            _row("all", "", total, names),
        ],
        device_hours=float(times["device_wall"].sum()) / 3600,
        useful_hours=float(times["device_useful"].sum()) / 3600,
        outside=_text(times.attrs["outside"], nothing="0 s"),
    )


def _row(stage: str, attempts: int | str, seconds: pd.Series, names: list[str]) -> TimeRow:
    return TimeRow(
        stage=stage,
        attempts=attempts,
        wall=_text(seconds["wall"]),
        share=round(100 * seconds["useful"] / max(seconds["wall"], 1e-9)),
        cells=[_text(seconds[name]) for name in names],
    )


def _text(seconds: float, nothing: str = _NOTHING) -> str:
    if seconds < _SHORTEST:
        return nothing
    return f"{seconds:.1f} s" if seconds < 120 else clock(seconds)
