"""The section of the page on what similarities are made of: template, answer, item, rest; and what is left within."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.findings.curves import HEADLINE, layer_order
from mossa_jax.findings.factors import defined_tasks, find_factors, layer_parts, parts_sentence
from mossa_jax.findings.json_types import to_json_types
from mossa_jax.findings.layer_means import LayerMeans, layer_means, sound_rows, spread
from mossa_jax.findings.wording import counted
from mossa_jax.report.analyses import marks, words
from mossa_jax.report.analyses.section import AnalysisSection
from mossa_jax.report.charts.grammar import Axis, Bars, Chart, Mark, Panel, Points, View
from mossa_jax.report.charts.parts import cka_axis, layer_axis, lines, section_spans
from mossa_jax.report.inputs import ReportInputs
from mossa_jax.report.numbers import with_minus
from mossa_jax.report.palette import GREEN, ORANGE, PURPLE, SKY_BLUE
from mossa_jax.similarity.factor_sums import WITHIN

_PARTS = {"answer": ORANGE, "template": SKY_BLUE, "item": GREEN, "rest": "undefined"}
"""Factor -> its role, in the order in which parts are stacked."""

_MODELS = {PRETRAINED: "Pre-trained", TUNED: "Multi-task (E)"}
_Dash = Literal["solid", "dash", "dot"]
_LEVELS: dict[str, tuple[str, str, _Dash, str]] = {
    "none": ("all prompts", "ink", "solid", "circle"),
    "template": ("prompts of one template", SKY_BLUE, "dash", "square"),
    "answer": ("prompts with one answer", ORANGE, "solid", "diamond"),
    "both": ("prompts of one template with one answer", PURPLE, "dot", "triangle"),
}
"""What rows are centred within -> name, role, line and symbol."""

_WHOLE = "whole, with 95 % interval"
_NO_EQUAL_ANSWERS = "In no competent task do enough prompts have the same answer."


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
        f"(means over {words.units(parts['answer'][TUNED])} of {counted(found['n_tasks'], 'competent task')}). "
        f"{with_minus(parts_sentence(to_json_types(found)))}"
    ]
    change = within["answer"]["change"]
    if change["n_tasks"]:
        both = within["both"]["change"]
        beside = f"; with the same template and answer it is {words.interval(both)}" if both["n_tasks"] else ""
        sentences.append(
            f"Among prompts with the same answer the change is {words.interval(change)}, where it is "
            f"{words.interval(within['none']['change'])} among all prompts{beside} "
            f"({counted(change['n_tasks'], 'task')}, {words.units(change)})."
        )
    notes = inputs.analyses["factors"]
    kinds = notes.groupby("answer")["task"].nunique()
    stands = {"first token": "the first token in which answers differ", "embedding": "the base's embedding of it"}
    texts = [f"in {counted(int(kinds[kind]), 'task')} {text}" for kind, text in stands.items() if kind in kinds]
    if texts:
        sentences.append(f"Where few prompts have equal answers, something else stands for one: {', '.join(texts)}.")
    lost = notes[notes["note"].str.contains("cannot be told", na=False)].groupby("factor")["task"].nunique()
    if len(lost):
        counts = " and ".join(f"the {name} in {counted(int(count), 'task')}" for name, count in lost.items())
        sentences.append(
            f"A factor with nearly as many levels as prompts cannot be told from the rest and counts as rest: {counts}."
        )
    if found["left_out"]:
        reasons = pd.Series(found["left_out"]).value_counts()
        why = "; ".join(f"{counted(int(count), 'task')}: {reason}" for reason, count in reasons.items())
        sentences.append(f"Not measured within the answer: {why}.")
    return sentences


def _largest(parts: Mapping[str, Any], model: str, count: int = 2) -> str:
    means = {name: parts[name][model] for name in _PARTS if np.isfinite(parts[name][model]["mean"])}
    order = sorted(means, key=lambda name: -abs(means[name]["mean"]))[:count]
    return " and ".join(f"{name} {words.interval(means[name], signed=False)}" for name in order) or "undefined"


def _charts(inputs: ReportInputs) -> list[Chart]:
    charts = [_parts_chart(inputs)]
    # The tests of the words are not drawn.
    found = find_factors(inputs.analyses, words.incompetent(inputs), inputs.analysis["half"]["layers"], draws=1)
    changes = found.get("task_changes", [])
    return [*charts, _tasks_chart(inputs, changes)] if changes else charts


def _parts_chart(inputs: ReportInputs) -> Chart:
    """Builds the stacked parts of both models, and the change within template and answer."""
    table, left_out = inputs.analyses["factors"], words.incompetent(inputs)
    layers = layer_order(table)
    parts = {model: layer_parts(table, left_out, model)[1] for model in _MODELS}
    wholes = {model: _whole(table, left_out, model, layers) for model in _MODELS}
    units = words.units_of(sound_rows(table, left_out))
    ends = [end for model in _MODELS for end in (*_stacks(parts[model])[1], wholes[model].mean)]
    axis = cka_axis(f"CKA with the task's specialist ({HEADLINE})", np.array(ends))
    axis = replace(axis, high=max(1.03, float(np.nanmax(ends)) + 0.02))
    spans = section_spans(inputs.analysis, layers)
    panels = [
        Panel(
            layer_axis(layers),
            axis,
            (*spans, *_part_marks(layers, parts[model], wholes[model], units)),
            title=f"{name}: what its similarity is made of",
            empty="No part is defined.",
        )
        for model, name in _MODELS.items()
    ]
    changes, tasks, units_within = _changes(inputs, left_out, layers)
    curves = [
        marks.mean_curve(layers, changes[name], label, role, units_within, True, dash, symbol)
        for name, (label, role, dash, symbol) in _LEVELS.items()
        if name in changes
    ]
    panels.append(
        Panel(
            layer_axis(layers),
            Axis("change of CKA", zero=True),
            (*spans, *curves),
            title="What tuning adds: E less base",
            note=counted(tasks, "task"),
            empty=_NO_EQUAL_ANSWERS,
        )
    )
    rows = {(model, f"part: {name}"): means for model in _MODELS for name, means in parts[model].items()}
    rows |= {(model, "whole"): whole for model, whole in wholes.items()}
    rows |= {("change", _LEVELS[name][0]): means for name, means in changes.items()}
    return Chart(
        name="factors",
        title="What a similarity is made of",
        caption="Parts of CKA that template, answer, item and rest make over layers, for the base and for E, stacked "
        "from zero with negative ones below, and the change of CKA among all prompts and among those with the same "
        "template or answer",
        views=(View(tuple(panels), columns=3),),
        data=marks.means_table(rows.items(), layers, ["model", "part"]),
        width=marks.panel_width(len(layers), least=4.6),
        height=3.8,
    )


def _whole(table: pd.DataFrame, left_out: list[str], model: str, layers: list[str]) -> LayerMeans:
    """Averages the whole similarity of one model over units."""
    rows = sound_rows(table, left_out)
    rows = rows[(rows["experimental"] == model) & (rows["factor"] == "rest")]
    return layer_means(*spread(rows, "whole", layers))


def _stacks(parts: Mapping[str, LayerMeans]) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Stacks parts from zero, negative ones downwards: where each begins, and the lower and upper ends."""
    count = len(next(iter(parts.values())).mean)
    above, below = np.zeros(count), np.zeros(count)
    starts = {}
    for name in _PARTS:
        values = np.nan_to_num(parts[name].mean)
        starts[name] = np.where(values >= 0, above, below)
        above, below = above + np.maximum(values, 0), below + np.minimum(values, 0)
    return starts, (below, above)


def _part_marks(layers: list[str], parts: Mapping[str, LayerMeans], whole: LayerMeans, units: str) -> list[Mark]:
    """Builds the stacked parts of one model with the whole in front; nothing if no part is defined."""
    if not any(np.isfinite(each.mean).any() for each in parts.values()):
        return []
    starts, _ = _stacks(parts)
    places = range(len(layers))
    drawn: list[Mark] = [
        Bars(
            name=name,
            role=role,
            x=places,
            y=parts[name].mean,
            base=starts[name],
            width=0.82,
            hover=_hovers(layers, f"part: {name}", parts[name], units),
        )
        for name, role in _PARTS.items()
    ]
    whole_points = Points(
        name=_WHOLE,
        x=places,
        y=whole.mean,
        y_low=whole.low,
        y_high=whole.high,
        size=4.0,
        hover=_hovers(layers, "whole", whole, units),
    )
    return [*drawn, whole_points]


def _hovers(layers: list[str], name: str, means: LayerMeans, units: str) -> list[str]:
    return [
        lines(f"layer {layer}", marks.value_text(name, numbers, units))
        for layer, numbers in zip(layers, zip(*means, strict=True), strict=True)
    ]


def _changes(inputs: ReportInputs, left_out: list[str], layers: list[str]) -> tuple[dict[str, LayerMeans], int, str]:
    """Averages the change of all prompts, and within template, answer and both; with the tasks and units."""
    within = sound_rows(inputs.analyses["within"], left_out)
    half = set(inputs.analysis["half"]["layers"])
    tasks, _ = defined_tasks(within[within["layer"].astype(str).isin(half)])
    rows = within[within["task"].isin(tasks) & (within["experimental"] == TUNED)]
    means = {name: layer_means(*spread(rows[rows["within"] == name], "change", layers)) for name in WITHIN if len(rows)}
    defined = {name: each for name, each in means.items() if np.isfinite(each.mean).any()}
    return defined, len(tasks), words.units_of(rows)


def _tasks_chart(inputs: ReportInputs, changes: list[dict[str, Any]]) -> Chart:
    """Builds the change of every task, among all prompts and within the answer, with intervals."""
    places = np.arange(len(changes), dtype=float)
    drawn = []
    for name, shift in (("none", -0.14), ("answer", 0.14)):
        label, role, _, symbol = _LEVELS[name]
        mean, low, high = (np.array([row[name][key] for row in changes], float) for key in ("mean", "low", "high"))
        hover = [
            lines(row["task"], row["cluster"], marks.value_text(label, numbers, signed=True))
            for row, numbers in zip(changes, zip(mean, low, high, strict=True), strict=True)
        ]
        drawn.append(
            Points(
                name=label,
                role=role,
                x=mean,
                y=places + shift,
                x_low=low,
                x_high=high,
                symbol=symbol,
                size=5.0,
                hover=hover,
            )
        )
    panel = Panel(
        Axis(f"E less base, change of CKA in {inputs.analysis['half']['name']}", zero=True),
        Axis("", tuple(str(row["task"]) for row in changes), reverse=True),
        tuple(drawn),
        note="95 % intervals over prompts",
        empty=_NO_EQUAL_ANSWERS,
    )
    rows = [
        {"task": row["task"], "cluster": row["cluster"], "among": _LEVELS[name][0], **row[name]}
        for row in changes
        for name in ("none", "answer")
    ]
    return Chart(
        name="factors_tasks",
        title="Each task: among all its prompts, and among those with the same answer",
        caption="Change of CKA of every task among all prompts and among prompts with the same answer",
        views=(View((panel,)),),
        data=pd.DataFrame(rows).rename(columns={"mean": "change"}),
        width=8.0,
        height=max(2.4, 1.3 + 0.26 * len(changes)),
    )


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
    charts=_charts,
    columns=("upper half, mean over clusters [95 %]", "base", "E", "change", "tasks"),
    rows=_rows,
)
