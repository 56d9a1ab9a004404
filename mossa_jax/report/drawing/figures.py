"""Static figures of a run, as PNG and PDF: the paper's figures 2, 3 and 7, and what a reviewer asks for beside them.

Each `draw_*` returns a matplotlib figure and never fails on absent or undefined data: a panel says what is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from etils import epath

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.findings.curves import HEADLINE, clusters_of, layer_order, task_layer_matrix
from mossa_jax.findings.trust import FDR
from mossa_jax.report.charts.parts import ceiling_values, change_matrix
from mossa_jax.report.drawing import figure_elements as elements
from mossa_jax.report.drawing.glyphs import make_drawable, say_missing
from mossa_jax.report.drawing.score_figure import draw_scores, task_label
from mossa_jax.report.inputs import ReportInputs, left_out
from mossa_jax.report.palette import DEFAULT, FAINT, FOREIGN_NAMES, MODEL_NAMES, Palette, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DIFFERENCE = "difference"


def write_figures(inputs: ReportInputs, folder: epath.PathLike) -> list[str]:
    """Draws every figure and saves it as PNG and PDF.

    Args:
      inputs: what to draw.
      folder: where to write; created if absent.

    Returns:
      Names of the figures, without suffix, in the order of the page.
    """
    folder = epath.Path(folder)
    drawings = _drawings(inputs)
    missing: set[str] = set()
    for name, draw in drawings.items():
        with elements.figure_style():
            missing |= elements.save(draw(), folder, name)
    say_missing(missing)
    return list(drawings)


def draw_figure(inputs: ReportInputs, name: str) -> Figure:
    """Draws one of the figures that `write_figures` saves.

    Args:
      inputs: what to draw.
      name: of the figure.

    Raises:
      Refusal: 2 for a name that does not exist, or whose tables are not there.
    """
    drawings = _drawings(inputs)
    if name not in drawings:
        raise Refusal(BAD_CONFIG, f"there is no figure {name!r}; there is {', '.join(drawings)}")
    with elements.figure_style():
        figure = drawings[name]()
        say_missing(make_drawable(figure))
    return figure


def _drawings(inputs: ReportInputs) -> dict[str, Callable[[], Figure]]:
    """Returns what draws each figure, by its name, in the order of the page."""
    table, analysis, palette = inputs.table, inputs.analysis, inputs.palette
    figures: dict[str, Callable[[], Figure]] = {
        "layers": lambda: draw_layers(table, analysis, palette),
        "clusters": lambda: draw_clusters(table, analysis, palette),
        "held_out": lambda: draw_held_out(table, analysis, palette),
        "heatmap": lambda: draw_heatmap(table, analysis, inputs.change, palette),
        "specificity": lambda: draw_specificity(analysis, palette),
        "estimators": lambda: draw_estimators(table),
        "training": lambda: draw_training(inputs.curves, palette),
        "scores": lambda: draw_scores(inputs.scores, analysis, palette),
    }
    return figures


def draw_layers(table: pd.DataFrame, analysis: dict[str, Any], palette: Palette = DEFAULT) -> Figure:
    """Draws box plots over tasks per layer, pre-trained against tuned (the paper's figure 2)."""
    title = "Similarity to single-task specialists, layer by layer"
    return _draw_boxes(table, analysis, False, title, "No task of the mixture has a defined cell.", palette)


def draw_held_out(table: pd.DataFrame, analysis: dict[str, Any], palette: Palette = DEFAULT) -> Figure:
    """Draws the same box plots over the tasks held out of the mixture (the paper's figure 7)."""
    reason = "No task was held out of the mixture, or none has a defined cell."
    return _draw_boxes(table, analysis, True, "Tasks held out of the mixture", reason, palette)


def _draw_boxes(
    table: pd.DataFrame, analysis: dict[str, Any], held_out: bool, title: str, reason: str, palette: Palette
) -> Figure:
    """Draws paired boxes over layers, or `reason` if nothing is defined."""
    table = _sound(table, analysis)
    layers, matrices = layer_order(table), _matrices(table, held_out)
    figure = elements.new_figure(max(7.0, min(16.0, 2.0 + 0.34 * len(layers))), 4.2)
    axes = figure.subplots()
    elements.section_bands(axes, analysis["sections"], layers, palette=palette)
    if elements.paired_boxes(axes, matrices, layers, palette):
        if not held_out:
            elements.ceiling_line(axes, _ceiling(analysis, layers), palette)
        elements.layer_axis(axes, layers)
        elements.cka_range(axes, _values(matrices))
        axes.set_ylabel(f"CKA with the task's specialist ({HEADLINE})")
        axes.set_title(f"{title} ({_tasks(len(matrices[TUNED]))})", pad=18)
        elements.model_legend(axes, palette)
    else:
        axes.clear()
        elements.empty_panel(axes, reason)
    return figure


def draw_clusters(table: pd.DataFrame, analysis: dict[str, Any], palette: Palette = DEFAULT) -> Figure:
    """Draws one panel of paired boxes per cluster, most held by pre-training first (the paper's figure 3)."""
    ranking, layers = analysis["clusters"]["ranking"], layer_order(table)
    columns = 2 if len(ranking) > 1 else 1
    rows = max(1, -(-len(ranking) // columns))
    figure = elements.new_figure(6.4 * columns if columns > 1 else 8.0, 2.3 * rows + 0.4)
    panels = figure.subplots(rows, columns, squeeze=False)
    all_values, ceiling = _values(_matrices(_sound(table, analysis), False)), _ceiling(analysis, layers)
    for axes, row in zip(panels.flat, ranking, strict=False):
        matrices = _matrices(table, False, row["tasks"])
        elements.section_bands(axes, analysis["sections"], layers, named=False, palette=palette)
        if elements.paired_boxes(axes, matrices, layers, palette):
            elements.ceiling_line(axes, ceiling, palette)
            elements.layer_axis(axes, layers, label=False, max_ticks=20)
            elements.cka_range(axes, all_values)
            axes.set_title(f"{shorten(row['cluster'], 44)} ({_tasks(len(row['tasks']))})")
        else:
            elements.empty_panel(axes, f"{shorten(row['cluster'], 44)}: no defined cell")
    for axes in list(panels.flat)[len(ranking) :]:
        axes.set_axis_off()
    if ranking:
        elements.model_legend(panels[0, 0], palette)
        figure.supxlabel("layer", fontsize=9)
        figure.supylabel(f"CKA ({HEADLINE})", fontsize=9)
    else:
        elements.empty_panel(panels[0, 0], "No cluster has competent tasks in the mixture.")
    return figure


def draw_heatmap(
    table: pd.DataFrame, analysis: dict[str, Any], change: pd.DataFrame | None = None, palette: Palette = DEFAULT
) -> Figure:
    """Draws task by layer: pre-trained, tuned and their difference, rows by cluster.

    Undefined cells are hatched, tasks that the findings leave out are greyed, and a dot marks a difference that is not
    significant at a false discovery rate of 5 %.

    Args:
      table: the results table.
      analysis: from `find`.
      change: the table `results/change`, for the dots.
      palette: colours.
    """
    from matplotlib.colors import Normalize, TwoSlopeNorm
    from matplotlib.patches import Patch

    layers, cluster_of, matrices = layer_order(table), clusters_of(table), _matrices(table, None)
    tasks = list(matrices[TUNED].index)
    held_out = set(table.loc[table["held_out"].astype(bool), "task"])
    matrices = {model: matrix.reindex(tasks) for model, matrix in matrices.items()}
    panels = {MODEL_NAMES[model]: matrices[model] for model in (PRETRAINED, TUNED)}
    panels[_DIFFERENCE] = matrices[TUNED] - matrices[PRETRAINED]
    height = max(2.8, 1.5 + 0.17 * len(tasks))
    figure = elements.new_figure(max(10.0, min(19.0, 5.0 + 0.42 * len(layers))), height)
    subplots = figure.subplots(1, 3, sharey=True)
    reasons = left_out(analysis)
    grey = [row for row, task in enumerate(tasks) if task in reasons]
    largest = np.nanmax(np.abs(panels[_DIFFERENCE].to_numpy()), initial=0.05)
    any_undefined = False
    for axes, (name, matrix) in zip(subplots, panels.items(), strict=True):
        is_difference = name == _DIFFERENCE
        norm = TwoSlopeNorm(0.0, -largest, largest) if is_difference else Normalize(0.0, 1.0)
        values = np.ma.masked_invalid(matrix.to_numpy())
        axes.patch.set(facecolor=palette.undefined, hatch="////", edgecolor="white")
        any_undefined |= bool(values.mask.any())
        cmap = "PuOr_r" if is_difference else "cividis"
        image = axes.imshow(values, aspect="auto", norm=norm, cmap=cmap, interpolation="nearest")
        figure.colorbar(image, ax=axes, location="bottom", shrink=0.8, pad=0.02, aspect=30)
        elements.layer_axis(axes, layers, label=False, max_ticks=16)
        axes.set_xlim(-0.5, len(layers) - 0.5)
        axes.tick_params(axis="x", labelsize=7)
        axes.set_title(name)
        for edge in [i for i in range(1, len(tasks)) if cluster_of[tasks[i]] != cluster_of[tasks[i - 1]]]:
            axes.axhline(edge - 0.5, color="white", lw=1.4)
        for row in grey:
            axes.axhspan(row - 0.5, row + 0.5, color="white", alpha=0.65, lw=0)
    handles: list[Any] = []
    if any_undefined:
        handles.append(Patch(facecolor=palette.undefined, hatch="////", edgecolor="white", label="undefined"))
    if change is not None and len(change):
        at = np.argwhere(change_matrix(change, "q", HEADLINE, tasks, layers) > FDR)
        handles.append(
            subplots[2].scatter(at[:, 1], at[:, 0], s=5, color="#555555", lw=0, label=f"not significant: q > {FDR}")
        )
    labels = [task_label(task, cluster_of) + (" (held out)" if task in held_out else "") for task in tasks]
    labels = [label + (" (left out)" if row in grey else "") for row, label in enumerate(labels)]
    subplots[0].set_yticks(range(len(tasks)), labels, fontsize=7)
    elements.grey_labels(subplots[0], grey)
    if grey:
        handles.append(Patch(color=FAINT, alpha=0.35, label="left out of the findings"))
    if handles:
        figure.legend(handles=handles, loc="outside upper right", fontsize=8, ncols=3)
    return figure


def draw_specificity(analysis: dict[str, Any], palette: Palette = DEFAULT) -> Figure:
    """Draws own minus twin and own minus other specialists over layers, with intervals over units."""
    figure = elements.new_figure(8.0, 3.6)
    axes = figure.subplots()
    drawn = False
    for kind, name in FOREIGN_NAMES.items():
        rows = analysis["specificity"][kind]["by_layer"]
        if not analysis["specificity"][kind]["tuned"]["n_tasks"]:
            continue
        drawn = True
        x = np.arange(len(rows))
        mean, low, high = (np.array([row[key] for row in rows], float) for key in ("mean", "low", "high"))
        axes.plot(x, mean, color=palette.foreign[kind], lw=1.8, label=name)
        axes.fill_between(x, low, high, color=palette.foreign[kind], alpha=0.2, lw=0)
        elements.layer_axis(axes, [row["layer"] for row in rows])
    if not drawn:
        elements.empty_panel(axes, "No other control was compared.")
        return figure
    axes.axhline(0.0, color="#888888", lw=1)
    axes.set(ylabel="difference of CKA (tuned model)", title="Own specialist against others")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=8)
    return figure


def draw_estimators(table: pd.DataFrame) -> Figure:
    """Draws biased against debiased CKA, one point per task and layer: what finite samples add to the biased value."""
    figure = elements.new_figure(8.6, 4.2)
    for axes, (model, name) in zip(figure.subplots(1, 2, sharey=True), MODEL_NAMES.items(), strict=True):
        x, y, n = (
            task_layer_matrix(table, model, estimator, None, column=column).to_numpy().ravel()
            for estimator, column in (("debiased", "cka"), ("biased", "cka"), ("debiased", "n"))
        )
        keep = np.isfinite(x) & np.isfinite(y)
        if not keep.any():
            elements.empty_panel(axes, f"{name}: no cell has both estimators")
            continue
        points = axes.scatter(x[keep], y[keep], c=n[keep], s=9, cmap="viridis_r", alpha=0.8, linewidths=0)
        low = min(0.0, float(x[keep].min()))
        axes.plot([low, 1], [low, 1], color="#888888", lw=1, ls="--")
        axes.set(xlabel="debiased CKA", title=name)
        figure.colorbar(points, ax=axes, label="prompts", shrink=0.8)
    figure.axes[0].set_ylabel("biased CKA")
    return figure


def draw_training(curves: pd.DataFrame, palette: Palette = DEFAULT) -> Figure:
    """Draws the training loss of the multi-task model and of every specialist."""
    figure = elements.new_figure(8.0, 3.6)
    axes = figure.subplots()
    if curves.empty:
        elements.empty_panel(axes, "No training curve was recorded.")
        return figure
    for model, rows in curves.sort_values("step").groupby("model", sort=True):
        # Further seeds of the multi-task model share its colour.
        colour = palette.scores["tuned" if str(model).startswith(f"{TUNED}.seed") else "control"]
        if model != TUNED:
            axes.plot(rows["step"], rows["loss"], color=colour, lw=0.7, alpha=0.45)
    axes.plot([], [], color=palette.scores["control"], lw=1, label="specialists (one line each)")
    tuned = curves[curves["model"] == TUNED].sort_values("step")
    axes.plot(tuned["step"], tuned["loss"], color=palette.scores["tuned"], lw=2, label="multi-task model")
    axes.set(xlabel="training step", ylabel="loss per answer token (nats)", title="Training")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    return figure


def _sound(table: pd.DataFrame, analysis: dict[str, Any]) -> pd.DataFrame:
    """Returns the rows of the tasks that the findings rest on."""
    return table[~table["task"].isin(left_out(analysis))]


def _ceiling(analysis: dict[str, Any], layers: list[str]) -> list[float | None] | None:
    values = ceiling_values(analysis, layers)
    return None if values is None else values[HEADLINE]


def _matrices(table: pd.DataFrame, held_out: bool | None, tasks: list[str] | None = None) -> dict[str, pd.DataFrame]:
    """Returns [tasks, layers] per experimental model, by the headline estimator."""
    matrices = {model: task_layer_matrix(table, model, HEADLINE, held_out) for model in MODEL_NAMES}
    return matrices if tasks is None else {model: matrix.reindex(tasks) for model, matrix in matrices.items()}


def _values(matrices: dict[str, pd.DataFrame]) -> np.ndarray:
    return np.concatenate([matrix.to_numpy().ravel() for matrix in matrices.values()])


def _tasks(number: int) -> str:
    return f"{number} task" if number == 1 else f"{number} tasks"
