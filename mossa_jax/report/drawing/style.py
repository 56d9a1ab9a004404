"""The style of static figures, and the empty figure that each begins with."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE_SHEET = str(Path(__file__).with_name("mossa.mplstyle"))
"""The path of the style sheet of all figures: `plt.style.use(mossa_jax.report.STYLE_SHEET)`."""

INK, MUTED, GRID = "#262626", "#555555", "#e2e2e2"
"""Colours of text, of what stands beside it, and of lines behind the data."""

DPI = 300
"""Pixels per inch of the PNG files."""

_SCREEN_DPI = 110
_TALLEST = 200.0  # inches; no picture may have 2^16 pixels in a direction


def figure_style() -> AbstractContextManager[None]:
    """Returns a context in which figures are drawn in the style of this package."""
    from matplotlib import rc_context

    return rc_context(_settings())


@lru_cache(maxsize=1)
def _settings() -> dict[Any, Any]:
    from matplotlib import rc_params_from_file

    return {
        **rc_params_from_file(STYLE_SHEET, use_default_template=False),
        # Task names are data: a `$` in one is a dollar sign, never mathematics.
        "text.parse_math": False,
        # Equal figures give equal files.
        "svg.hashsalt": "mossa_jax",
    }


def new_figure(width: float, height: float) -> Figure:
    """Creates an empty figure of `width` x `height` inches, without the global state of pyplot.

    Beyond 200 inches, some 1,100 tasks, rows become narrower instead.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, min(height, _TALLEST)), dpi=_SCREEN_DPI, layout="constrained", facecolor="white")
    # It measures texts.
    FigureCanvasAgg(figure)
    return figure
