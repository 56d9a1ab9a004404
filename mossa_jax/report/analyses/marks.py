"""Marks, axes and tables that the charts of several analyses share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from mossa_jax.findings.layer_means import LayerMeans
from mossa_jax.report.charts.grammar import Line, Values
from mossa_jax.report.charts.parts import lines
from mossa_jax.report.numbers import NONE, between, fixed

_MOST_SYMBOLS = 17
"""With more layers than this, points would hide their line."""

# From the first layer to the last: all of them can be seen on a white and on a dark ground.
_DEPTHS = ("#7E57C2", "#3F7FBF", "#1FA187", "#6A9F2E")


def value_text(name: str, numbers: Sequence[float | None], units: str = "", signed: bool = False) -> str:
    """Says a value with its interval and what it is a mean over.

    Args:
      name: what is measured.
      numbers: value, lower and upper end; None or NaN where undefined.
      units: "9 clusters", for example.
      signed: whether values carry a sign.
    """
    value, low, high = numbers
    ends = between(low, high, signed=signed)
    return lines(f"{name}: {fixed(value, signed=signed)}", "" if ends == NONE else f"95 % {ends}", units)


def curve(
    layers: Sequence[str],
    values: Values,
    name: str,
    role: str,
    low: Values = (),
    high: Values = (),
    units: str = "",
    signed: bool = False,
    dash: Literal["solid", "dash", "dot"] = "solid",
    symbol: str = "circle",
    places: Sequence[float] = (),
) -> Line:
    """Builds a line over layers with its band.

    Args:
      layers: K names.
      values: [K], NaN where undefined.
      name: in the legend.
      role: of its colour.
      low: [K] lower ends of the band; empty without a band.
      high: [K] upper ends.
      units: what each value is a mean over, for the pointer: "9 clusters".
      signed: whether values carry a sign.
      dash: of the line.
      symbol: of its points; left out where layers are many.
      places: of the layers; 0, 1, ... unless given.
    """
    figures = np.asarray(values, float)
    ends = [np.asarray(each, float) if len(each) else np.full(len(figures), np.nan) for each in (low, high)]
    hover = [
        lines(f"layer {layer}", value_text(name, numbers, units, signed))
        for layer, *numbers in zip(layers, figures, *ends, strict=True)
    ]
    has_band = any(np.isfinite(each).any() for each in ends)
    return Line(
        name=name,
        role=role,
        x=list(places) or range(len(layers)),
        y=figures,
        low=ends[0] if has_band else (),
        high=ends[1] if has_band else (),
        dash=dash,
        symbol=symbol if len(layers) <= _MOST_SYMBOLS else "",
        hover=hover,
    )


def mean_curve(
    layers: Sequence[str],
    means: LayerMeans,
    name: str,
    role: str,
    units: str = "",
    signed: bool = False,
    dash: Literal["solid", "dash", "dot"] = "solid",
    symbol: str = "circle",
) -> Line:
    """Builds the line of means over units with its band; the arguments are those of `curve`."""
    return curve(layers, means.mean, name, role, means.low, means.high, units, signed, dash, symbol)


def means_table(
    curves: Iterable[tuple[tuple[str, ...], LayerMeans]], layers: Sequence[str], columns: Sequence[str]
) -> pd.DataFrame:
    """Lays curves out as tidy rows: the names of a curve in `columns`, then `layer, mean, low, high`."""
    parts = []
    for names, means in curves:
        numbers = pd.DataFrame({"layer": list(layers), "mean": means.mean, "low": means.low, "high": means.high})
        parts.append(
            pd.DataFrame({column: name for column, name in zip(columns, names, strict=True)}, numbers.index).join(
                numbers
            )
        )
    if not parts:
        return pd.DataFrame(columns=[*columns, "layer", "mean", "low", "high"])
    return pd.concat(parts, ignore_index=True)


def panel_width(layers: int, least: float = 4.0, most: float = 9.0) -> float:
    """Returns the width of a panel over layers, in inches."""
    return max(least, min(most, 1.6 + 0.2 * layers))


def depth_colours(count: int) -> list[str]:
    """Returns a colour for each of `count` layers, from dark to bright."""
    return _between_colours(_DEPTHS, count)


def blend(first: str, last: str, count: int) -> list[str]:
    """Returns `count` colours from one to another."""
    return _between_colours((first, last), count)


def _between_colours(stops: Sequence[str], count: int) -> list[str]:
    channels = np.array([[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in stops], float).T
    places = np.linspace(0, len(stops) - 1, max(count, 1))[:count]
    values = np.stack([np.interp(places, np.arange(len(stops)), channel) for channel in channels], axis=1)
    return ["#" + "".join(f"{round(value):02x}" for value in row) for row in values.tolist()]
