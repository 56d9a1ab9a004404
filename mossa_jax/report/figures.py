"""Static figures of a run, as PNG and PDF: the paper's figures 2, 3 and 7 and what a reviewer asks for beside
them.

Each `draw_*` returns a matplotlib figure and never fails on absent or undefined data: a panel says what is
missing.
"""

import numpy as np
import pandas as pd
from etils import epath
from matplotlib import rc_context
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mossa_jax.findings.curves import HEADLINE, clusters_of, layer_order, task_layer_matrix
from mossa_jax.report import figure_elements
from mossa_jax.report.palette import MODEL_NAMES, SCORE_COLOURS, SCORE_NAMES, UNDEFINED, shortened


def _pair(table: pd.DataFrame, held_out: bool | None, tasks: list[str] | None = None) -> dict:
    pair = {model: task_layer_matrix(table, model, HEADLINE, held_out) for model in MODEL_NAMES}
    return pair if tasks is None else {key: frame.reindex(tasks) for key, frame in pair.items()}


def _values(pair: dict) -> np.ndarray:
    return np.concatenate([frame.to_numpy().ravel() for frame in pair.values()])


def _draw_boxes(table: pd.DataFrame, found: dict, held_out: bool, title: str, empty: str) -> Figure:
    layers, pair = layer_order(table), _pair(table, held_out)
    figure = figure_elements.new_figure(max(7.0, min(16.0, 2.0 + 0.34 * len(layers))), 4.2)
    axes = figure.subplots()
    figure_elements.section_bands(axes, found["sections"], layers)
    if figure_elements.paired_boxes(axes, pair, layers):
        figure_elements.layer_axis(axes, layers)
        figure_elements.unit_range(axes, _values(pair))
        axes.set_ylabel(f"CKA with the task's specialist ({HEADLINE})")
        axes.set_title(f"{title} ({len(pair['tuned'])} tasks)", pad=18)
        figure_elements.model_legend(axes)
    else:
        axes.clear()
        figure_elements.say(axes, empty)
    return figure


def draw_layers(table: pd.DataFrame, found: dict) -> Figure:
    """Box plots over tasks per layer, pre-trained against tuned (the paper's figure 2)."""
    title = "Similarity to single-task specialists, layer by layer"
    return _draw_boxes(table, found, False, title, "No defined cell for the tasks of the mixture.")


def draw_held_out(table: pd.DataFrame, found: dict) -> Figure:
    """The same for the tasks held out of the mixture (the paper's figure 7)."""
    empty = "No task was held out of the mixture, or none has a defined cell."
    return _draw_boxes(table, found, True, "Tasks held out of the mixture", empty)


def draw_clusters(table: pd.DataFrame, found: dict) -> Figure:
    """One panel of paired boxes per cluster, most held by pre-training first (the paper's figure 3)."""
    ranking, layers = found["clusters"]["ranking"], layer_order(table)
    columns = 2 if len(ranking) > 1 else 1
    rows = max(1, -(-len(ranking) // columns))
    figure = figure_elements.new_figure(6.4 * columns if columns > 1 else 8.0, 2.3 * rows + 0.4)
    panels = figure.subplots(rows, columns, squeeze=False)
    whole = _values(_pair(table, False))
    for axes, row in zip(panels.flat, ranking, strict=False):
        pair = _pair(table, False, row["tasks"])
        figure_elements.section_bands(axes, found["sections"], layers, named=False)
        if figure_elements.paired_boxes(axes, pair, layers):
            figure_elements.layer_axis(axes, layers, label=False, most=20)
            figure_elements.unit_range(axes, whole)
            count = len(row["tasks"])
            axes.set_title(f"{row['cluster']} ({count} task{'s' if count > 1 else ''})")
        else:
            figure_elements.say(axes, f"{row['cluster']}: no defined cell")
    for axes in list(panels.flat)[len(ranking) :]:
        axes.set_axis_off()
    if ranking:
        figure_elements.model_legend(panels[0, 0], fontsize=7)
        figure.supxlabel("layer", fontsize=9)
        figure.supylabel(f"CKA ({HEADLINE})", fontsize=9)
    else:
        figure_elements.say(panels[0, 0], "No cluster with tasks of the mixture.")
    return figure


def draw_heatmap(table: pd.DataFrame, found: dict) -> Figure:
    """Task by layer: pre-trained, tuned and their difference; rows by cluster, undefined cells hatched."""
    layers, pair = layer_order(table), _pair(table, None)
    tasks, of = list(pair["tuned"].index), clusters_of(table)
    held = set(table.loc[table["held_out"].astype(bool), "task"])
    pair = {key: frame.reindex(tasks) for key, frame in pair.items()}
    panels = {
        MODEL_NAMES["pretrained"]: pair["pretrained"],
        MODEL_NAMES["tuned"]: pair["tuned"],
        "difference": pair["tuned"] - pair["pretrained"],
    }
    height = max(2.8, 1.5 + 0.17 * len(tasks))
    figure = figure_elements.new_figure(max(10.0, min(19.0, 5.0 + 0.42 * len(layers))), height)
    subplots = figure.subplots(1, 3, sharey=True)
    size = np.nanmax(np.abs(panels["difference"].to_numpy()), initial=0.05)
    any_undefined = False
    for axes, (name, frame) in zip(subplots, panels.items(), strict=True):
        change = name == "difference"
        norm = TwoSlopeNorm(0.0, -size, size) if change else Normalize(0.0, 1.0)
        values = np.ma.masked_invalid(frame.to_numpy())
        axes.patch.set(facecolor=UNDEFINED, hatch="////", edgecolor="white")
        any_undefined |= bool(values.mask.any())
        cmap = "PuOr_r" if change else "cividis"
        image = axes.imshow(values, aspect="auto", norm=norm, cmap=cmap, interpolation="nearest")
        figure.colorbar(image, ax=axes, location="bottom", shrink=0.8, pad=0.02, aspect=30)
        figure_elements.layer_axis(axes, layers, label=False, most=16)
        axes.set_xlim(-0.5, len(layers) - 0.5)
        axes.tick_params(axis="x", labelsize=7)
        axes.set_title(name)
        for edge in [i for i in range(1, len(tasks)) if of[tasks[i]] != of[tasks[i - 1]]]:
            axes.axhline(edge - 0.5, color="white", lw=1.4)
    subplots[0].set_yticks(
        range(len(tasks)),
        [f"{shortened(of[t], 18)} · {shortened(t)}{' (held out)' if t in held else ''}" for t in tasks],
        fontsize=7,
    )
    if any_undefined:
        patch = Patch(facecolor=UNDEFINED, hatch="////", edgecolor="white", label="undefined")
        figure.legend(handles=[patch], loc="outside upper right", fontsize=8)
    return figure


def draw_training(curves: pd.DataFrame) -> Figure:
    """Training loss of the multi-task model and of every specialist."""
    figure = figure_elements.new_figure(8.0, 3.6)
    axes = figure.subplots()
    if curves.empty:
        figure_elements.say(axes, "No training curve was recorded.")
        return figure
    for model, rows in curves.sort_values("step").groupby("model", sort=True):
        colour = SCORE_COLOURS["tuned" if model.startswith("tuned.seed") else "control"]
        if model != "tuned":
            axes.plot(rows["step"], rows["loss"], color=colour, lw=0.7, alpha=0.45)
    axes.plot([], [], color=SCORE_COLOURS["control"], lw=1, label="specialists (one line each)")
    tuned = curves[curves["model"] == "tuned"].sort_values("step")
    axes.plot(tuned["step"], tuned["loss"], color=SCORE_COLOURS["tuned"], lw=2, label="multi-task model")
    axes.set(xlabel="training step", ylabel="loss per answer token (nats)", title="Training")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    return figure


def draw_scores(scores: pd.DataFrame) -> Figure:
    """Exact match per task of the base, the multi-task model and the task's specialist."""
    wide = scores.pivot_table(index="task", columns="model", values="exact_match", aggfunc="mean")
    order = scores.drop_duplicates("task").sort_values(["cluster", "task"], ascending=False)
    figure = figure_elements.new_figure(8.0, max(2.6, 1.2 + 0.19 * len(wide)))
    axes = figure.subplots()
    if wide.empty:
        figure_elements.say(axes, "Task scores were not measured.")
        return figure
    wide = wide.reindex(index=order["task"], columns=list(SCORE_NAMES)).astype(float)
    rows = np.arange(len(wide))
    span = wide.dropna(how="all")
    axes.hlines(rows[wide.notna().any(axis=1)], span.min(axis=1), span.max(axis=1), color="#cccccc", lw=1.2)
    for (model, name), marker in zip(SCORE_NAMES.items(), ("o", "s", "D"), strict=True):
        axes.scatter(wide[model], rows, label=name, color=SCORE_COLOURS[model], marker=marker, s=18, zorder=3)
    of = dict(order[["task", "cluster"]].itertuples(index=False))
    axes.set_yticks(rows, [f"{shortened(of[t], 18)} · {shortened(t)}" for t in wide.index], fontsize=7)
    axes.set(xlabel="exact match", xlim=(-0.02, 1.02), ylim=(-0.8, len(wide) - 0.2))
    axes.grid(axis="x", color="#dddddd", lw=0.6)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)
    return figure


def draw_estimators(table: pd.DataFrame) -> Figure:
    """Biased against debiased CKA, a point per task and layer: what finite samples add to the biased value."""
    figure = figure_elements.new_figure(8.6, 4.2)
    for axes, (model, name) in zip(figure.subplots(1, 2, sharey=True), MODEL_NAMES.items(), strict=True):
        x, y, n = (
            task_layer_matrix(table, model, estimator, None, value=value).to_numpy().ravel()
            for estimator, value in (("debiased", "cka"), ("biased", "cka"), ("debiased", "n"))
        )
        keep = np.isfinite(x) & np.isfinite(y)
        if not keep.any():
            figure_elements.say(axes, f"{name}: no cell with both estimators")
            continue
        points = axes.scatter(x[keep], y[keep], c=n[keep], s=9, cmap="viridis_r", alpha=0.8, linewidths=0)
        low = min(0.0, float(x[keep].min()))
        axes.plot([low, 1], [low, 1], color="#888888", lw=1, ls="--")
        axes.set(xlabel="debiased CKA", title=name)
        figure.colorbar(points, ax=axes, label="prompts", shrink=0.8)
    figure.axes[0].set_ylabel("biased CKA")
    return figure


def write_figures(
    table: pd.DataFrame, found: dict, scores: pd.DataFrame, curves: pd.DataFrame, folder: epath.PathLike
) -> list[str]:
    """Draw and save every figure as PNG and PDF.

    Args:
        table: The tidy results table.
        found: From `mossa_jax.findings.find`.
        scores: Columns `task, cluster, held_out, model, exact_match, n`.
        curves: Columns `model, step, loss`.
        folder: Where to write; made if absent.

    Returns:
        Names of the figures, without suffix, in the order of the page.
    """
    folder = epath.Path(folder)
    makers = {
        "layers": lambda: draw_layers(table, found),
        "clusters": lambda: draw_clusters(table, found),
        "held_out": lambda: draw_held_out(table, found),
        "heatmap": lambda: draw_heatmap(table, found),
        "estimators": lambda: draw_estimators(table),
        "training": lambda: draw_training(curves),
        "scores": lambda: draw_scores(scores),
    }
    for name, make in makers.items():
        with rc_context(figure_elements.STYLE):
            figure_elements.save(make(), folder, name)
    return list(makers)
