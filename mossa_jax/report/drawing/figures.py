"""The figures of a run as files: a chart as PNG, SVG and PDF, and the numbers behind it as CSV."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from etils import epath

from mossa_jax.files.csv_text import csv_text
from mossa_jax.files.write import write_text
from mossa_jax.report.catalogue import FILES, all_charts
from mossa_jax.report.charts.grammar import Chart
from mossa_jax.report.drawing.glyphs import say_missing
from mossa_jax.report.drawing.saving import SUFFIXES, save
from mossa_jax.report.drawing.static import compose
from mossa_jax.report.inputs import ReportInputs
from mossa_jax.report.palette import DEFAULT, Palette

_EARLIER = (
    "layers", "clusters", "held_out", "correlates", "map_pca", "map_tsne", "separation", "spectrum", "factors_tasks",
    "measures_curves", "settling",
)  # fmt: skip
"""Figures that earlier versions wrote, and that charts of other names have replaced."""


def write_figures(inputs: ReportInputs, folder: epath.PathLike, charts: Mapping[str, Chart] | None = None) -> list[str]:
    """Draws the charts of a run and saves each as PNG, SVG and PDF, with its numbers as CSV.

    Args:
      inputs: what to draw.
      folder: where to write; created if absent.
      charts: from `all_charts`; built from `inputs` unless given.

    Returns:
      Names of the files, without suffix, in the order of the page.

    Raises:
      Refusal: 6 if there is no room.
    """
    return save_charts((all_charts(inputs) if charts is None else charts).values(), folder, inputs.palette)


def save_charts(charts: Collection[Chart], folder: epath.PathLike, palette: Palette = DEFAULT) -> list[str]:
    """Draws charts and saves them as `write_figures` does."""
    folder = epath.Path(folder)
    missing: set[str] = set()
    for chart in charts:
        # Laying a figure out takes as long as saving it, so it is drawn once for all formats.
        figure, lacking = compose(chart, palette=palette)
        save(figure, folder, chart.file, chart.title)
        write_text(folder / f"{chart.file}.csv", csv_text(chart.data))
        missing |= lacking
    say_missing(missing)
    return [chart.file for chart in charts]


def remove_former_figures(folder: epath.PathLike, files: Collection[str]) -> None:
    """Deletes the figures of a run that an earlier report left and that are made no longer.

    A file of any other name is left alone.

    Args:
      folder: of the figures.
      files: names without suffix of those that were written now.
    """
    folder = epath.Path(folder)
    former = {*_EARLIER, *FILES} - set(files)
    for path in folder.iterdir() if folder.exists() else ():
        if path.stem in former and path.suffix in {".csv", *(f".{suffix}" for suffix in SUFFIXES)}:
            path.unlink(missing_ok=True)
