"""Figures as files: laid out once, then written in every format."""

from __future__ import annotations

import io
import math
import warnings
from typing import TYPE_CHECKING, Any

from etils import epath

from mossa_jax.files.write import write_bytes
from mossa_jax.report.drawing.glyphs import LONGEST, make_drawable
from mossa_jax.report.drawing.style import DPI, figure_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = ("png", "svg", "pdf")
"""The formats of every figure."""

# Without dates and versions, so that equal input gives equal files.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": "mossa_jax"},
    "pdf": {"CreationDate": None, "ModDate": None, "Producer": None, "Creator": "mossa_jax"},
}
_LONGEST = (LONGEST, 60, 30, 10)  # characters of a line, the next number where the one before leaves no room

_MOST_PIXELS = 40e6  # of a picture, so that figures of hundreds of tasks need no gigabytes

_PREVIEW_WIDTH = 1100  # pixels, at most
_PREVIEW_DPI = 120
_PREVIEW_COLOURS = 128


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


def picture(figure: Figure, suffix: str, title: str = "", dpi: float = DPI) -> bytes:
    """Returns a settled figure as a file of one of `SUFFIXES`, with its title in it. Equal figures give equal bytes.

    Args:
      figure: from `settle`.
      suffix: of `SUFFIXES`.
      title: for what lists files by their titles; "" for none.
      dpi: dots per inch of what is not drawn as lines; fewer for a picture of more than 40 million pixels.
    """
    buffer = io.BytesIO()
    width, height = figure.get_size_inches()
    dpi = min(dpi, math.sqrt(_MOST_PIXELS / (width * height)))
    metadata = _METADATA[suffix] | ({"Title": title} if title else {})
    with figure_style():
        figure.savefig(buffer, format=suffix, dpi=dpi, metadata=metadata)
    return buffer.getvalue()


def save(figure: Figure, folder: epath.Path, name: str, title: str = "") -> None:
    """Writes a settled figure as `name.png`, `name.svg` and `name.pdf`, each whole or not at all."""
    for suffix in SUFFIXES:
        write_bytes(folder / f"{name}.{suffix}", picture(figure, suffix, title))


def preview_png(png: bytes) -> bytes:
    """Returns a PNG of `save` made smaller for a page: at most 1,100 pixels wide, and of few colours.

    Args:
      png: from `picture`.
    """
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        scale = min(1.0, _PREVIEW_DPI / image.info["dpi"][0], _PREVIEW_WIDTH / image.width)
        size = round(image.width * scale), max(1, round(image.height * scale))
        small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        # A palette saves two thirds of the bytes. It covers all colours: the most frequent ones alone would turn the
        # few violet cells of a heat map grey.
        small = small.quantize(_PREVIEW_COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    small.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
