"""The findings as a run prints them at its end."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import Any

from mossa_jax.findings.claims import EXPLORATORY, NOT_MEASURED, TOO_FEW, UNDECIDED
from mossa_jax.findings.headlines import in_words
from mossa_jax.findings.story import STORY
from mossa_jax.findings.warnings import late_lines

_WIDTH = 120  # most columns of a line, and the columns of a file


def summary(findings: dict[str, Any], width: int | None = None) -> str:
    """Returns what `report` returned in words, with the path of the page, for people at a terminal.

    The result in three sentences comes first. Then each finding has its verdict and its figures, and the rest on the
    page. Those that say nothing for want of data, and exploratory ones that are undecided, have their names alone.

    Args:
      findings: from `report`.
      width: columns of a line; by default those of the terminal, or 120 in a file.
    """
    if width is None:
        columns = shutil.get_terminal_size((_WIDTH, 24)).columns if sys.stdout.isatty() else _WIDTH
        width = min(max(columns, 40), _WIDTH)
    late = late_lines(findings["warnings"])
    lines = [
        *(["", *late] if late else []),
        "",
        *(f"{name}: {findings['summary'][key]}" for key, name in STORY.items()),
        "",
    ]
    for finding in findings["findings"]:
        if not _is_named_alone(finding):
            family = " (exploratory)" if finding["family"] == EXPLORATORY else ""
            figures = in_words(finding["headline"])
            lines.append(f"[{finding['verdict']}] {finding['title']}{family}: {figures}{_but(finding)}")
    for verdict in (UNDECIDED, TOO_FEW, NOT_MEASURED):
        alone = [finding for finding in findings["findings"] if _is_named_alone(finding)]
        titles = [finding["title"] for finding in alone if finding["verdict"] == verdict]
        if titles:
            lines.append(f"[{verdict}] {'; '.join(titles)}")
    wrapped = [textwrap.fill(line, width, subsequent_indent="  ", break_on_hyphens=False) for line in lines]
    places = [f"Report: {findings['page']}"]
    if findings["variants"]:
        places.append(f"Variants beside the first results: {'; '.join(findings['variants'])}")
    return "\n".join([*wrapped, "", *places])


def _is_named_alone(finding: dict[str, Any]) -> bool:
    is_undecided = finding["verdict"] == UNDECIDED and finding["family"] == EXPLORATORY
    return is_undecided or finding["verdict"] in (TOO_FEW, NOT_MEASURED)


def _but(finding: dict[str, Any]) -> str:
    """Returns the first of the warnings that qualify a finding, and how many more there are; the page has all."""
    if not finding["qualifications"]:
        return ""
    first, *others = finding["qualifications"]
    return f" (but {first}{f', and {len(others)} more' if others else ''})"
