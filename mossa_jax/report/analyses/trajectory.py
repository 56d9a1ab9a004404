"""The section of the page on when each layer settles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mossa_jax.config import TUNED
from mossa_jax.findings.curves import block_layers, layer_order
from mossa_jax.findings.trajectory import FIXED, FLOOR, convergence_summary, depth_trend, settling_by_layer
from mossa_jax.findings.units import t_interval, unit_means
from mossa_jax.findings.wording import counted
from mossa_jax.report.analyses import marks, words
from mossa_jax.report.analyses.section import AnalysisSection
from mossa_jax.report.charts.grammar import Axis, Bars, Chart, Line, Mark, Panel, Points, Rule, View
from mossa_jax.report.charts.parts import cka_axis, layer_axis, lines, section_spans
from mossa_jax.report.inputs import ReportInputs, left_out
from mossa_jax.report.numbers import NONE, between, fixed, percent
from mossa_jax.report.palette import GREEN, ORANGE, VERMILLION, layer_label

CONTROL = "control"
_NAMES = {TUNED: "multi-task (E)", CONTROL: "specialists"}
_NO_SNAPSHOTS = "There are no snapshots of these models."
_EARLY, _LATE = "#1F5FA8", "#BBD4EA"
"""The colours of shares of the steps, from none to a half."""

_MAX_NAMES = 6


def _skipped(inputs: ReportInputs) -> list[str]:
    """Returns the tasks whose specialists are left out: those that do not use their prompts, unless all are such."""
    return [] if _are_all_left_out(inputs) else list(left_out(inputs.analysis))


def _are_all_left_out(inputs: ReportInputs) -> bool:
    """Whether no specialist that was followed uses its prompts; then they are all shown, and the page says so."""
    table = inputs.analyses["trajectory"]
    followed = set(table["task"][table["model"] == CONTROL])
    return bool(followed) and followed <= set(left_out(inputs.analysis))


# ---- Words -----------------------------------------------------------------------------------------------------------


def _sentences(inputs: ReportInputs) -> list[str]:
    settling, skipped = inputs.analyses["settling"], _skipped(inputs)
    layers = block_layers(settling)
    sentences = []
    if _are_all_left_out(inputs):
        sentences.append("None of the specialists followed here uses its prompts; they are shown all the same.")
    for model, name in _NAMES.items():
        rows = settling_by_layer(settling, model, layers, skipped).dropna(subset=["settled"])
        if not len(rows):
            continue
        first, last = rows.loc[rows["settled"].idxmin()], rows.loc[rows["settled"].idxmax()]
        tasks = (
            f"prompts of {int(rows['tasks'].max())} tasks" if model == TUNED else f"{int(rows['tasks'].max())} tasks"
        )
        sentence = (
            f"{name[0].upper()}{name[1:]} ({tasks}): layer {first['layer']} settles first, after {_share(first)} "
            f"of the steps, and layer {last['layer']} last, after {_share(last)}."
        )
        sentences.append(f"{sentence} {_trend_sentence(depth_trend(settling, model, skipped))}")
    return [*sentences, *_convergence_sentences(inputs), _scale_sentence(settling), _limit_sentence(inputs)]


def _share(row: pd.Series) -> str:
    low, high = (percent(row[end]) for end in ("low", "high"))
    interval = "" if NONE in (low, high) else f" [{low}, {high}]"
    return f"{percent(row['settled'])}{interval}"


def _trend_sentence(trend: dict[str, float]) -> str:
    if not np.isfinite(trend["low"]):
        return "Too few tasks to say whether lower layers settle first."
    mean, low, high = (fixed(trend[key], 2, True) for key in ("mean", "low", "high"))
    figures = f"rank correlation with depth {mean} [{low}, {high}]"
    if trend["low"] > 0:
        return f"Lower layers settle first ({figures})."
    if trend["high"] < 0:
        return f"Upper layers settle first ({figures})."
    return f"No order by depth is shown ({figures})."


def _convergence_sentences(inputs: ReportInputs) -> list[str]:
    summary = convergence_summary(inputs.analyses, _skipped(inputs))
    if summary is None:
        return []
    late = summary["unconverged"]
    if late:
        named = "; ".join(f"{name}: {summary['reasons'][name]}" for name in late[:_MAX_NAMES])
        more = f"; and {len(late) - _MAX_NAMES} more, in results/convergence" if len(late) > _MAX_NAMES else ""
        sentences = [f"Not converged, {len(late)} of {summary['specialists']} specialists: {named}{more}."]
    else:
        sentences = [f"All {summary['specialists']} specialists have converged by this measure."]
    return sentences + ([f"E has not converged: {summary['tuned']}."] if summary["tuned"] else [])


def _scale_sentence(settling: pd.DataFrame) -> str:
    known = settling[settling["settled"].notna()]
    fixed = [name for model, name in _NAMES.items() if (known[known["model"] == model]["against"] == FIXED).any()]
    rest = f" Without a second seed the mark is {FLOOR} ({', '.join(fixed)})." if fixed else ""
    return (
        "A layer has settled at the first snapshot from which its states stay as near to those of the end as those of "
        f"another seed's end are.{rest}"
    )


def _limit_sentence(inputs: ReportInputs) -> str:
    table = inputs.analyses["trajectory"]
    last = table[table["step"] > 0].groupby(["task", "model"])[["share_of_steps", "share_of_rate"]].max().median()
    if not np.isfinite(last["share_of_steps"]):
        return "No model has enough steps for a snapshot on its way."
    return (
        f"The learning rate decays: at {percent(last['share_of_steps'])} of the steps "
        f"{percent(1 - last['share_of_rate'])} of its sum is still to come. A layer that settles late may have "
        "stopped for that reason alone, so late shares are no evidence of convergence."
    )


# ---- Charts ----------------------------------------------------------------------------------------------------------


def _charts(inputs: ReportInputs) -> list[Chart]:
    charts = [_paths_chart(inputs), _settling_chart(inputs)]
    return [*charts, _convergence_chart(inputs)] if len(inputs.analyses["convergence"]) else charts


def _sound(inputs: ReportInputs, table: str) -> pd.DataFrame:
    """Returns the rows of E, and those of the specialists that are not left out."""
    rows = inputs.analyses[table]
    return rows[~((rows["model"] == CONTROL) & rows["task"].isin(_skipped(inputs)))]


def _paths_chart(inputs: ReportInputs) -> Chart:
    """Builds CKA with the model's own end over its steps, a line per layer."""
    table = _sound(inputs, "trajectory")
    layers = block_layers(table)
    parts, panels = [], []
    for model, name in _NAMES.items():
        rows = table[table["model"] == model]
        means = _path_means(rows, layers)
        parts.append(means.assign(model=name))
        panels.append(_paths_panel(rows, means, layers, name))
    return Chart(
        name="trajectory",
        title="How near each layer is to its own end, on the way there",
        caption="CKA with the model's own end over the share of its steps, a line per layer, coloured by depth, for E "
        "and for the specialists, with the ceiling of two seeds at the right",
        views=(View(tuple(panels), columns=2),),
        data=pd.concat(parts, ignore_index=True),
        width=5.6,
        height=3.8,
    )


def _path_means(rows: pd.DataFrame, layers: list[str]) -> pd.DataFrame:
    """Averages over clusters: a row per layer and snapshot, and one at the end with the ceiling."""
    result = []
    places = _places(rows) if len(rows) else []
    shares = ["untrained", *(f"1/{2 ** (len(places) - place)}" for place in places[1:])]
    for layer in layers if places else []:
        own = rows[rows["layer"].astype(str) == layer]
        for place, share, *numbers in zip(places, shares, *_over_clusters(own, places), strict=True):
            result.append((layer, place, share, *numbers))
        # The end is at 1 by construction.
        result.append((layer, len(places), "end", 1.0, np.nan, np.nan))
        ceiling = _over_clusters(own.assign(cka=own["ceiling"]), places[:1])
        result.append((layer, len(places) + 1, "ceiling", *(float(each[0]) for each in ceiling)))
    return pd.DataFrame(result, columns=["layer", "place", "steps", "cka", "low", "high"])


def _paths_panel(rows: pd.DataFrame, means: pd.DataFrame, layers: list[str], name: str) -> Panel:
    if not len(rows):
        return Panel(Axis("share of the steps"), Axis("CKA with the model's own end"), (), name, empty=_NO_SNAPSHOTS)
    places, units = _places(rows), words.units_of(rows)
    rates = [rows[_place(rows) == place]["share_of_rate"].astype(float).mean() for place in places]
    names = tuple(means[means["layer"] == layers[0]]["steps"])
    texts = [f"{percent(rate)} of the sum of learning rates" for rate in rates] + [""] * 2
    marked = {layers[0], layers[len(layers) // 2], layers[-1]}
    has_ceiling = bool(rows["ceiling"].notna().any())
    drawn: list[Mark] = []
    if not has_ceiling:
        names = names[:-1]
        drawn.append(Rule(role="ceiling", at=FLOOR, dash="dash", label=f"mark {FLOOR}"))
    for layer, colour in zip(layers, marks.depth_colours(len(layers)), strict=True):
        own = means[means["layer"] == layer]
        columns = own["place"], own["cka"], own["low"], own["high"]
        hover = [
            lines(f"layer {layer}, {step}", text, marks.value_text("CKA with its own end", numbers, units))
            for step, text, (_, *numbers) in zip(own["steps"], texts, zip(*columns, strict=True), strict=True)
        ]
        x, y, low, high = (column.to_numpy(float) for column in columns)
        label = f"layer {layer}" if layer in marked else ""
        path, on_the_way = slice(0, len(places) + 1), slice(0, len(places))
        drawn.append(
            Line(name=label, role=colour, x=x[path], y=y[path], width=1.8 if label else 1.0, hover=hover[path])
        )
        if label:
            shift = 0.08 * (list(layers).index(layer) / max(len(layers) - 1, 1) * 2 - 1)
            drawn.append(
                Points(
                    role=colour,
                    x=x[on_the_way] + shift,
                    y=y[on_the_way],
                    y_low=low[on_the_way],
                    y_high=high[on_the_way],
                    size=3.0,
                    hover=hover[on_the_way],
                )
            )
        if has_ceiling:
            drawn.append(Points(role=colour, x=x[-1:], y=y[-1:], symbol="dash", size=12.0, hover=hover[-1:]))
    return Panel(
        Axis("share of the steps", names),
        cka_axis("CKA with the model's own end", means[["cka", "low"]].to_numpy(float)),
        tuple(drawn) if means["cka"][means["steps"] != "end"].notna().any() else (),
        title=name,
        note=f"mean over {units}",
        empty=_NO_SNAPSHOTS,
    )


def _places(rows: pd.DataFrame) -> list[int]:
    """Returns how often the steps are halved down to each snapshot, from the earliest; the untrained model first."""
    return list(range(int(_place(rows).max()) + 1))


def _place(rows: pd.DataFrame) -> pd.Series:
    """Numbers the snapshots of each task: 0 is the untrained model, the last one is at half of the steps."""
    halvings = np.round(-np.log2(rows["share_of_steps"].where(rows["step"] > 0, np.nan).astype(float)))
    most = halvings.max() if halvings.notna().any() else 0
    return (most + 1 - halvings).fillna(0).astype(int)


def _over_clusters(rows: pd.DataFrame, places: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns mean and 95 % t interval over clusters at each place."""
    at, result = _place(rows), []
    for place in places:
        cells = rows[(at == place) & rows["cka"].notna()]
        units = unit_means(cells["cka"].to_numpy(float), list(cells["cluster"].astype(str)))
        low, high = t_interval(units)
        result.append((float(units.mean()) if len(units) else np.nan, low, high))
    means, lows, highs = np.asarray(result, float).T
    return means, lows, np.minimum(highs, 1.0)


def _settling_chart(inputs: ReportInputs) -> Chart:
    """Builds the numbers of tasks by the share of the steps after which a layer settles, stacked per layer."""
    settling = _sound(inputs, "settling")
    layers = layer_order(settling)
    # Shares of a model's steps are rounded up to steps: 10 of 160 and 9 of 141 are the same sixteenth.
    rounded = settling.assign(share=_rounded(settling["settled"]), layer=settling["layer"].astype(str))
    rounded = rounded[rounded["share"].notna()]
    counts = rounded.groupby(["model", "layer", "share"]).size()
    roles = _share_roles(sorted(rounded["share"].unique()))
    spans = section_spans(inputs.analysis, layers)
    panels, rows = [], []
    for model, name in _NAMES.items():
        drawn: list[Mark] = []
        below = np.zeros(len(layers))
        for share, role in roles.items():
            tasks = np.array([counts.get((model, layer, share), 0) for layer in layers], float)
            label = _share_name(share)
            hover = [
                f"layer {layer}\n{label}: {counted(int(n), 'task')}" for layer, n in zip(layers, tasks, strict=True)
            ]
            bars = Bars(
                name=label,
                role=role,
                x=range(len(layers)),
                y=tasks,
                base=below,
                width=0.86,
                hover=hover,
            )
            drawn.append(bars)
            below = below + tasks
            rows.append(pd.DataFrame({"model": name, "layer": layers, "settled_after": share, "tasks": tasks}))
        of = "prompts of " if model == TUNED else ""
        panels.append(
            Panel(
                layer_axis(layers),
                Axis("tasks (without undefined cells)", low=0.0),
                (*spans, *drawn) if below.any() else (),
                title=name,
                note=f"{of}{counted(int(below.max(initial=0)), 'task')}",
                empty=_NO_SNAPSHOTS,
            )
        )
    return Chart(
        name="settling",
        title="After which share of the steps each layer settles",
        caption="Tasks by the share of the steps after which a layer settles, stacked per layer, for E and for the "
        "specialists",
        views=(View(tuple(panels), columns=2),),
        data=pd.concat(rows, ignore_index=True)
        if rows
        else pd.DataFrame(columns=["model", "layer", "settled_after", "tasks"]),
        width=marks.panel_width(len(layers), least=4.6),
        height=3.4,
    )


def _share_roles(shares: list[float]) -> dict[float, str]:
    """Returns the colour of each share, from dark for none; the end stands out."""
    early = [share for share in shares if share < 1]
    roles = dict(zip(early, marks.blend(_EARLY, _LATE, len(early)), strict=True))
    return roles | {share: ORANGE for share in shares if share >= 1}


def _rounded(shares: pd.Series) -> pd.Series:
    """Rounds shares of steps to powers of two; 0 stays."""
    values = shares.astype(float)
    return (2.0 ** np.round(np.log2(values.where(values > 0)))).where(values > 0, values)


def _share_name(share: float) -> str:
    if share == 0:
        return "no step"
    return "not before the end" if share == 1 else f"1/{round(1 / share)} of the steps"


def _convergence_chart(inputs: ReportInputs) -> Chart:
    """Builds what tells convergence, model by model: layers that still move, and the fall of the loss."""
    table = inputs.analyses["convergence"]
    skipped = set(_skipped(inputs))
    table = table.assign(is_tuned=table["model"] == TUNED, cluster=table["cluster"].fillna("").astype(str))
    table = table.sort_values(["is_tuned", "cluster", "task"], ascending=[False, True, True]).reset_index(drop=True)
    names = tuple(_NAMES[TUNED] if row.is_tuned else str(row.task) for row in table.itertuples())
    columns = zip(names, table.drop(columns="is_tuned").to_dict("records"), strict=True)
    hover = [_convergence_text(name, row, row["task"] in skipped) for name, row in columns]
    moving = (table["moving"] / table["layers"].where(table["layers"] > 0)).to_numpy(float)
    fall, low, high = (table[column].to_numpy(float) for column in ("loss_fall", "loss_fall_low", "loss_fall_high"))
    rows = Axis("", names, reverse=True)
    groups = _convergence_groups(table, skipped)
    share = percent(table["last_share"].max()) if table["last_share"].notna().any() else NONE
    panels = (
        Panel(
            Axis(f"share of layers that still move after {share} of the steps", low=-0.02, high=1.02, percent=True),
            rows,
            (Rule(at=0.5, axis="x", dash="dot"), *_model_points(groups, moving, hover)),
            title="Layers on their way",
            empty="No snapshot was looked at.",
        ),
        Panel(
            Axis("fall of the loss in the last quarter of the steps (nats per token)", zero=True),
            rows,
            tuple(_model_points(groups, fall, hover, low, high)),
            title="The loss",
            empty="Too few losses were recorded.",
        ),
    )
    return Chart(
        name="convergence",
        title="Which models have converged",
        caption="For E and every specialist, the share of its layers that still move at the last snapshot, and the "
        "fall of its loss in the last quarter of the steps with its interval",
        views=(View(panels, columns=2),),
        data=table.drop(columns="is_tuned"),
        width=5.4,
        height=max(2.4, 1.3 + 0.2 * len(table)),
    )


def _convergence_groups(table: pd.DataFrame, skipped: set[str]) -> list[tuple[str, str, str, bool, np.ndarray]]:
    """Returns name, role and symbol of the models' marks, whether they are faint, and their places."""
    converged, is_left_out = table["converged"].astype(bool), table["task"].isin(skipped)
    return [
        ("converged", GREEN, "circle", False, np.flatnonzero(converged & ~is_left_out)),
        ("not converged", VERMILLION, "x", False, np.flatnonzero(~converged & ~is_left_out)),
        ("left out of the findings", "undefined", "circle", True, np.flatnonzero(is_left_out)),
    ]


def _model_points(
    groups: list[tuple[str, str, str, bool, np.ndarray]],
    values: np.ndarray,
    hover: list[str],
    low: np.ndarray | None = None,
    high: np.ndarray | None = None,
) -> list[Points]:
    return [
        Points(
            name=name,
            role=role,
            symbol=symbol,
            faint=is_faint,
            x=values[places],
            y=places.astype(float),
            x_low=() if low is None else low[places],
            x_high=() if high is None else high[places],
            hover=[hover[place] for place in places],
        )
        for name, role, symbol, is_faint, places in groups
        if np.isfinite(values[places]).any()
    ]


def _convergence_text(name: str, row: dict[str, Any], is_left_out: bool) -> str:
    ends = between(row["loss_fall_low"], row["loss_fall_high"], signed=True)
    interval = "" if ends == NONE else f", 95 % {ends}"
    return lines(
        name,
        row["cluster"],
        f"{row['moving']} of {row['layers']} layers still move after {percent(row['last_share'])} of the steps",
        f"fall of the loss {fixed(row['loss_fall'], signed=True)}{interval}; loss {fixed(row['loss'])}",
        "converged" if row["converged"] else f"not converged: {row['reason']}",
        "left out: its specialist does not use its prompts" if is_left_out else "",
    )


# ---- The table -------------------------------------------------------------------------------------------------------


def _rows(inputs: ReportInputs) -> list[tuple[str, ...]]:
    settling, skipped = inputs.analyses["settling"], _skipped(inputs)
    layers = layer_order(settling)
    tables = {model: settling_by_layer(settling, model, layers, skipped).set_index("layer") for model in _NAMES}
    return [
        (layer_label(layer), *(_cell(table.loc[layer]) for table in tables.values()))
        for layer in layers
        if any(np.isfinite(table.loc[layer, "settled"]) for table in tables.values())
    ]


def _cell(row: pd.Series) -> str:
    return _share(row) if np.isfinite(row["settled"]) else "undefined"


SECTION = AnalysisSection(
    name="trajectory",
    title="When each layer settles",
    lead="E and the specialists on their way: the states of their snapshots beside those of their own ends, over the "
    "prompts of some tasks. Lines are means over clusters; the first, middle and last layer have 95 % intervals.",
    tables=("trajectory", "settling", "convergence"),
    sentences=_sentences,
    charts=_charts,
    columns=("layer", "E settles after", "specialists settle after"),
    rows=_rows,
)
