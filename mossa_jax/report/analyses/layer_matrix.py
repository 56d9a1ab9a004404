"""The section of the page on every layer against every other one, and on where the base turns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.findings.curves import HEADLINE, layer_order, mean_defined
from mossa_jax.findings.layer_means import sound_rows
from mossa_jax.findings.turning import find_turning
from mossa_jax.findings.units import unit_means
from mossa_jax.report.analyses import words
from mossa_jax.report.analyses.section import AnalysisSection
from mossa_jax.report.drawing import figure_elements as elements
from mossa_jax.report.inputs import ReportInputs
from mossa_jax.report.palette import BLUE, GREEN, ORANGE, PURPLE, UNDEFINED, VERMILLION, layer_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMES = {PRETRAINED: "base", TUNED: "E", "control": "specialist"}
_PANELS = (
    (PRETRAINED, PRETRAINED),
    (TUNED, TUNED),
    ("control", "control"),
    (PRETRAINED, TUNED),
    (PRETRAINED, "control"),
    (TUNED, "control"),
)
_LINKS = {
    "departure_step": "add most to E's departure from the base",
    "change_step": "add most to the change d",
    "carried": "carry most of E's gain",
}


def _found(inputs: ReportInputs) -> dict[str, Any]:
    seed, draws = words.random_of(inputs)
    profile = inputs.analyses.get("profile")
    return find_turning(inputs.analyses["turning"], words.incompetent(inputs), seed, draws, profile=profile)


def _sentences(inputs: ReportInputs) -> list[str]:
    found = _found(inputs)
    if found["turns_at"] is None:
        return ["Where the base turns is undefined: no competent task of the mixture has its layers compared."]
    first = (
        f"Over {words.counted(found['n_tasks'], 'task')}, the base turns most at layer {found['turns_at']} (1 - CKA "
        f"with its neighbours {found['turning']:.3f}; the largest in {found['agree']} of {found['n_units']} clusters)."
    )
    sentences = [first]
    for outcome, name in _LINKS.items():
        if outcome not in found["links"]["novelty"]:
            continue
        own, beyond = (found["links"]["novelty"][outcome][kind] for kind in ("plain", "beyond_depth"))
        near = found["links"]["turning"][outcome]["plain"]
        sentences.append(
            f"Whether that foretells the blocks that {name}: mean rank correlation over layers of the "
            f"base's turn across a block {words.interval(own, 2)} over {words.units(own)} ({words.p_value(own)}), "
            f"{words.interval(beyond, 2)} with depth held constant ({words.p_value(beyond)}); of the turn from both "
            f"neighbours {words.interval(near, 2)} ({words.p_value(near)})."
        )
    return sentences


def _square(cells: pd.DataFrame, a: str, b: str, layers: list[str]) -> np.ndarray:
    """Returns the mean over clusters of CKA of two models' layers, [K, K]."""
    pair = cells[(cells["model_a"] == a) & (cells["model_b"] == b)]
    tasks = pair.drop_duplicates("task")
    squares = []
    for task in tasks["task"]:
        wide = pair[pair["task"] == task].pivot_table(index="layer_a", columns="layer_b", values="cka", dropna=False)
        values = wide.reindex(index=layers, columns=layers).to_numpy(float)
        # Only the upper half of a model against itself is stored.
        squares.append(np.where(np.isnan(values), values.T, values) if a == b else values)
    if not squares:
        return np.full((len(layers), len(layers)), np.nan)
    return mean_defined(unit_means(np.stack(squares), list(tasks["cluster"])), axis=0)


def _draw(inputs: ReportInputs) -> Figure:
    table = inputs.analyses["layers"]
    cells = sound_rows(table[table["estimator"] == HEADLINE], words.incompetent(inputs))
    figure = elements.new_figure(10.6, 10.4)
    if cells.empty:
        elements.empty_panel(figure.subplots(), "No competent task of the mixture has its layers compared.")
        return figure
    layers = layer_order(cells.rename(columns={"layer_a": "layer"}))
    found = _found(inputs)
    grid = figure.add_gridspec(3, 3, height_ratios=[1, 1, 0.72])
    panels = [figure.add_subplot(grid[row, column]) for row in range(2) for column in range(3)]
    image: Any = None
    for axes, (a, b) in zip(panels, _PANELS, strict=True):
        image = _draw_square(axes, _square(cells, a, b, layers), layers, found["turns_at"])
        axes.set_title(f"{_NAMES[a]} with itself" if a == b else f"{_NAMES[a]} and {_NAMES[b]}")
        axes.set_ylabel(f"layer, {_NAMES[a]}")
        axes.set_xlabel(f"layer, {_NAMES[b]}")
    figure.colorbar(image, ax=panels, label=f"CKA ({HEADLINE}), mean over clusters", shrink=0.55, pad=0.02)
    _draw_turning([figure.add_subplot(grid[2, column]) for column in range(3)], found)
    return figure


def _draw_square(axes: Axes, values: np.ndarray, layers: list[str], turns_at: str | None) -> Any:
    from matplotlib.colors import Normalize

    axes.patch.set(facecolor=UNDEFINED, hatch="////", edgecolor="white")
    low = min(0.0, float(np.nanmin(values, initial=0.0)))
    image = axes.imshow(np.ma.masked_invalid(values), norm=Normalize(low, 1), cmap="cividis", interpolation="nearest")
    step = max(1, -(-len(layers) // 12))
    ticks = [i for i, name in enumerate(layers) if not name.isdigit() or step == 1 or int(name) % step == 0]
    labels = [layer_label(layers[i]) for i in ticks]
    axes.set_xticks(ticks, labels, fontsize=7, rotation=90)
    axes.set_yticks(ticks, labels, fontsize=7)
    if turns_at in layers:
        # The turn lies before the layer, where its neighbours differ most.
        at = layers.index(turns_at)
        for line in (axes.axhline, axes.axvline):
            line(at, color=VERMILLION, lw=1, ls=":")
    return image


def _draw_turning(panels: list[Axes], found: dict[str, Any]) -> None:
    layers, means = found["layers"], found["means"]
    x = np.arange(len(layers))
    curves = (
        (("novelty", BLUE, "across the block"), ("turning", PURPLE, "from both neighbours")),
        (("departure_step", ORANGE, "1 - CKA(base, E)"),),
        (("change_step", GREEN, "d"),),
    )
    titles = ("How the base turns", "A block adds to 1 - CKA(base, E)", "A block adds to d (size)")
    for axes, rows, title in zip(panels, curves, titles, strict=True):
        drawn = [words.draw_means(axes, x, means[name], colour, label) for name, colour, label in rows]
        axes.set_title(title)
        if not any(drawn):
            elements.empty_panel(axes, f"{title}: undefined")
            continue
        elements.layer_axis(axes, layers, label=False, max_ticks=16)
        axes.set_xlabel("block")
        axes.axhline(0, color="#888888", lw=0.8)
        axes.grid(axis="y", color="#dddddd", lw=0.6)
        axes.set_axisbelow(True)
        if found["turns_at"] in layers:
            axes.axvline(layers.index(found["turns_at"]), color=VERMILLION, lw=1, ls=":", label="the base turns most")
        if len(rows) > 1:
            axes.legend(fontsize=7)


SECTION = AnalysisSection(
    name="layer_matrix",
    title="Layer by layer",
    lead="Every layer of the base, of E and of a task's specialist against every other one. Similar layers form "
    "squares along the diagonal; the base turns where a square ends. Below, whether tuning departs where the base "
    "turns. Means over clusters of competent tasks, with 95 % intervals.",
    tables=("layers", "turning"),
    sentences=_sentences,
    figures={"layer_matrix": _draw},
    captions={
        "layer_matrix": "Heat maps of CKA between all layers of the base, of E and of the specialists, and curves over "
        "layers of how the base turns and of what each block adds to the departure of E"
    },
)
