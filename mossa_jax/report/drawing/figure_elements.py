"""What static figures are built from: style, layer axes, section bands, paired boxes, saving."""

from __future__ import annotations

import io
import warnings
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from etils import epath

from mossa_jax.files.write import write_bytes
from mossa_jax.report.drawing.glyphs import FAMILY, LONGEST, make_drawable
from mossa_jax.report.palette import DEFAULT, FAINT, MODEL_NAMES, Palette, layer_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE: dict[Any, Any] = {
    "font.family": FAMILY,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    # Task names are data: a `$` in one is a dollar sign, never mathematics.
    "text.parse_math": False,
    "pdf.fonttype": 42,
    "svg.hashsalt": "mossa_jax",
}
CEILING_LABEL = "ceiling: two seeds of one specialist"
_MAX_TICKS = 35
_LONGEST = (LONGEST, 60, 30, 10)  # characters of a line, the next number where the one before leaves no room
_DPI = 110
_TALLEST = 300.0  # inches

# Without dates and versions, so that equal input gives equal files.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "ModDate": None, "Producer": None, "Creator": "mossa_jax"},
}


def figure_style() -> AbstractContextManager[None]:
    """Returns a context in which figures are drawn in the style of this package."""
    from matplotlib import rc_context

    return rc_context(STYLE)


def new_figure(width: float, height: float) -> Figure:
    """Creates an empty figure of `width` x `height` inches, without the global state of pyplot.

    Beyond 300 inches, 1,700 tasks, rows become narrower instead: no picture may have 2^16 pixels in a direction.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, min(height, _TALLEST)), dpi=_DPI, layout="constrained", facecolor="white")


def layer_axis(axes: Axes, layers: list[str], label: bool = True, max_ticks: int = _MAX_TICKS) -> None:
    """Labels 0, 1, ... with layer names; only every k-th if there are too many to read.

    Args:
      axes: the axes to label.
      layers: layer names, in order.
      label: whether the axis itself gets a label.
      max_ticks: the most ticks that can be read.
    """
    step = max(1, -(-len(layers) // max_ticks))
    ticks = [i for i, name in enumerate(layers) if not name.isdigit() or step == 1 or int(name) % step == 0]
    axes.set_xticks(ticks, [layer_label(layers[i]) for i in ticks], fontsize=8 if len(ticks) > 20 else 9)
    axes.set_xlim(-0.6, len(layers) - 0.4)
    if label:
        axes.set_xlabel("layer (output of the block; emb = embedding, norm = after the final norm)")


def section_bands(
    axes: Axes, sections: dict[str, Any], layers: list[str], named: bool = True, palette: Palette = DEFAULT
) -> None:
    """Shades the sections of the network behind a chart over layers; draws nothing without a transition."""
    if not sections["is_transition"]:
        return
    for name, colour in palette.sections.items():
        span = sections[name]
        if span is None or str(span[0]) not in layers or str(span[1]) not in layers:
            continue
        low, high = layers.index(str(span[0])) - 0.5, layers.index(str(span[1])) + 0.5
        axes.axvspan(low, high, color=colour, alpha=0.14, lw=0, zorder=0)
        if named:
            axes.text(
                (low + high) / 2,
                1.01,
                name,
                transform=axes.get_xaxis_transform(),
                ha="center",
                va="bottom",
                fontsize=8,
                color="#444444",
            )


def paired_boxes(axes: Axes, matrices: dict[str, pd.DataFrame], layers: list[str], palette: Palette = DEFAULT) -> bool:
    """Draws two boxes over tasks per layer (whiskers at 1.5 quartile ranges, outliers as diamonds).

    Args:
      axes: the axes to draw on.
      matrices: `pretrained` and `tuned`, each [tasks, layers].
      layers: layer names, in order.
      palette: colours.

    Returns:
      Whether anything was drawn.
    """
    drawn = False
    for shift, (model, matrix) in zip((-0.2, 0.2), matrices.items(), strict=True):
        columns = [matrix[layer].dropna().to_numpy() for layer in layers]
        positions = [i + shift for i, column in enumerate(columns) if column.size]
        columns = [column for column in columns if column.size]
        if not columns:
            continue
        drawn = True
        colour = palette.models[model]
        axes.boxplot(
            columns,
            positions=positions,
            widths=0.34,
            patch_artist=True,
            manage_ticks=False,
            boxprops={"facecolor": colour, "edgecolor": colour, "alpha": 0.75, "lw": 0.6},
            whiskerprops={"color": colour, "lw": 0.9},
            capprops={"color": colour, "lw": 0.9},
            medianprops={"color": "black", "lw": 1.2},
            flierprops={
                "marker": "d",
                "markersize": 3.5,
                "markerfacecolor": colour,
                "markeredgecolor": "none",
            },
        )
    return drawn


def ceiling_line(axes: Axes, values: list[float | None] | None, palette: Palette = DEFAULT) -> None:
    """Draws the ceiling, one value per layer; nothing if it was not measured."""
    if values is not None:
        line = np.array([np.nan if value is None else value for value in values])
        axes.plot(range(len(line)), line, color=palette.ceiling, lw=1.4, ls="--", zorder=4, label=CEILING_LABEL)


def model_legend(axes: Axes, palette: Palette = DEFAULT) -> None:
    """Adds the legend of pre-trained and tuned, and of the ceiling where `axes` has it, above all panels."""
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(color=palette.models[key], label=name, alpha=0.75) for key, name in MODEL_NAMES.items()]
    handles += [line for line in axes.lines if line.get_label() == CEILING_LABEL]
    # Inside the axes it would hide boxes.
    axes.figure.legend(handles=handles, loc="outside upper right", ncols=3, fontsize=8)


def grey_labels(axes: Axes, rows: list[int]) -> None:
    """Greys the labels of some rows of a chart of tasks."""
    labels = axes.get_yticklabels()
    for row in rows:
        labels[row].set_color(FAINT)


def empty_panel(axes: Axes, reason: str) -> None:
    """Turns a panel into a sentence that says why it is empty."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, reason, ha="center", va="center", transform=axes.transAxes, color="#555555", wrap=True)


def cka_range(axes: Axes, values: np.ndarray) -> None:
    """Sets the CKA axis to 0..1, lower if debiased estimates are negative."""
    finite = values[np.isfinite(values)]
    low = min(0.0, float(finite.min()) - 0.03) if finite.size else 0.0
    axes.set_ylim(low, max(1.03, float(finite.max()) + 0.02) if finite.size else 1.03)
    axes.grid(axis="y", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)


def settle(figure: Figure) -> set[str]:
    """Makes all texts of a figure drawable and lays it out, for good: no later drawing changes a place.

    Names that leave no room for the axes are cut further.

    Returns:
      The characters that no font here has, for `say_missing`.
    """
    missing: set[str] = set()
    for longest in _LONGEST:
        missing |= make_drawable(figure, longest)
        with warnings.catch_warnings(record=True) as complaints, figure_style():
            warnings.simplefilter("always")
            figure.draw_without_rendering()
        if not any("constrained_layout" in str(complaint.message) for complaint in complaints):
            break
    # Solving the layout again for each format would take most of the time.
    figure.set_layout_engine("none")
    return missing


def save(figure: Figure, folder: epath.Path, name: str) -> set[str]:
    """Writes `name.png` and `name.pdf`, each whole or not at all. Equal figures give equal files.

    Returns:
      What `settle` returns.
    """
    missing = settle(figure)
    for suffix, metadata in _METADATA.items():
        buffer = io.BytesIO()
        with figure_style():
            figure.savefig(buffer, format=suffix, dpi=_DPI, metadata=metadata)
        write_bytes(folder / f"{name}.{suffix}", buffer.getvalue())
    return missing
