"""A section of the page on one analysis beside the comparison: words, figures and a small table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mossa_jax.report.charts.grammar import Chart
from mossa_jax.report.inputs import ReportInputs

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class AnalysisSection:
    """A section of the page.

    Attributes:
      name: its anchor.
      title: its heading.
      lead: what is shown and how to read it, in a sentence or two.
      tables: names of the results tables that it needs.
      sentences: what came out, with numbers and intervals.
      figures: file name -> what draws it.
      captions: file name -> what the figure shows, for readers who cannot see it.
      charts: its charts.
      columns: headings of the table; without any there is no table.
      rows: its rows, one text per column, the first of which names the row.
    """

    name: str
    title: str
    lead: str
    tables: tuple[str, ...]
    sentences: Callable[[ReportInputs], list[str]]
    figures: Mapping[str, Callable[[ReportInputs], Figure]]
    captions: Mapping[str, str]
    columns: tuple[str, ...] = ()
    rows: Callable[[ReportInputs], Sequence[tuple[str, ...]]] = lambda _: ()
    charts: Callable[[ReportInputs], Sequence[Chart]] = lambda _: ()
