"""The sections of the page on the analyses beside the comparison, each shown where its tables are there."""

from __future__ import annotations

from collections.abc import Sequence

from mossa_jax.report.analyses import correlates as correlates_section
from mossa_jax.report.analyses import dimensions as dimensions_section
from mossa_jax.report.analyses import factors as factors_section
from mossa_jax.report.analyses import layer_matrix as layer_matrix_section
from mossa_jax.report.analyses import map as map_section
from mossa_jax.report.analyses import measures as measures_section
from mossa_jax.report.analyses import merged as merged_section
from mossa_jax.report.analyses import profile as profile_section
from mossa_jax.report.analyses import trajectory as trajectory_section
from mossa_jax.report.analyses import weights as weights_section
from mossa_jax.report.analyses.section import AnalysisSection
from mossa_jax.report.inputs import ReportInputs

SECTIONS: Sequence[AnalysisSection] = (
    map_section.SECTION,
    dimensions_section.SECTION,
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
