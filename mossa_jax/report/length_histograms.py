"""How long the training examples of each task are: a histogram per task, under its cluster's name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mossa_jax.report import figure_elements
from mossa_jax.report.palette import PRETRAINED_COLOUR, TUNED_COLOUR, UNDEFINED, shortened

_BINS = 72
_HEIGHT = 0.85  # of a peak, in distances between two lines


def draw_lengths(tasks: pd.DataFrame, lengths: Mapping[str, np.ndarray], max_tokens: int) -> Figure:
    """Histograms on a logarithmic axis of tokens, each scaled to its own peak; heights are square roots, so that what
    is piled up at `max_tokens` does not flatten the rest.

    Args:
      tasks: columns `task, cluster, held_out, train, truncated`.
      lengths: task -> tokens of each of its training examples, after cutting.
      max_tokens: where examples are cut; drawn as a line.
    """
    lines = [(cluster, rows) for cluster, rows in tasks.groupby("cluster", sort=False)]
    count = len(tasks) + len(lines)
    figure = figure_elements.new_figure(9.5, 1.3 + 0.2 * max(count, 4))
    axes = figure.subplots()
    shortest = max(1, min(int(values.min()) for values in lengths.values()))
    edges = np.unique(np.round(np.geomspace(shortest, max_tokens + 1, _BINS + 1))).astype(int)
    line = 0
    for cluster, rows in lines:
        axes.text(-0.01, line, shortened(cluster), transform=axes.get_yaxis_transform(), ha="right", va="center",
                  fontsize=8, fontweight="bold")  # fmt: skip
        line += 1
        for row in rows.itertuples():
            _histogram(axes, line, lengths[row.task], edges, UNDEFINED if row.held_out else TUNED_COLOUR)
            for place, side, text in (
                (-0.01, "right", shortened(row.task, 44)),
                (1.01, "left", f"{row.train:,}"),
                (1.08, "left", _cut(row.truncated)),
            ):
                axes.text(place, line, text, transform=axes.get_yaxis_transform(), ha=side, va="center", fontsize=7)
            line += 1
    axes.axvline(max_tokens, color=PRETRAINED_COLOUR, lw=1, ls="--", zorder=count + 2)
    axes.text(max_tokens, 1.0, f"max_tokens {max_tokens}", transform=axes.get_xaxis_transform(), ha="right",
              va="bottom", fontsize=8, color=PRETRAINED_COLOUR)  # fmt: skip
    axes.text(1.01, 1.0, "rows", transform=axes.transAxes, ha="left", va="bottom", fontsize=7)
    axes.set_ylim(count - 0.3, -1.2)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
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
    axes.set_title("Length of the training examples", pad=16)
    handles = [Patch(color=TUNED_COLOUR, label="in the mixture for E")]
    if tasks["held_out"].any():
        handles.append(Patch(color=UNDEFINED, label="held out"))
    figure.legend(handles=handles, loc="outside lower right", ncols=2, fontsize=8)
    return figure


def _cut(share: float) -> str:
    if share == 0:
        return ""
    return "<1% cut" if share < 0.005 else f"{share:.0%} cut"


def _histogram(axes, line: int, values: np.ndarray, edges: np.ndarray, colour: str) -> None:
    """One histogram standing on `line`; density per unit of the logarithmic axis, since bins differ in width."""
    counts, _ = np.histogram(values, edges)
    density = np.sqrt(counts / np.diff(np.log(edges)))
    top = line + 0.4 - _HEIGHT * density / density.max()
    axes.stairs(top, edges, baseline=line + 0.4, fill=True, color=colour, alpha=0.75, lw=0, zorder=line + 1)
    axes.stairs(top, edges, baseline=line + 0.4, color="white", lw=0.5, zorder=line + 1)
    axes.plot([edges[0], edges[-1]], [line + 0.4] * 2, color=colour, lw=0.5, zorder=line + 1)
