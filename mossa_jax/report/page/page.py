"""The report page: one offline HTML file with interactive charts, and static figures where scripts do not run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from etils import epath

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files.write import write_text
from mossa_jax.findings import RULES, competence_sentence, to_json_types
from mossa_jax.findings.ceiling import CONTROL
from mossa_jax.findings.curves import EXPERIMENTALS, REPORTED_ESTIMATORS, block_layers
from mossa_jax.findings.story import STORY
from mossa_jax.findings.warning_kinds import GROUPS
from mossa_jax.report import palette
from mossa_jax.report.analyses import sections_of
from mossa_jax.report.analyses.section import AnalysisSection
from mossa_jax.report.catalogue import all_charts
from mossa_jax.report.charts.grammar import Chart
from mossa_jax.report.drawing.glyphs import missing_sentence, undrawable
from mossa_jax.report.inputs import ReportInputs
from mossa_jax.report.page import tables
from mossa_jax.report.page.cards import claim_cards
from mossa_jax.report.page.glossary import Glossary
from mossa_jax.report.page.html_parts import CHART_SCRIPTS, STYLES, data_uri, inlined, templates
from mossa_jax.report.page.interactive import packed, page_charts
from mossa_jax.report.page.task_cards import task_cards
from mossa_jax.report.page.time_spent import time_table


def write_page(
    path: epath.PathLike, inputs: ReportInputs, figures: epath.PathLike, charts: Mapping[str, Chart] | None = None
) -> None:
    """Writes the report page, whole or not at all.

    Args:
      path: the HTML file.
      inputs: what it shows.
      figures: the folder in which `write_figures` left the PNG files.
      charts: from `all_charts`; built from `inputs` unless given.

    Raises:
      Refusal: 3 if a figure is missing; 6 if there is no room for the page.
    """
    from plotly.offline import get_plotlyjs

    charts = all_charts(inputs) if charts is None else charts
    pictures = {name: _picture(epath.Path(figures) / f"{chart.file}.png") for name, chart in charts.items()}
    template = templates().get_template("page.html.j2")
    page = template.render(
        charts=page_charts(charts, pictures),
        is_change_tested=inputs.change is not None and len(inputs.change) > 0,
        analysis=inputs.analysis,
        rows=to_json_types(inputs.tasks.sort_values(["cluster", "task"]).to_dict("records")),
        competence=competence_sentence(inputs.analysis["competence"]),
        story=inputs.analysis["summary"],
        story_headings=STORY,
        claim_cards=claim_cards(inputs.analysis, charts),
        words=Glossary(),
        claims=tables.claim_rows(inputs.analysis["findings"]),
        definitions=tables.definition_rows(inputs.analysis["sections"], len(block_layers(inputs.table))),
        clusters=tables.cluster_rows(inputs),
        scores=tables.score_rows(inputs),
        cards=task_cards(inputs),
        means=tables.mean_rows(inputs),
        repairing=tables.repairing(inputs.table),
        seeds=sorted({str(name) for name in inputs.table["experimental"]} - set(EXPERIMENTALS) - {CONTROL}),
        facts=inputs.facts,
        setup=inputs.setup,
        config=json.dumps(inputs.config, indent=1, ensure_ascii=False) if inputs.config else "",
        fonts=_fonts(inputs),
        tasks=tables.task_counts(inputs.tasks, inputs.analysis["trust"]["prompts"]),
        undefined=tables.undefined_cells(inputs.analysis["trust"]),
        lower_half=_lower_half(inputs.analysis["half"]["layers"]),
        command=inputs.command,
        warnings=[warning for warning in inputs.analysis["warnings"] if not warning["is_note"]],
        notes=[warning for warning in inputs.analysis["warnings"] if warning["is_note"]],
        warning_groups=GROUPS,
        versions=inputs.versions,
        sections=[_section(section, inputs, charts) for section in sections_of(inputs)],
        parity=_parity(inputs.parity),
        time=time_table(inputs.times),
        verdicts=RULES,
        estimators=REPORTED_ESTIMATORS,
        model_names=palette.MODEL_NAMES,
        score_names=palette.SCORE_NAMES,
        metric_names=palette.METRIC_NAMES,
        foreign_names=palette.FOREIGN_NAMES,
        # Inserted as values, so that nothing in them is taken for a template.
        style=inlined(*STYLES),
        script=inlined(*CHART_SCRIPTS, "task_cards.js", "words.js"),
        plotly=packed(get_plotlyjs()),
    )
    write_text(path, page)


def _section(section: AnalysisSection, inputs: ReportInputs, charts: Mapping[str, Chart]) -> dict[str, Any]:
    """Returns what the page shows of an analysis."""
    return {
        "name": section.name,
        "title": section.title,
        "lead": section.lead,
        "sentences": section.sentences(inputs),
        "charts": [name for name, chart in charts.items() if chart.section == section.name],
        "columns": section.columns,
        "rows": list(section.rows(inputs)) if section.columns else [],
    }


def _lower_half(upper: Sequence[str]) -> str:
    """Names the layers below the upper half."""
    last = int(upper[0]) - 1
    return f"layers 1 to {last}" if last > 1 else "layer 1" if last else "no layer"


def _fonts(inputs: ReportInputs) -> str:
    """Returns what is said of characters of names that the static figures could not draw; empty if all were drawn."""
    missing = undrawable([*inputs.table["task"].unique(), *inputs.table["cluster"].unique()])
    return missing_sentence(missing) if missing else ""


def _picture(figure: epath.Path) -> str:
    """Returns a figure as a data URI."""
    try:
        return data_uri(figure.read_bytes())
    except FileNotFoundError as error:
        raise Refusal(BAD_INPUT, f"figure {figure} is missing; write the figures before the page") from error


def _parity(parity: pd.DataFrame | str) -> dict[str, Any]:
    """Returns the `reason` why there is no parity, or its `rows` per layer and the `worst` of them."""
    if isinstance(parity, str):
        return {"reason": parity}
    rows = parity.assign(relative=parity["max_abs_difference"] / parity["largest"])
    # A difference that is not finite is the largest of all.
    worst = rows.loc[rows["relative"].fillna(np.inf).idxmax()]
    return to_json_types({"reason": "", "rows": rows.to_dict("records"), "worst": worst.to_dict()})
