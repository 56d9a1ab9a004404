"""From the tidy results table to task-by-layer matrices and curves over layers (MOSSA, figure 2)."""

import numpy as np
import pandas as pd

EXPERIMENTALS = ("pretrained", "tuned")
ESTIMATORS = ("debiased", "biased")
HEADLINE = "debiased"


def block_layers(table: pd.DataFrame) -> list[str]:
    """Names of the block outputs present in the table, in network order: `["1", ..., "L"]`."""
    names = {str(name) for name in table["layer"].unique()}
    return sorted((name for name in names if name.isdigit()), key=int)


def layer_order(table: pd.DataFrame) -> list[str]:
    """Every layer name present, in network order: `embed`, `1..L`, `final_norm`."""
    names = {str(name) for name in table["layer"].unique()}
    head = ["embed"] if "embed" in names else []
    tail = sorted(name for name in names if not name.isdigit() and name != "embed")
    return [*head, *block_layers(table), *tail]


def task_layer_matrix(
    table: pd.DataFrame,
    experimental: str,
    estimator: str = HEADLINE,
    held_out: bool | None = False,
    layers: list[str] | None = None,
    value: str = "cka",
) -> pd.DataFrame:
    """One number per task and layer, for the task's own (matched) control.

    Args:
        table: The tidy results table.
        experimental: `pretrained` or `tuned`.
        estimator: `debiased` or `biased`.
        held_out: Tasks to keep: those trained on (False), those held out (True), or all (None).
        layers: Columns, in this order; every layer of the table when None.
        value: The column to spread out, `cka` unless told.

    Returns:
        Float64 frame [tasks, layers]; rows sorted by cluster, then task; undefined cells are NaN.
    """
    layers = layer_order(table) if layers is None else layers
    keep = (
        (table["control"] == table["task"])
        & (table["experimental"] == experimental)
        & (table["estimator"] == estimator)
    )
    if held_out is not None:
        keep &= table["held_out"].astype(bool) == held_out
    rows = table[keep]
    values = pd.to_numeric(rows[value], errors="coerce").where(rows["undefined"].fillna("") == "")
    rows = rows.assign(layer=rows["layer"].astype(str), value=values.astype(float))
    order = rows.drop_duplicates("task").sort_values(["cluster", "task"])["task"]
    matrix = rows.pivot_table(index="task", columns="layer", values="value", aggfunc="mean", dropna=False)
    return matrix.reindex(index=list(order), columns=layers).astype(float)


def differences(
    table: pd.DataFrame,
    estimator: str = HEADLINE,
    held_out: bool | None = False,
    layers: list[str] | None = None,
) -> pd.DataFrame:
    """d_t(l) = CKA(tuned, C_t) - CKA(pretrained, C_t), [tasks, layers]; NaN where either is undefined."""
    tuned = task_layer_matrix(table, "tuned", estimator, held_out, layers)
    pretrained = task_layer_matrix(table, "pretrained", estimator, held_out, layers)
    tasks = [task for task in tuned.index if task in pretrained.index]
    return tuned.loc[tasks] - pretrained.loc[tasks]


def clusters_of(table: pd.DataFrame) -> dict[str, str]:
    """The cluster of every task of the table."""
    return dict(table.drop_duplicates("task")[["task", "cluster"]].itertuples(index=False))


def mean_defined(values: np.ndarray, axis: int = 1) -> np.ndarray:
    """Mean over the defined entries of an axis; NaN, without a warning, where none is defined."""
    values = np.asarray(values, float)
    finite = np.isfinite(values)
    count = finite.sum(axis)
    total = np.where(finite, values, 0.0).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def curve_rows(table: pd.DataFrame, held_out: bool | None = False) -> list[dict]:
    """Median, quartiles, mean and number of tasks per layer, experimental model and estimator.

    Quartiles are linear interpolations (`numpy.quantile`), as box plots draw them. A layer with no
    defined task keeps its row, with `n_tasks` 0 and NaN values.
    """
    layers = layer_order(table)
    rows = []
    for experimental in EXPERIMENTALS:
        for estimator in ESTIMATORS:
            matrix = task_layer_matrix(table, experimental, estimator, held_out, layers)
            for layer in layers:
                values = matrix[layer].to_numpy()
                values = values[np.isfinite(values)]
                low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]) if values.size else [np.nan] * 3
                rows.append(
                    {
                        "experimental": experimental,
                        "estimator": estimator,
                        "layer": layer,
                        "median": middle,
                        "q1": low,
                        "q3": high,
                        "mean": values.mean() if values.size else np.nan,
                        "n_tasks": int(values.size),
                    }
                )
    return rows
