"""Draws the paper's figures beside those of a finished run, on relative depth.

python examples/paper_figures.py RUN [--out=FILE.png]

RUN is a run folder, or one of its variants (RUN/variants/NAME). The left column has what the paper published for Llama
2 7B (paper_numbers.json beside this file), the right one the same from the tables of the run:

  figure 2  CKA with the specialists over the tasks of the mixture: median and quartiles, base and E
  figure 7  the same over the tasks that E has not seen
  figure 5  principal components for 99 % of the variance, as a share of the model's width
  figure 6  correlation of CKA with the readability of the prompts, over tasks

Both columns show the biased estimate of CKA, which is the paper's, and end with the state behind the final norm, as the
paper's last layer does. All tasks count, as in the paper, also those whose specialist learned nothing. A run that lacks
a part (no held-out tasks, an analysis that is off) leaves its panel empty and says why. The paper's figure 3 is left
out, since its clusters are those of FLAN 2021.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import mossa_jax as mossa
from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.errors import BAD_CONFIG, BAD_INPUT, DONE, Refusal
from mossa_jax.foreign import user_path
from mossa_jax.outputs import check_output
from mossa_jax.processes.failures import explain
from mossa_jax.report.palette import MODEL_COLOURS, SECTION_COLOURS, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER = Path(__file__).with_name("paper_numbers.json")
"""The numbers that the paper published, with their source."""

_DPI, _SMALL, _MUTED = 200, 7.5, "#555555"
FORMATS = (".png", ".svg", ".pdf")
MODELS = (PRETRAINED, TUNED)
MEASURES = {"flesch_kincaid": "Flesch-Kincaid grade", "coleman_liau": "Coleman-Liau index"}
ROWS = {
    "mixture": "CKA (biased)",
    "unseen": "CKA (biased)",
    "dimensions": "share of the width",
    "readability": "Pearson's r over tasks",
}
"""Name of a row of panels -> the label of its vertical axis."""

_DASHES: dict[str, Any] = {"": "-", "flesch_kincaid": "-", "coleman_liau": (0, (4, 2))}
_NAMES = {PRETRAINED: "pre-trained base", TUNED: "tuned (E; the paper's Llama 2-SFT)"}


@dataclass(frozen=True)
class Curve:
    """A line over relative depth.

    Attributes:
      model: one of `MODELS`, for the colour.
      depth: [k] float64, layer / number of layers.
      values: [k] float64; NaN where there is none.
      low: [k] float64, lower quartile over tasks; None without a band.
      high: [k] float64, upper quartile.
      measure: a key of `MEASURES`, for the dashes; empty for similarities and dimensions.
    """

    model: str
    depth: np.ndarray
    values: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    measure: str = ""


@dataclass(frozen=True)
class Panel:
    """What one panel shows.

    Attributes:
      title: whose numbers of what.
      curves: its lines.
      sections: name of a section -> where it begins and ends on relative depth; empty if none are stated.
      note: stands below the title, in smaller letters.
      absent: why there are no curves; empty if there are.
      limit: the highest value that the data allow, for a line; None without one.
    """

    title: str
    curves: tuple[Curve, ...] = ()
    sections: dict[str, tuple[float, float]] = field(default_factory=dict)
    note: str = ""
    absent: str = ""
    limit: float | None = None


def read_paper() -> dict[str, Any]:
    """Reads the paper's numbers: figures, sections, number of layers and width, and where they are from."""
    return json.loads(PAPER.read_text(encoding="utf-8"))


def paper_panels(paper: dict[str, Any]) -> dict[str, Panel]:
    """Returns the paper's panels: a key of `ROWS` -> panel."""
    name, layers = paper["model"], paper["layers"]
    sections = _spans({part: paper["sections"][part] for part in SECTION_COLOURS}, layers)
    every_layer = np.arange(1, layers + 1) / layers
    dimensions = [Curve(model, every_layer, np.array(paper["figure5"][model]) / paper["width"]) for model in MODELS]
    readability = [
        Curve(model, every_layer, np.array(paper["figure6"][measure][model]), measure=measure)
        for measure in MEASURES
        for model in MODELS
    ]
    return {
        "mixture": Panel(f"{name}, figure 2: tasks of the mixture", _boxes(paper["figure2"], layers), sections),
        "unseen": Panel(f"{name}, figure 7: 7 unseen tasks", _boxes(paper["figure7"], layers)),
        "dimensions": Panel(
            f"{name}, figure 5: dimensions for 99 % of variance",
            tuple(dimensions),
            sections,
            f"mean over tasks, as a share of {paper['width']:,}",
        ),
        "readability": Panel(f"{name}, figure 6: correlation with readability", tuple(readability), sections),
    }


def _boxes(figure: dict[str, Any], layers: int) -> tuple[Curve, ...]:
    """Returns the curves of a figure of box plots, at the layers that were read off."""
    depth = np.array(figure["layers"]) / layers
    # Quartiles that were not measured are null, which becomes NaN.
    parts = {model: {part: np.array(row, float) for part, row in figure[model].items()} for model in MODELS}
    return tuple(Curve(model, depth, own["median"], own["q1"], own["q3"]) for model, own in parts.items())


def _spans(sections: dict[str, Sequence[int]], layers: int) -> dict[str, tuple[float, float]]:
    """Returns where sections of whole layers begin and end on relative depth: halfway between two layers."""
    return {part: ((first - 0.5) / layers, (last + 0.5) / layers) for part, (first, last) in sections.items()}


def run_panels(run: mossa.Run) -> dict[str, Panel]:
    """Returns the run's panels: a key of `ROWS` -> panel.

    Raises:
      Refusal: 3 if a table is damaged.
    """
    name = shorten(run.config.name, 22)
    sections, why_none = _sections(run)
    own = _as_in_paper(run.cka.query("control == task and estimator == 'biased' and experimental in @MODELS"))
    mixture, unseen = own[~own.held_out], own[own.held_out]
    seen, new = mixture.task.nunique(), unseen.task.nunique()
    dimensions, limit, dimensions_note = _dimensions(run)
    readability, readability_note = _readability(run)
    return {
        "mixture": Panel(f"{name}: {_count(seen)} of the mixture", _quartiles(mixture), sections, why_none),
        "unseen": Panel(
            f"{name}: {_count(new, 'unseen ')}",
            _quartiles(unseen),
            absent="" if new else "This run holds out no task.",
        ),
        "dimensions": Panel(
            f"{name}: dimensions for 99 % of variance",
            dimensions,
            sections,
            dimensions_note,
            "" if dimensions else "This run has no results/spectrum (analyse.spectrum).",
            limit,
        ),
        "readability": Panel(
            f"{name}: correlation with readability",
            readability,
            sections,
            readability_note,
            "" if readability else "This run has no correlation with readability (analyse.correlates).",
        ),
    }


def _as_in_paper(table: pd.DataFrame) -> pd.DataFrame:
    """Keeps the layers that the paper has: outputs of all blocks but the last, and the state behind the final norm."""
    last = table.depth.max() - 1
    return table[(table.depth > 0) & (table.depth != last)]


def _quartiles(table: pd.DataFrame) -> tuple[Curve, ...]:
    """Returns median and quartiles over tasks at each layer, for both models; nothing without rows."""
    curves = []
    for model in MODELS:
        groups = table[table.experimental == model].groupby("relative_depth").cka
        if groups.ngroups:
            # [3, k], undefined cells left out.
            low, middle, high = groups.quantile([0.25, 0.5, 0.75]).unstack().to_numpy(float).T
            curves.append(Curve(model, np.array(sorted(groups.groups), float), middle, low, high))
    return tuple(curves)


def _dimensions(run: mossa.Run) -> tuple[tuple[Curve, ...], float | None, str]:
    """Returns the curves of figure 5, the highest share that the number of prompts allows, and a note on it."""
    if "spectrum" not in run.tables:
        return (), None, ""
    table = _as_in_paper(run.spectrum.query("not held_out and model in @MODELS"))
    width = int(run.data["fingerprints"]["architecture"]["hidden"])
    curves = []
    for model in MODELS:
        means = table[table.model == model].groupby("relative_depth").components_99.mean()
        curves.append(Curve(model, means.index.to_numpy(float), means.to_numpy(float) / width))
    limit = (int(table.n.max()) - 1) / width
    note = f"mean over tasks, as a share of {width:,}; a task's n = {_range(table.n)} prompts fill n - 1 at most"
    return tuple(curves), limit if limit < 1 else None, note


def _readability(run: mossa.Run) -> tuple[tuple[Curve, ...], str]:
    """Returns the curves of figure 6, and a note on the tasks that count."""
    if "correlates" not in run.tables:
        return (), ""
    table = _as_in_paper(run.correlates.query("estimator == 'biased' and experimental in @MODELS"))
    curves = []
    for measure in MEASURES:
        for model in MODELS:
            rows = table[(table.correlate == measure) & (table.experimental == model)].sort_values("relative_depth")
            if rows.r.notna().any():
                depth, values = rows.relative_depth.to_numpy(float), rows.r.to_numpy(float)
                curves.append(Curve(model, depth, values, measure=measure))
    if not curves:
        return (), ""
    whose = " with a competent specialist" if bool(table.competent_only.all()) else ""
    return tuple(curves), f"{_count(int(table.n_tasks.max()))} of the mixture{whose}"


def _sections(run: mossa.Run) -> tuple[dict[str, tuple[float, float]], str]:
    """Returns the sections that a finding of the run states, or in words that there are none."""
    sections = run.analysis["sections"]
    layers = len(run.cka.layer.cat.categories) - 2
    if not sections["is_transition"]:
        return {}, "the findings state no sections"
    return _spans({part: sections[part] for part in SECTION_COLOURS if sections[part]}, layers), ""


def _count(number: int, kind: str = "") -> str:
    return f"{number} {kind}{'task' if number == 1 else 'tasks'}"


def _range(values: pd.Series) -> str:
    least, most = int(values.min()), int(values.max())
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def caption(run: mossa.Run) -> str:
    """Says what both columns have in common, and what not."""
    own = run.cka.query("control == task")
    pool = "" if run.config.compare.pool == "last" else f" States are {run.config.compare.pool!r} here, 'last' there."
    return (
        f"Lines are medians over tasks (figures 2 and 7), bands the middle half. CKA is the biased estimate on both "
        f"sides, as in the paper; it is higher the fewer prompts there are for the width, so levels of the two sides "
        f"do not compare: the run has {_range(own.n)} prompts per task, the paper up to 10,000. The last point is the "
        f"state behind the final norm.{pool} Sections: the paper's by eye, the run's by its findings (debiased CKA). "
        f"The paper's values were measured on its images, at the layers with a dot, to about 0.01."
    )


def draw(left: dict[str, Panel], right: dict[str, Panel], title: str, text: str) -> Figure:
    """Draws both columns.

    Args:
      left: the paper's panels.
      right: the run's panels, with the same keys.
      title: of the whole figure.
      text: the caption.

    Returns:
      A matplotlib figure.
    """
    from mossa_jax.report.drawing.style import figure_style, new_figure

    with figure_style():
        figure = new_figure(10, 13)
        rows = figure.subplots(len(ROWS), 2, sharex=True, sharey="row")
        for axes, (name, label) in zip(rows, ROWS.items(), strict=True):
            axes[0].set_ylabel(label)
            for ax, panels in zip(axes, (left, right), strict=True):
                _draw_panel(ax, panels[name], panels is left, names_sections=name == "mixture")
            if name in ("mixture", "unseen"):
                axes[0].set_ylim(0, 1.02)
            elif name == "dimensions":
                axes[0].set_ylim(bottom=0)
        for ax in rows[-1]:
            ax.set_xlabel("relative depth (layer / layers)")
            ax.set_xlim(0, 1.02)
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        _add_legends(rows[0, 0], rows[-1, 0])
        figure.supxlabel(_wrapped(text), x=0.01, ha="left", fontsize=8)
        # Places are settled while the style holds.
        figure.canvas.draw()
    return figure


def _draw_panel(ax: Axes, panel: Panel, is_paper: bool, names_sections: bool) -> None:
    ax.set_title(panel.title, pad=16)
    ax.text(0, 1.015, panel.note, transform=ax.transAxes, va="bottom", fontsize=_SMALL, color=_MUTED)
    for part, (begin, end) in panel.sections.items():
        end = min(end, 1.0)
        ax.axvspan(begin, end, color=SECTION_COLOURS[part], alpha=0.12, linewidth=0)
        if names_sections:
            place = ((begin + end) / 2, 0.02)
            ax.annotate(part, place, xycoords=("data", "axes fraction"), ha="center", fontsize=_SMALL)
    if panel.absent:
        ax.text(0.5, 0.5, panel.absent, transform=ax.transAxes, ha="center", va="center", wrap=True)
        return
    for curve in panel.curves:
        colour = MODEL_COLOURS[curve.model]
        marker = "o" if is_paper and curve.low is not None else ""
        dashes = _DASHES[curve.measure]
        ax.plot(curve.depth, curve.values, color=colour, linestyle=dashes, marker=marker, markersize=3, linewidth=1.6)
        if curve.low is not None and curve.high is not None:
            known = np.isfinite(curve.low)
            band = (curve.depth[known], curve.low[known], curve.high[known])
            ax.fill_between(*band, color=colour, alpha=0.2, linewidth=0)
    if any(curve.measure for curve in panel.curves):
        ax.axhline(0, color=_MUTED, linewidth=0.7)
    if panel.limit is not None:
        ax.axhline(panel.limit, color=_MUTED, linewidth=1, linestyle=":")
        ax.annotate("n - 1", (0.02, panel.limit), va="bottom", fontsize=_SMALL)


def _add_legends(levels: Axes, readability: Axes) -> None:
    """Says what colours mean, below the curves of figure 2, and what dashes mean, above those of figure 6."""
    from matplotlib.lines import Line2D

    models = [Line2D([], [], color=MODEL_COLOURS[model], label=_NAMES[model]) for model in MODELS]
    levels.legend(handles=models, loc="lower left", bbox_to_anchor=(0.04, 0.1))
    measures = [Line2D([], [], color=_MUTED, ls=_DASHES[measure], label=name) for measure, name in MEASURES.items()]
    low, high = readability.get_ylim()
    readability.set_ylim(low, high + 0.2 * (high - low))
    readability.legend(handles=measures, loc="upper left", bbox_to_anchor=(0.04, 0.98))


def _wrapped(text: str, width: int = 165) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draws the paper's figures beside those of a finished run.")
    parser.add_argument("run", help="run folder, or a variant of one")
    parser.add_argument("--out", default="paper_figures.png", help="file to write: .png, .svg or .pdf (%(default)s)")
    return parser.parse_args(words)


def compare_with_paper(folder: str, out: str) -> list[str]:
    """Draws the figure into a file.

    Args:
      folder: of a finished run.
      out: file to write; its ending says the format.

    Returns:
      A line for every panel of the run that stays empty.

    Raises:
      Refusal: 2 for a file that cannot be written; 3 for what is no finished run.
    """
    path = user_path(out, "--out")
    if Path(path).suffix.lower() not in FORMATS:
        raise Refusal(BAD_CONFIG, f"--out={out}: the ending is none of {', '.join(FORMATS)}; name such a file")
    check_output(path, "--out", "file")
    run = mossa.Run(folder)
    if not run.is_finished:
        raise Refusal(
            BAD_INPUT, f"{folder} is not finished: it has no report.html; mossa run --workdir={folder} continues it"
        )
    paper = read_paper()
    panels = run_panels(run)
    name, base = shorten(run.config.name), shorten(Path(run.config.base).name)
    title = f"The paper's figures, and those of run {name} (base {base})"
    figure = draw(paper_panels(paper), panels, title, caption(run))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)
    return [f"left empty: {panel.title}. {panel.absent}" for panel in panels.values() if panel.absent]


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    arguments = _arguments(words)
    try:
        for line in compare_with_paper(arguments.run, arguments.out):
            print(line)
    except Exception as error:
        if (refusal := explain(error)) is None:
            raise
        print(f"error: {refusal}", file=sys.stderr)
        return refusal.code
    print(f"Figure: {arguments.out}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
