"""A section of the page on one analysis beside the comparison: words, charts and a small table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mossa_jax.report.charts.grammar import Chart
from mossa_jax.report.inputs import ReportInputs


@dataclass(frozen=True)
class AnalysisSection:
    """A section of the page.

    Attributes:
      name: its anchor.
      title: its heading.
      lead: what is shown and how to read it, in a sentence or two.
      tables: names of the results tables that it needs.
      sentences: what came out, with numbers and intervals.
      charts: its charts, in order; without those that have nothing to show.
      columns: headings of the table; without any there is no table.
      rows: its rows, one text per column, the first of which names the row.
    """

    name: str
    title: str
    lead: str
    tables: tuple[str, ...]
    sentences: Callable[[ReportInputs], list[str]]
    charts: Callable[[ReportInputs], Sequence[Chart]]
    columns: tuple[str, ...] = ()
    rows: Callable[[ReportInputs], Sequence[tuple[str, ...]]] = lambda _: ()
