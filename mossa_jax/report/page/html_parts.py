"""What every page is made of: templates, files that become part of it, and pictures inside of it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mossa_jax.foreign import visible
from mossa_jax.report import numbers
from mossa_jax.report.drawing.saving import preview_png

if TYPE_CHECKING:
    import jinja2

_FOLDERS = (Path(__file__).parent, Path(__file__).parents[1] / "between_runs")

STYLES = ("colours.css", "layout.css", "story.css", "tables.css", "figures.css", "task_cards.css", "media.css")
"""The styles of every page, in the order in which they count."""
CHART_SCRIPTS = ("drawing.js", "packing.js", "colours.js", "figure.js", "saving.js", "charts.js")
"""What draws packed charts."""


def templates() -> jinja2.Environment:
    """Returns the templates of pages.

    They escape every value, give a sign to characters that show nothing (`visible`), and refuse a name that is not
    there.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDERS),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
    )
    environment.filters |= {
        "fixed": numbers.fixed,
        "interval": numbers.with_interval,
        "minus": numbers.with_minus,
        "p_value": numbers.p_value,
        "percent": numbers.percent,
    }
    environment.policies["json.dumps_function"] = _dumps
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment


def _shown(value: Any) -> Any:
    """Makes what a template inserts visible; what is HTML already stays as it is."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _dumps(value: Any, **options: Any) -> str:
    return json.dumps(_visible_values(value), **options)


def _visible_values(value: Any) -> Any:
    """Makes every text visible in a value that becomes JSON."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {_visible_values(key): _visible_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_visible_values(item) for item in value]
    return value


def inlined(*names: str) -> str:
    """Reads files that become part of a page, one behind the other."""
    paths = [next(path for folder in _FOLDERS if (path := folder / name).exists()) for name in names]
    return "\n".join(path.read_text(encoding="utf-8").rstrip("\n") for path in paths)


def data_uri(png: bytes) -> str:
    """Encodes a PNG as a data URI, no larger than a page needs it (`preview_png`)."""
    return "data:image/png;base64," + base64.b64encode(preview_png(png)).decode("ascii")
