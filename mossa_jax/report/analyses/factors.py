"""The section of the page on what similarities are made of: template, answer, item, rest; and what is left within."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.findings.curves import HEADLINE
from mossa_jax.findings.factors import defined_tasks, find_factors, layer_parts, parts_sentence
from mossa_jax.findings.json_types import to_json_types
from mossa_jax.findings.layer_means import layer_means, sound_rows, spread
from mossa_jax.report.analyses import words
from mossa_jax.report.analyses.section import AnalysisSection
from mossa_jax.report.drawing import figure_elements as elements
from mossa_jax.report.inputs import ReportInputs
from mossa_jax.report.palette import GREEN, ORANGE, PURPLE, SKY_BLUE, UNDEFINED, shorten
from mossa_jax.similarity.factor_sums import WITHIN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PARTS = {"answer": ORANGE, "template": SKY_BLUE, "item": GREEN, "rest": UNDEFINED}
"""Factor -> its colour, in the order in which parts are stacked."""

_MODELS = {PRETRAINED: "Pre-trained", TUNED: "Multi-task (E)"}
_LEVELS = {
    "none": ("all prompts", "#222222", "-", "o"),
    "template": ("prompts of one template", SKY_BLUE, "--", "s"),
    "answer": ("prompts with one answer", ORANGE, "-", "D"),
    "both": ("prompts of one template with one answer", PURPLE, ":", "^"),
}
"""What rows are centred within -> name, colour, line and marker."""


def _found(inputs: ReportInputs) -> dict[str, Any]:
    seed, draws = words.random_of(inputs)
    half = inputs.analysis["half"]["layers"]
    return find_factors(inputs.analyses, words.incompetent(inputs), half, seed, draws)


def _sentences(inputs: ReportInputs) -> list[str]:
    found = _found(inputs)
    if not found["measured"]:
        return ["No competent task of the mixture was split."]
    parts, within = found["parts"], found["within"]
    sentences = [
        f"In {inputs.analysis['half']['name']}, the largest parts of CKA with the specialists are "
        f"{_largest(parts, PRETRAINED)} for the base, and {_largest(parts, TUNED)} for E "
        f"(means over {words.units(parts['answer'][TUNED])} of {words.counted(found['n_tasks'], 'competent task')}). "
        f"{parts_sentence(to_json_types(found))}"
    ]
    change = within["answer"]["change"]
    if change["n_tasks"]:
        both = within["both"]["change"]
        beside = f"; with the same template and answer it is {words.interval(both)}" if both["n_tasks"] else ""
        sentences.append(
            f"Among prompts with the same answer the change is {words.interval(change)}, where it is "
            f"{words.interval(within['none']['change'])} among all prompts{beside} "
            f"({words.counted(change['n_tasks'], 'task')}, {words.units(change)})."
        )
    notes = inputs.analyses["factors"]
    kinds = notes.groupby("answer")["task"].nunique()
    stands = {"first token": "the first token in which answers differ", "embedding": "the base's embedding of it"}
    texts = [f"in {words.counted(int(kinds[kind]), 'task')} {text}" for kind, text in stands.items() if kind in kinds]
    if texts:
        sentences.append(f"Where few prompts have equal answers, something else stands for one: {', '.join(texts)}.")
    lost = notes[notes["note"].str.contains("cannot be told", na=False)].groupby("factor")["task"].nunique()
    if len(lost):
        counts = " and ".join(f"the {name} in {words.counted(int(count), 'task')}" for name, count in lost.items())
        sentences.append(
            f"A factor with nearly as many levels as prompts cannot be told from the rest and counts as rest: {counts}."
        )
    if found["left_out"]:
        reasons = pd.Series(found["left_out"]).value_counts()
        why = "; ".join(f"{words.counted(int(count), 'task')}: {reason}" for reason, count in reasons.items())
        sentences.append(f"Not measured within the answer: {why}.")
    return sentences


def _largest(parts: Mapping[str, Any], model: str, count: int = 2) -> str:
    means = {name: parts[name][model] for name in _PARTS if np.isfinite(parts[name][model]["mean"])}
    order = sorted(means, key=lambda name: -abs(means[name]["mean"]))[:count]
    return " and ".join(f"{name} {words.interval(means[name], signed=False)}" for name in order) or "undefined"


def _draw(inputs: ReportInputs) -> Figure:
    table, left_out = inputs.analyses["factors"], words.incompetent(inputs)
    figure = elements.new_figure(14.0, 4.4)
    panels = figure.subplots(1, 3, width_ratios=[1, 1, 1.05])
    panels[1].sharey(panels[0])
    drawn = [_draw_parts(axes, table, left_out, model) for axes, model in zip(panels, _MODELS, strict=False)]
    if any(drawn):
        panels[0].set_ylabel(f"CKA with the task's specialist ({HEADLINE})")
        handles, labels = panels[drawn.index(True)].get_legend_handles_labels()
        order = [labels.index(name) for name in (*_PARTS, "whole, with 95 % interval")]
        figure.legend(
            [handles[at] for at in order],
            [labels[at] for at in order],
            loc="outside lower left",
            ncols=5,
            fontsize=8,
            title="parts, stacked from zero; negative ones below",
            title_fontsize=8,
            alignment="left",
        )
    _draw_changes(panels[2], inputs, left_out)
    return figure


def _draw_parts(axes: Axes, table: pd.DataFrame, left_out: list[str], model: str) -> bool:
    """Stacks the parts of one model at every layer; returns whether any is defined."""
    layers, means = layer_parts(table, left_out, model)
    axes.set_title(f"{_MODELS[model]}: what its similarity is made of")
    if not any(np.isfinite(each.mean).any() for each in means.values()):
        elements.empty_panel(axes, "No part is defined.")
        return False
    x = np.arange(len(layers))
    above, below = np.zeros(len(layers)), np.zeros(len(layers))
    for name, colour in _PARTS.items():
        values = np.nan_to_num(means[name].mean)
        start = np.where(values >= 0, above, below)
        axes.bar(x, values, 0.82, bottom=start, color=colour, label=name, lw=0)
        above, below = above + np.maximum(values, 0), below + np.minimum(values, 0)
    rows = sound_rows(table, left_out)
    rows = rows[(rows["experimental"] == model) & (rows["factor"] == "rest")]
    whole = layer_means(*spread(rows, "whole", layers))
    errors = np.abs(np.stack([whole.mean - whole.low, whole.high - whole.mean]))
    axes.errorbar(
        x, whole.mean, yerr=np.nan_to_num(errors), color="#222222", lw=0, elinewidth=1, marker="o", ms=3.5,
        label="whole, with 95 % interval",
    )  # fmt: skip
    axes.axhline(0, color="#666666", lw=0.8)
    axes.grid(axis="y", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    elements.layer_axis(axes, layers, label=False, max_ticks=16)
    axes.set_xlabel("layer")
    return True


def _draw_changes(axes: Axes, inputs: ReportInputs, left_out: list[str]) -> None:
    """Draws the change over layers: of all prompts, and within template, answer and both."""
    within = sound_rows(inputs.analyses["within"], left_out)
    layers, _ = layer_parts(inputs.analyses["factors"], left_out, TUNED)
    half = set(inputs.analysis["half"]["layers"])
    tasks, _ = defined_tasks(within[within["layer"].astype(str).isin(half)])
    rows = within[within["task"].isin(tasks) & (within["experimental"] == TUNED)]
    axes.set_title("What tuning adds: E less base")
    if rows.empty:
        elements.empty_panel(axes, "In no competent task do enough prompts\nhave the same answer.")
        return
    x = np.arange(len(layers))
    for at, name in enumerate(WITHIN):
        label, colour, style, marker = _LEVELS[name]
        means = layer_means(*spread(rows[rows["within"] == name], "change", layers))
        if not np.isfinite(means.mean).any():
            continue
        axes.plot(x, means.mean, color=colour, ls=style, marker=marker, ms=3.5, lw=1.6, label=label)
        if name in ("none", "answer"):
            axes.fill_between(x, means.low, means.high, color=colour, alpha=0.18 if at else 0.12, lw=0)
    axes.axhline(0, color="#666666", lw=0.8)
    axes.grid(axis="y", color="#dddddd", lw=0.6)
    elements.layer_axis(axes, layers, label=False, max_ticks=16)
    axes.set(xlabel="layer", ylabel="change of CKA")
    axes.figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower right",
        ncols=2,
        fontsize=8,
        title=f"{words.counted(len(tasks), 'task')}; bands: 95 % intervals over clusters",
        title_fontsize=8,
        alignment="left",
    )


def _draw_tasks(inputs: ReportInputs) -> Figure:
    """Draws the change of every task, for all prompts and within the answer, with intervals."""
    rows = _found(inputs).get("task_changes", [])
    figure = elements.new_figure(9.0, max(2.4, 1.3 + 0.26 * len(rows)))
    axes = figure.subplots()
    if not rows:
        elements.empty_panel(axes, "In no competent task do enough prompts have the same answer.")
        return figure
    y = np.arange(len(rows))[::-1]
    for name, shift in (("none", 0.14), ("answer", -0.14)):
        label, colour, _, marker = _LEVELS[name]
        mean, low, high = (np.asarray([row[name][key] for row in rows]) for key in ("mean", "low", "high"))
        axes.errorbar(
            mean, y + shift, xerr=np.stack([mean - low, high - mean]), color=colour, lw=0, elinewidth=1.3,
            marker=marker, ms=4.5, label=label,
        )  # fmt: skip
    clusters = [row["cluster"] for row in rows]
    for at, (cluster, after) in enumerate(itertools.pairwise(clusters)):
        if cluster != after:
            axes.axhline(y[at] - 0.5, color="#dddddd", lw=0.8)
    axes.axvline(0, color="#666666", lw=0.8)
    axes.set_yticks(y, [shorten(row["task"]) for row in rows], fontsize=8)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.grid(axis="x", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(f"E less base, change of CKA in {inputs.analysis['half']['name']}; 95 % intervals over prompts")
    axes.set_title("Each task: among all its prompts, and among those with the same answer")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=8)
    return figure


def _rows(inputs: ReportInputs) -> list[tuple[str, ...]]:
    found = _found(inputs)
    if not found["measured"]:
        return []
    groups = {f"part: {name}": found["parts"][name] for name in _PARTS}
    groups |= {f"CKA among {_LEVELS[name][0]}": found["within"][name] for name in WITHIN[1:]}
    groups = {"CKA of all prompts": found["within"]["none"]} | groups
    return [
        (
            name,
            words.interval(group[PRETRAINED], signed=False),
            words.interval(group[TUNED], signed=False),
            words.interval(group["change"]),
            str(group["change"]["n_tasks"]),
        )
        for name, group in groups.items()
    ]


SECTION = AnalysisSection(
    name="factors",
    title="What a similarity is made of",
    lead="Each similarity is split exactly: the template's part, the gold answer's given the template, the item's "
    "given both, and the rest. The state of a prompt's last token already holds the answer that comes next, so two "
    "models that both know it are similar for that reason; what is left among prompts with the same answer says what "
    "they share beyond.",
    tables=("factors", "within"),
    sentences=_sentences,
    figures={"factors": _draw, "factors_tasks": _draw_tasks},
    captions={
        "factors": "Parts of CKA that template, answer, item and rest make over layers, for the base and for E, and "
        "the change of CKA among all prompts and among those with the same template or answer",
        "factors_tasks": "Change of CKA of every task among all prompts and among prompts with the same answer",
    },
    columns=("upper half, mean over clusters [95 %]", "base", "E", "change", "tasks"),
    rows=_rows,
)
