"""What stands above the axes of a panel: names of sections, the title, and a note at its right."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from mossa_jax.report.charts.grammar import Panel
from mossa_jax.report.drawing.marks import ABOVE
from mossa_jax.report.drawing.style import MUTED
from mossa_jax.report.palette import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

_LINE = 10.0  # points between labels that would meet
_GAP = 4.0  # points between labels side by side
_PAD = 5.0  # points between the axes and the title
_SHOWN = 120  # characters


def spread_labels(axes: Axes, width: float) -> int:
    """Raises labels above the axes that would meet their neighbours.

    Args:
      axes: of a panel, with its ends.
      width: of the axes, in inches, or less.

    Returns:
      How many lines they take.
    """
    labels = [text for text in axes.texts if text.get_label() == ABOVE]
    low, high = axes.get_xlim()
    places = {label: (label.xy[0] - low) / (high - low) * 72 * width for label in labels}  # type: ignore[attr-defined]
    ends: list[float] = []
    for label in sorted(labels, key=places.__getitem__):
        half = text_width(label) / 2
        place = places[label]
        line = next((line for line, end in enumerate(ends) if end + _GAP <= place - half), len(ends))
        ends[line : line + 1] = [place + half]
        label.set_y(2.0 + _LINE * line)
    return len(ends)


def title_panel(axes: Axes, panel: Panel, width: float, lines: int) -> None:
    """Writes the title and the note of a panel; the title stands above the note if there is no room beside it.

    Args:
      axes: of the panel.
      panel: whose title and note they are.
      width: of the axes, in inches, or less.
      lines: of labels between them and the axes.
    """
    pad = _PAD + _LINE * lines
    title = axes.set_title(shorten(panel.title, _SHOWN), loc="left", pad=pad)
    fit(title, width)
    if panel.note:
        note = axes.set_title(
            shorten(panel.note, _SHOWN), loc="right", pad=pad, fontsize=8, fontweight="normal", color=MUTED
        )
        if panel.title and text_width(title) + text_width(note) + 2 * _GAP > 72 * width:
            title.set_text(f"{title.get_text()}\n")


def fit(text: Text, room: float) -> None:
    """Breaks a text into lines until it is no wider than `room` inches."""
    words = text.get_text()
    for width in range(len(words), 10, -4):
        if text_width(text) <= 72 * room:
            return
        text.set_text("\n".join(textwrap.wrap(words, width)))


def text_width(text: Text) -> float:
    """Returns the width of a text in points."""
    figure = text.figure
    assert figure is not None
    return 72 * text.get_window_extent().width / figure.dpi
