"""The section of the page on the mean of the specialists: is E more than that, and where?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.findings.curves import HEADLINE
from mossa_jax.findings.merged import CURVES, find_merged
from mossa_jax.report.analyses import words
from mossa_jax.report.analyses.section import AnalysisSection
from mossa_jax.report.drawing import figure_elements as elements
from mossa_jax.report.inputs import ReportInputs
from mossa_jax.report.palette import PURPLE, Palette

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _curves(palette: Palette) -> dict[str, tuple[str, str]]:
    """Returns colour and name of each curve, by the column that it is drawn from."""
    return {
        "tuned": (palette.models[TUNED], "E"),
        "cka": (PURPLE, "mean of the specialists"),
        "pretrained": (palette.models[PRETRAINED], "base"),
    }


def _found(inputs: ReportInputs) -> dict[str, Any]:
    seed, draws = words.random_of(inputs)
    scores = inputs.analyses.get("merged_scores")
    return find_merged(inputs.analyses["merged"], scores, inputs.scores, words.incompetent(inputs), seed, draws)


def _sentences(inputs: ReportInputs) -> list[str]:
    found = _found(inputs)
    if not found["n_tasks"]:
        return ["No competent task of the mixture has the mean of the specialists compared."]
    upper, half = found["upper"], found["half"]
    gap = upper["difference"]
    cka = {name: words.interval(upper[name], signed=False) for name in (*CURVES.values(), "cka_tuned")}
    sentences = [
        f"In layers {half[0]} to {half[-1]} (upper half), the mean of the specialists has CKA {cka['cka']} with a "
        f"task's own specialist, E {cka['tuned']} and the base {cka['pretrained']}. E less the mean: "
        f"{words.interval(gap)} over {words.units(gap)} ({words.p_value(gap)}).",
        f"{_where(found)} The CKA of E with the mean itself is {cka['cka_tuned']} in the upper half.",
    ]
    size, cosine = (found["means"][f"update_{name}_tuned"].mean for name in ("size", "cosine"))
    if np.isfinite(size).any():
        sentences.append(
            f"The mean's update is {words.mean(size, 2)} of the size of E's, and their cosine is "
            f"{words.mean(cosine, 2)} (means over blocks)."
        )
    scored = found["scored"]
    if scored["merged"]["n_tasks"]:
        values = ", ".join(
            f"{name} {words.interval(scored[model], 2, signed=False)}"
            for model, name in (("base", "base"), ("merged", "mean"), ("tuned", "E"), ("control", "specialists"))
        )
        sentences.append(f"Information that they use, in nats per prompt: {values}.")
    return sentences


def _where(found: dict[str, Any]) -> str:
    """Says in which layers E and the mean differ."""
    if found["apart_from"]:
        return f"E is nearer to the specialists than their mean from layer {found['apart_from']} on."
    if found["upper"]["difference"]["high"] < 0:
        return "Their mean is nearer to the specialists than E there."
    return "There is no layer from which on E is nearer to the specialists than their mean."


def _draw(inputs: ReportInputs) -> Figure:
    found, curves = _found(inputs), _curves(inputs.palette)
    figure = elements.new_figure(13.0, 4.3)
    with_curves, with_gap, with_scores = figure.subplots(1, 3)
    layers, means = found["layers"], found["means"]
    x = np.arange(len(layers))
    drawn = [words.draw_means(with_curves, x, means[name], *style) for name, style in curves.items()]
    if any(drawn):
        elements.cka_range(with_curves, np.concatenate([means[name].mean for name in curves]))
        elements.layer_axis(with_curves, layers, label=False, max_ticks=16)
        with_curves.set(xlabel="layer", ylabel=f"CKA with the task's specialist ({HEADLINE})")
        with_curves.legend(fontsize=8, loc="lower left")
    else:
        elements.empty_panel(with_curves, "No competent task of the mixture was compared.")
    with_curves.set_title("Nearness to the specialists")
    if words.draw_means(with_gap, x, means["difference"], inputs.palette.scores["tuned"], "E less the mean"):
        with_gap.axhline(0, color="#888888", lw=1)
        with_gap.grid(axis="y", color="#dddddd", lw=0.6)
        elements.layer_axis(with_gap, layers, label=False, max_ticks=16)
        with_gap.set(xlabel="layer", ylabel="difference of CKA")
    else:
        elements.empty_panel(with_gap, "The difference is undefined.")
    with_gap.set_title("E less the mean of the specialists")
    _draw_scores(with_scores, found, curves)
    return figure


def _draw_scores(axes: Any, found: dict[str, Any], curves: dict[str, tuple[str, str]]) -> None:
    rows = found["information"]
    axes.set_title("What they know of the answers")
    if rows.empty or not np.isfinite(rows["merged"].to_numpy(float)).any():
        elements.empty_panel(axes, "No answers were scored.")
        return
    x = rows["control"].to_numpy(float)
    for name, (colour, label) in {
        "tuned": curves["tuned"],
        "merged": curves["cka"],
        "base": curves["pretrained"],
    }.items():
        axes.scatter(x, rows[name].to_numpy(float), s=24, color=colour, alpha=0.85, lw=0, label=label)
    ends = [min(0.0, np.nanmin(x)), np.nanmax(x) * 1.03]
    axes.plot(ends, ends, color="#888888", lw=1, ls="--", zorder=0)
    axes.text(
        ends[1], ends[1], "as much as the specialist ", ha="right", va="bottom", fontsize=7, color="#555555", rotation=0
    )
    axes.axhline(0, color="#dddddd", lw=0.8, zorder=0)
    axes.set(xlabel="information of the specialist (nats per prompt)", ylabel="information (nats per prompt)")
    axes.legend(fontsize=8, loc="upper left")


SECTION = AnalysisSection(
    name="merged",
    title="The mean of the specialists",
    lead="A model that nobody trained: the base with the mean of the updates of all specialists of the mixture. If E "
    "were just that mean, the two would be equally near to each specialist and know the answers equally well. Means "
    "over clusters of competent tasks, with 95 % intervals; one point per task and model on the right.",
    tables=("merged",),
    sentences=_sentences,
    figures={"merged": _draw},
    captions={
        "merged": "CKA of E, of the mean of the specialists and of the base with each task's specialist over layers, "
        "their difference, and the information that each uses"
    },
)
