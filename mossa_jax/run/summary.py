"""The findings as a run prints them at its end."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from typing import Any

from mossa_jax.findings import competence_sentence
from mossa_jax.findings.claims import EXPLORATORY, NOT_MEASURED, TOO_FEW, UNDECIDED
from mossa_jax.findings.warnings import late_lines

_WIDTH = 120  # most columns of a line, and the columns of a file
# A sentence ends before a space and a capital, and not behind the number of a list or a single letter.
_END = re.compile(r"(?<=[^\d\s.]{2}\.)\s+(?=[A-Z])|(?<=[\d)\]]\.)\s+(?=[A-Z][a-z])")


def summary(findings: dict[str, Any], width: int | None = None) -> str:
    """Returns what `report` returned in words, with the path of the page, for people at a terminal.

    Each finding has its verdict and its first sentence here, and the rest on the page. Those that say nothing for want
    of data, and exploratory ones that are undecided, have their names alone.

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
        "Findings in short (change: the tuned model's CKA with a task's specialist minus the pre-trained one's)",
    ]
    lines.append(competence := competence_sentence(findings["competence"]))
    for finding in findings["findings"]:
        if not _is_named_alone(finding):
            family = " (exploratory)" if finding["family"] == EXPLORATORY else ""
            # What is said above of all findings need not be said again.
            sentence = _first_sentence(finding["sentence"].removeprefix(competence).strip())
            # The first says enough here, and the page has all.
            but = f" (but {finding['qualifications'][0]})" if finding["qualifications"] else ""
            lines.append(f"[{finding['verdict']}]{but} {finding['title']}{family}: {sentence}")
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


def _first_sentence(text: str) -> str:
    return _END.split(text, maxsplit=1)[0]
