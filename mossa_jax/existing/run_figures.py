"""The figures of a run from Python: `mossa.Run(DIR).figures`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.report.catalogue import all_charts
from mossa_jax.report.charts.grammar import Chart, View, first_view
from mossa_jax.report.palette import make_palette

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from mossa_jax.report import ReportInputs


class RunFigures:
    """The figures of a run, by name: those that its report has.

    Example:
      >>> figures = mossa.Run("runs/demo").figures
      >>> figures
      29 figures of runs/demo: change, layers, heatmap, clusters, ...
      >>> figure = figures["layers"]
      >>> figure = figures.draw("layers", palette={"tuned": "#7a0177"}, estimator="biased")
      >>> figures.data("layers").groupby("layer").cka.median()
      >>> figures.save("figures/mine", palette={"tuned": "#7a0177"})
    """

    def __init__(self, place: str, inputs: ReportInputs):
        """Builds the charts; nothing is drawn yet.

        Args:
          place: the folder of the results, for messages.
          inputs: what the charts show.
        """
        self._place = place
        self._charts = all_charts(inputs)

    @property
    def names(self) -> list[str]:
        """Names of the figures, in the order of the page."""
        return list(self._charts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._charts)

    def __len__(self) -> int:
        return len(self._charts)

    def __contains__(self, name: object) -> bool:
        return any(name in (chart.name, chart.file) for chart in self._charts.values())

    def __repr__(self) -> str:
        return f"{len(self)} figures of {self._place}: {', '.join(self._charts)}"

    def _ipython_key_completions_(self) -> list[str]:
        return self.names

    def __getitem__(self, name: str) -> Figure:
        """Draws a figure, as `draw`."""
        return self.draw(name)

    def draw(self, name: str, palette: Mapping[str, str] | None = None, **choices: str) -> Figure:
        """Draws a figure.

        Args:
          name: of `names`, or of its file: "layers" or "figure2_layers".
          palette: role -> colour, for those that are to differ; `mossa_jax.report.palette.ROLES` names them.
          choices: what its menus on the page choose, such as `estimator="biased"`; by default their first entries.

        Returns:
          A matplotlib figure, to show, change or save.

        Raises:
          Refusal: 2 for a name, role or choice that does not exist, with the list.
        """
        from mossa_jax.report.drawing.static import draw

        chart = self._chart(name)
        return draw(chart, _view(chart, choices), make_palette(palette or {}))

    def data(self, name: str) -> pd.DataFrame:
        """Returns the numbers behind a figure, one tidy row each: its CSV file.

        Raises:
          Refusal: 2 for a name that does not exist.
        """
        return self._chart(name).data.copy()

    def save(self, folder: str | os.PathLike[str], palette: Mapping[str, str] | None = None) -> list[str]:
        """Draws all figures and saves each as PNG (300 dpi), SVG and PDF, with its numbers as CSV.

        Args:
          folder: where to write; created if absent.
          palette: as in `draw`.

        Returns:
          Names of the files, without suffix. Without a palette they equal those of the run, but for "time", which goes
          on after the report is written.

        Raises:
          Refusal: 2 for a role that does not exist; 6 if there is no room.
        """
        from mossa_jax.report.drawing.figures import save_charts

        return save_charts(self._charts, folder, make_palette(palette or {}))

    def __call__(self, folder: str | os.PathLike[str], palette: Mapping[str, str] | None = None) -> list[str]:
        """Saves all figures, as `save`."""
        return self.save(folder, palette)

    def _chart(self, name: str) -> Chart:
        for chart in self._charts.values():
            if name in (chart.name, chart.file):
                return chart
        close = difflib.get_close_matches(str(name), self.names, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise Refusal(BAD_CONFIG, f"there is no figure {name!r}; there is {', '.join(self.names) or 'none'}{hint}")


def _view(chart: Chart, choices: Mapping[str, str]) -> View:
    """Returns the view with these choices.

    Raises:
      Refusal: 2 for a choice or value that the chart does not have.
    """
    for name, value in choices.items():
        if name not in chart.choices:
            there = ", ".join(chart.choices) or "none"
            raise Refusal(BAD_CONFIG, f"figure {chart.name!r} has no choice {name!r}; there is {there}")
        options = chart.choices[name].options
        if value not in options:
            raise Refusal(BAD_CONFIG, f"figure {chart.name!r}: {name}={value!r} is none of {', '.join(options)}")
    return first_view(chart, **choices)
