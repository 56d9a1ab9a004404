"""The sections of the page on the analyses beside the comparison, each shown where its tables are there."""

from __future__ import annotations

from collections.abc import Sequence

from mossa_jax.report import (
    correlates_section,
    factors_section,
    layer_matrix_section,
    map_section,
    measures_section,
    merged_section,
    profile_section,
    spectrum_section,
    trajectory_section,
    weights_section,
)
from mossa_jax.report.analysis_section import AnalysisSection
from mossa_jax.report.inputs import ReportInputs

SECTIONS: Sequence[AnalysisSection] = (
    map_section.SECTION,
    spectrum_section.SECTION,
    correlates_section.SECTION,
    factors_section.SECTION,
    measures_section.SECTION,
    layer_matrix_section.SECTION,
    weights_section.SECTION,
    merged_section.SECTION,
    profile_section.SECTION,
    trajectory_section.SECTION,
)
"""All sections, in the order of the page."""


def sections_of(inputs: ReportInputs) -> list[AnalysisSection]:
    """Returns the sections whose tables are there, with rows in them."""
    tables = {name for name, table in inputs.analyses.items() if len(table)}
    return [section for section in SECTIONS if tables.issuperset(section.tables)]
