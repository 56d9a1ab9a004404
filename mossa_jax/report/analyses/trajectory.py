"""The section of the page on when each layer settles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mossa_jax.config import TUNED
from mossa_jax.findings.curves import block_layers, layer_order
from mossa_jax.findings.trajectory import FIXED, FLOOR, convergence_summary, depth_trend, settling_by_layer
from mossa_jax.findings.units import t_interval, unit_means
from mossa_jax.report.analyses.section import AnalysisSection
from mossa_jax.report.drawing import figure_elements as elements
from mossa_jax.report.inputs import ReportInputs, left_out
from mossa_jax.report.palette import CEILING, ORANGE, layer_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONTROL = "control"
_NAMES = {TUNED: "multi-task (E)", CONTROL: "specialists"}
_DEPTHS, _SHARES = "viridis", "Blues"
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
    interval = f" [{row['low']:.0%}, {row['high']:.0%}]" if np.isfinite(row["low"]) else ""
    return f"{row['settled']:.0%}{interval}"


def _trend_sentence(trend: dict[str, float]) -> str:
    if not np.isfinite(trend["low"]):
        return "Too few tasks to say whether lower layers settle first."
    figures = f"rank correlation with depth {trend['mean']:+.2f} [{trend['low']:+.2f}, {trend['high']:+.2f}]"
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
        f"The learning rate decays: at {last['share_of_steps']:.0%} of the steps "
        f"{1 - last['share_of_rate']:.0%} of its sum is still to come. A layer that settles late may have "
        "stopped for that reason alone, so late shares are no evidence of convergence."
    )


# ---- Figures ---------------------------------------------------------------------------------------------------------


def _draw_paths(inputs: ReportInputs) -> Figure:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    table = inputs.analyses["trajectory"]
    table = table[~((table["model"] == CONTROL) & table["task"].isin(_skipped(inputs)))]
    layers = block_layers(table)
    figure = elements.new_figure(9.0, 4.0)
    panels = figure.subplots(1, 2, sharey=True)
    colours = colormaps[_DEPTHS].resampled(256)
    # The brightest end of the scale is too pale on white.
    norm = Normalize(1, max(len(layers), 2) * 1.08)
    for axes, (model, name) in zip(panels, _NAMES.items(), strict=True):
        axes.set_title(name)
        _draw_model(axes, table[table["model"] == model], layers, lambda layer: colours(norm(int(layer))))
    panels[0].set_ylabel("CKA with the model's own end")
    scale = ScalarMappable(Normalize(1, max(len(layers), 2)), colormaps[_DEPTHS].resampled(256))
    figure.colorbar(scale, ax=panels, label="layer (output of the block)", ticks=_ticks(len(layers)), pad=0.01)
    return figure


def _ticks(layers: int) -> list[int]:
    step = max(1, -(-layers // 8))
    return [1, *(layer for layer in range(step, layers + 1, step) if layer > 1)]


def _draw_model(axes: Axes, rows: pd.DataFrame, layers: list[str], colour: Any) -> None:
    """Draws the mean over clusters of each layer; the first, middle and last with 95 % intervals."""
    if not len(rows):
        elements.empty_panel(axes, "no snapshots of these models")
        return
    places = _places(rows)
    marked = {layers[0], layers[len(layers) // 2], layers[-1]}
    values = []
    for number, layer in enumerate(layers):
        own = rows[rows["layer"].astype(str) == layer]
        means, lows, highs = _over_clusters(own, places)
        # The end is at 1 by construction.
        axes.plot(range(len(places) + 1), [*means, 1.0], color=colour(layer), lw=1.6 if layer in marked else 0.9)
        values += [*means, *lows]
        if layer in marked:
            shift = (number / max(len(layers) - 1, 1) - 0.5) * 0.16
            at = np.arange(len(places)) + shift
            axes.errorbar(
                at, means, yerr=[means - lows, highs - means], fmt="none", ecolor=colour(layer), elinewidth=1.4,
                capsize=2.5,
            )  # fmt: skip
        ceiling = _over_clusters(own.assign(cka=own["ceiling"]), places[:1])[0][0]
        if np.isfinite(ceiling):
            axes.plot([len(places) + 0.08, len(places) + 0.42], [ceiling] * 2, color=colour(layer), lw=1.6)
    _label_places(axes, rows, places)
    has_ceiling = rows["ceiling"].notna().any()
    head = "ceiling" if has_ceiling else "mark"
    axes.text(len(places) + 0.25, 1.015, head, color=CEILING, fontsize=8, ha="center", va="bottom")
    if not has_ceiling:
        axes.plot([-0.4, len(places)], [FLOOR, FLOOR], color=CEILING, lw=1.0, ls="--", zorder=0)
        axes.text(len(places) + 0.25, FLOOR, f"{FLOOR}", color=CEILING, fontsize=8, ha="center", va="center")
    elements.cka_range(axes, np.asarray(values, float))


def _places(rows: pd.DataFrame) -> list[int]:
    """Returns how often the steps are halved down to each snapshot, from the earliest; the untrained model first."""
    return list(range(int(_place(rows).max()) + 1))


def _place(rows: pd.DataFrame) -> pd.Series:
    """Numbers the snapshots of each task: 0 is the untrained model, the last one is at half of the steps."""
    halvings = np.round(-np.log2(rows["share_of_steps"].where(rows["step"] > 0, np.nan).astype(float)))
    most = halvings.max() if halvings.notna().any() else 0
    return (most + 1 - halvings).fillna(0).astype(int)


def _over_clusters(rows: pd.DataFrame, places: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns mean and 95 % t interval over clusters at each place."""
    at, result = _place(rows), []
    for place in places:
        cells = rows[(at == place) & rows["cka"].notna()]
        units = unit_means(cells["cka"].to_numpy(float), list(cells["cluster"].astype(str)))
        low, high = t_interval(units)
        result.append((float(units.mean()) if len(units) else np.nan, low, high))
    means, lows, highs = np.asarray(result, float).T
    return means, lows, np.minimum(highs, 1.0)


def _label_places(axes: Axes, rows: pd.DataFrame, places: list[int]) -> None:
    at = _place(rows)
    rates = [rows[at == place]["share_of_rate"].astype(float).mean() for place in places]
    shares = ["untrained", *(f"1/{2 ** (len(places) - place)}" for place in places[1:])]
    labels = [f"{share}\n{100 * rate:.0f} %" for share, rate in zip(shares, rates, strict=True)]
    axes.set_xticks(range(len(places) + 1), [*labels, "end\n100 %"], fontsize=8)
    axes.set_xlim(-0.4, len(places) + 0.55)
    axes.set_xlabel("share of the steps\n(below it: share of the sum of learning rates)")


def _draw_settling(inputs: ReportInputs) -> Figure:
    from matplotlib import colormaps
    from matplotlib.patches import Patch

    settling, skipped = inputs.analyses["settling"], _skipped(inputs)
    settling = settling[~((settling["model"] == CONTROL) & settling["task"].isin(skipped))]
    layers = layer_order(settling)
    # Shares of a model's steps are rounded up to steps: 10 of 160 and 9 of 141 are the same sixteenth.
    rounded = settling.assign(share=_rounded(settling["settled"]))
    shares = sorted(rounded["share"].dropna().unique())
    early = [share for share in shares if share < 1]
    colours: dict[float, Any] = {
        share: colormaps[_SHARES](0.95 - 0.7 * at / max(len(early) - 1, 1)) for at, share in enumerate(early)
    }
    colours[1.0] = ORANGE
    figure = elements.new_figure(9.0, 3.6)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (model, name) in zip(panels, _NAMES.items(), strict=True):
        own = rounded[(rounded["model"] == model) & rounded["share"].notna()]
        if not len(own):
            elements.empty_panel(axes, "no snapshots of these models")
            continue
        counts = own.groupby(["layer", "share"]).size().unstack(fill_value=0).reindex(layers).fillna(0)
        below = np.zeros(len(layers))
        for share in shares:
            part = counts[share].to_numpy(float) if share in counts else np.zeros(len(layers))
            axes.bar(range(len(layers)), part, bottom=below, width=0.86, color=colours[share], lw=0)
            below = below + part
        of = "prompts of " if model == TUNED else ""
        axes.set_title(f"{name}, {of}{int(below.max())} tasks")
        elements.layer_axis(axes, layers, max_ticks=18)
        axes.set_xlabel("layer")
    panels[0].set_ylabel("tasks (without undefined cells)")
    handles = [Patch(color=colours[share], label=_share_name(share)) for share in shares]
    figure.legend(handles=handles, loc="outside right center", title="settled after", fontsize=8, title_fontsize=8)
    return figure


def _rounded(shares: pd.Series) -> pd.Series:
    """Rounds shares of steps to powers of two; 0 stays."""
    values = shares.astype(float)
    return (2.0 ** np.round(np.log2(values.where(values > 0)))).where(values > 0, values)


def _share_name(share: float) -> str:
    if share == 0:
        return "no step"
    return "not before the end" if share == 1 else f"1/{round(1 / share)} of the steps"


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
    figures={"trajectory": _draw_paths, "settling": _draw_settling},
    captions={
        "trajectory": "CKA with the model's own end over the share of its steps, a line per layer, coloured by depth, "
        "for E and for the specialists, with the ceiling of two seeds at the right",
        "settling": "Tasks by the share of the steps after which a layer settles, stacked per layer, for E and for the "
        "specialists",
    },
    columns=("layer", "E settles after", "specialists settle after"),
    rows=_rows,
)
