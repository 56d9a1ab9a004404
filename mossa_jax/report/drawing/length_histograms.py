"""How long the training examples of each task are: one histogram per task, under the name of its cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mossa_jax.report.drawing.style import new_figure
from mossa_jax.report.palette import BLUE, UNDEFINED, VERMILLION, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BINS = 72

# Height of a peak, in distances between two lines.
_HEIGHT = 0.85

_MIXTURE_COLOUR, _HELD_OUT_COLOUR, _LIMIT_COLOUR = VERMILLION, UNDEFINED, BLUE


def draw_lengths(tasks: pd.DataFrame, lengths: Mapping[str, np.ndarray], max_tokens: int) -> Figure:
    """Draws a histogram per task on a logarithmic axis of tokens, each scaled to its own peak.

    Heights are square roots, so that the examples cut at `max_tokens`, all in one bin, do not flatten the rest.

    Args:
      tasks: columns `task, cluster, held_out, train, truncated`.
      lengths: task -> tokens of each of its training examples, after cutting.
      max_tokens: where examples are cut; drawn as a line.
    """
    from matplotlib.patches import Patch

    groups = list(tasks.groupby("cluster", sort=False))
    n_lines = len(tasks) + len(groups)
    figure = new_figure(9.5, 1.3 + 0.2 * max(n_lines, 4))
    axes = figure.subplots()
    shortest = max(1, min(int(values.min()) for values in lengths.values()))
    edges = np.unique(np.round(np.geomspace(shortest, max_tokens + 1, _BINS + 1))).astype(int)
    line = 0
    for cluster, rows in groups:
        _margin_text(axes, -0.01, line, shorten(str(cluster)), fontsize=8, fontweight="bold")
        line += 1
        for row in rows.to_dict("records"):
            colour = _HELD_OUT_COLOUR if row["held_out"] else _MIXTURE_COLOUR
            _histogram(axes, line, lengths[row["task"]], edges, colour)
            _margin_text(axes, -0.01, line, shorten(row["task"], 44))
            _margin_text(axes, 1.01, line, f"{row['train']:,}")
            _margin_text(axes, 1.08, line, _share_cut(row["truncated"]))
            line += 1
    axes.axvline(max_tokens, color=_LIMIT_COLOUR, lw=1, ls="--", zorder=n_lines + 2)
    axes.text(
        max_tokens,
        1.0,
        f"max_tokens {max_tokens}",
        transform=axes.get_xaxis_transform(),
        ha="right",
        va="bottom",
        fontsize=8,
        color=_LIMIT_COLOUR,
    )
    axes.text(1.01, 1.0, "rows", transform=axes.transAxes, ha="left", va="bottom", fontsize=7)
    _token_axis(axes, edges, max_tokens)
    axes.set_ylim(n_lines - 0.3, -1.2)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_title("Length of the training examples", pad=16)
    handles = [Patch(color=_MIXTURE_COLOUR, label="in the mixture for E")]
    if tasks["held_out"].any():
        handles.append(Patch(color=_HELD_OUT_COLOUR, label="held out"))
    figure.legend(handles=handles, loc="outside lower right", ncols=2, fontsize=8)
    return figure


def _token_axis(axes: Axes, edges: np.ndarray, max_tokens: int) -> None:
    """Sets up a logarithmic axis with ticks at powers of two and the threes between them."""
    axes.set_xscale("log", base=2)
    axes.set_xlim(edges[0], edges[-1] * 1.02)
    ticks = [tick for power in range(24) for tick in (2**power, 3 * 2**power) if edges[0] <= tick <= max_tokens]
    axes.set_xticks(ticks, [f"{tick}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(axis="x", color="#e4e4e4", lw=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(
        "tokens of prompt and answer, after cutting (heights: square roots, each task scaled to its own peak)"
    )


def _margin_text(axes: Axes, x: float, line: int, text: str, fontsize: float = 7, fontweight: str = "normal") -> None:
    """Writes beside a line: left of the axes and flush right for a negative x, right of them otherwise."""
    axes.text(
        x,
        line,
        text,
        transform=axes.get_yaxis_transform(),
        ha="right" if x < 0 else "left",
        va="center",
        fontsize=fontsize,
        fontweight=fontweight,
    )


def _share_cut(share: float) -> str:
    if share == 0:
        return ""
    return "<1% cut" if share < 0.005 else f"{share:.0%} cut"


def _histogram(axes: Axes, line: int, values: np.ndarray, edges: np.ndarray, colour: str) -> None:
    """Draws one histogram that stands on `line`."""
    counts, _ = np.histogram(values, edges)
    # Density per unit of the logarithmic axis, since bins differ in width.
    density = np.sqrt(counts / np.diff(np.log(edges)))
    top = line + 0.4 - _HEIGHT * density / density.max()
    axes.stairs(top, edges, baseline=line + 0.4, fill=True, color=colour, alpha=0.75, lw=0, zorder=line + 1)
    axes.stairs(top, edges, baseline=line + 0.4, color="white", lw=0.5, zorder=line + 1)
    axes.plot([edges[0], edges[-1]], [line + 0.4] * 2, color=colour, lw=0.5, zorder=line + 1)
