"""All charts of a run, in the order of the page; those whose results are not there are absent."""

from __future__ import annotations

from dataclasses import replace

from mossa_jax.report.analyses import sections_of
from mossa_jax.report.charts import (
    change,
    clusters,
    estimators,
    heatmap,
    levels,
    scores,
    specificity,
    times,
    training,
)
from mossa_jax.report.charts.grammar import Chart
from mossa_jax.report.inputs import ReportInputs

_COMPARISON = (
    change.change_chart,
    levels.layers_chart,
    heatmap.heatmap_chart,
    clusters.clusters_chart,
    clusters.cluster_slopes_chart,
    levels.held_out_chart,
    specificity.specificity_chart,
    estimators.estimators_chart,
    training.training_chart,
    scores.scores_chart,
    times.time_chart,
)

FILES = (
    "change", "figure2_layers", "heatmap", "figure3_clusters", "figure3_cluster_slopes", "figure7_held_out",
    "specificity", "estimators", "training", "scores", "time", "measures", "measures_agreement", "measures_curves",
    "merged", "layer_matrix", "turning", "trajectory", "settling", "convergence", "factors", "factors_tasks",
    "figure5_dimensions", "weights", "figure6_correlates", "figure4_map_tsne", "figure4_map_pca", "separation",
    "profile",
)  # fmt: skip
"""The names of the files of all charts that a run can have, without suffix."""


def all_charts(inputs: ReportInputs) -> dict[str, Chart]:
    """Returns the charts by name: those of the comparison, then those of the analyses.

    Building them takes seconds where there are hundreds of tasks: a report does it once.
    """
    charts = [chart for build in _COMPARISON if (chart := build(inputs)) is not None]
    for section in sections_of(inputs):
        charts += [replace(chart, section=section.name) for chart in section.charts(inputs)]
    return {chart.name: chart for chart in charts}
