"""Where the time went, for the page: a row a stage, as words and as parts of a bar."""

from __future__ import annotations

import pandas as pd

from mossa_jax.monitoring.goodput import CAUSES
from mossa_jax.monitoring.progress import clock
from mossa_jax.report import palette

_SHOWN = 0.05  # seconds; less is not written as a number


def time_rows(times: pd.DataFrame | None) -> dict | None:
    """What the page says of time.

    Args:
      times: from `mossa_jax.goodput.times`.

    Returns:
      None where nothing was recorded. `kinds`: (name, meaning, colour) of useful time and of the causes that there
      are; `rows`: a stage each and all together last, with `stage`, `attempts`, `wall`, `share` (useful, in percent),
      `cells` (a text a kind) and `bar` (width in percent of the longest, and colour, of each part); `device_hours`,
      `useful_hours`; `outside` (text).
    """
    if times is None or times.empty:
        return None
    causes = [cause for cause in CAUSES if times[cause].sum() >= _SHOWN]
    kinds = ["useful", *causes]
    whole = times[["wall", *kinds]].sum()
    whole = pd.DataFrame([{"stage": "all", "attempts": "", **whole}])
    longest = max(float(times["wall"].max()), 1e-9)
    rows = []
    for row in [*times.to_dict("records"), *whole.to_dict("records")]:
        scale = 100 / (longest if row["stage"] != "all" else max(row["wall"], 1e-9))
        rows.append(
            {
                "stage": row["stage"],
                "attempts": row["attempts"],
                "wall": _text(row["wall"]),
                "share": round(100 * row["useful"] / max(row["wall"], 1e-9)),
                "cells": [_text(row[kind]) for kind in kinds],
                "bar": [(round(scale * row[kind], 2), palette.TIME_COLOURS[kind]) for kind in kinds],
            }
        )
    meanings = {"useful": "steps, tasks, tables and figures"} | CAUSES
    return {
        "kinds": [(kind, meanings[kind], palette.TIME_COLOURS[kind]) for kind in kinds],
        "rows": rows,
        "device_hours": float(times["device_wall"].sum()) / 3600,
        "useful_hours": float(times["device_useful"].sum()) / 3600,
        "outside": _text(times.attrs["outside"], "0 s"),
    }


def _text(seconds: float, nothing: str = "–") -> str:
    if seconds < _SHOWN:
        return nothing
    return f"{seconds:.1f} s" if seconds < 120 else clock(seconds)
