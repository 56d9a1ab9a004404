"""When each layer of a model settles on its way to its end, and which models have not converged.

A layer has settled at the first snapshot from which its states stay as near to those of the end as another seed's end
is (the ceiling); where no second seed was trained, from which CKA with the end stays at `FLOOR` or above.

A learning rate that decays to zero freezes a model whether it has converged or not: a layer that looks settled late may
only have stopped. So the last snapshot, at half of the steps, is what tells convergence, and the loss stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mossa_jax.config import TUNED
from mossa_jax.findings.units import t_interval, unit_means

FLOOR = 0.95
"""CKA with the end that counts as settled where there is no ceiling."""

FALL = 0.05
"""The share of the loss by which it must fall in the last quarter of the steps to count as still falling."""

FALL_NATS = 0.02
"""And so many nats per answer token: a loss of almost nothing may fall by any share."""

CEILING = "ceiling"
FIXED = "fixed"
"""What a layer is measured against: another seed, or `FLOOR`."""

# Nearer to a threshold than this is at it: the embedding is the same in all models, up to rounding.
_TOLERANCE = 1e-4
# Fewer recorded losses in the second half of the steps show no trend.
_FEWEST_LOSSES = 4


def find_settling(trajectory: pd.DataFrame) -> pd.DataFrame:
    """Finds when each layer of each model settles.

    Args:
      trajectory: the table `results/trajectory`; the end itself has no row.

    Returns:
      Rows `task, cluster, held_out, model, layer, settled, threshold, against, last`. `settled` is a share of the
      model's steps: 0 if the untrained model is there already, 1 if only the end is; NaN where a value is undefined.
      `against` is `ceiling` or `fixed`, and `last` the CKA of the last snapshot.
    """
    keys = ["task", "cluster", "held_out", "model", "layer"]
    rows = []
    for key, group in trajectory.groupby(keys, sort=False):
        group = group.sort_values("share_of_steps")
        values, ceiling = group["cka"].to_numpy(float), float(group["ceiling"].iloc[0])
        threshold = ceiling if np.isfinite(ceiling) else FLOOR
        below = np.flatnonzero(values < threshold - _TOLERANCE)
        shares = np.append(group["share_of_steps"].to_numpy(float), 1.0)
        settled = shares[below[-1] + 1] if below.size else shares[0]
        rows.append(
            dict(zip(keys, key, strict=True))
            | {
                "settled": settled if np.isfinite(values).all() else np.nan,
                "threshold": threshold,
                "against": CEILING if np.isfinite(ceiling) else FIXED,
                "last": values[-1],
            }
        )
    return pd.DataFrame(rows)


def settling_by_layer(
    settling: pd.DataFrame, model: str, layers: Sequence[str], left_out: Sequence[str] = ()
) -> pd.DataFrame:
    """Averages over clusters when the layers of a kind of model settle.

    Args:
      settling: from `find_settling`.
      model: `tuned` or `control`.
      layers: in network order.
      left_out: tasks whose specialists are left out.

    Returns:
      A row per layer: `layer, settled, low, high, tasks`: the mean over clusters, its 95 % t interval, the tasks.
    """
    own = _of_model(settling, model, left_out)
    rows = []
    for layer in layers:
        cells = own[(own["layer"].astype(str) == layer) & own["settled"].notna()]
        means = unit_means(cells["settled"].to_numpy(float), list(cells["cluster"].astype(str)))
        low, high = t_interval(means)
        low, high = np.clip((low, high), 0.0, 1.0).tolist()
        mean = float(means.mean()) if len(means) else np.nan
        rows.append({"layer": layer, "settled": mean, "low": low, "high": high, "tasks": len(cells)})
    return pd.DataFrame(rows)


def depth_trend(settling: pd.DataFrame, model: str, left_out: Sequence[str] = ()) -> dict[str, float]:
    """Tells whether lower layers settle first: the rank correlation of depth and settling, per task.

    Args:
      settling: from `find_settling`.
      model: `tuned` or `control`.
      left_out: tasks whose specialists are left out.

    Returns:
      `mean, low, high` over clusters and `tasks`, how many have a correlation: one whose layers all settle at once has
      none. Positive: upper layers settle later.
    """
    from scipy.stats import spearmanr

    own = _of_model(settling, model, left_out)
    own = own[own["layer"].astype(str).str.isdigit() & own["settled"].notna()]
    values, clusters = [], []
    for _, group in own.groupby("task", sort=False):
        if group["settled"].nunique() > 1:
            values.append(float(spearmanr(group["layer"].astype(int), group["settled"])[0]))
            clusters.append(str(group["cluster"].iloc[0]))
    means = unit_means(np.asarray(values), clusters)
    # A t interval knows no bounds; a correlation has them.
    low, high = np.clip(t_interval(means), -1.0, 1.0).tolist()
    return {"mean": float(means.mean()) if len(means) else np.nan, "low": low, "high": high, "tasks": len(values)}


def _of_model(settling: pd.DataFrame, model: str, left_out: Sequence[str]) -> pd.DataFrame:
    """Returns the rows of E, or those of the specialists without the tasks left out: E is what it is on any prompts."""
    own = settling[settling["model"] == model]
    return own if model == TUNED else own[~own["task"].isin(left_out)]


def loss_trend(steps: Sequence[int], losses: Sequence[float], total: int) -> dict[str, float | bool]:
    """Fits a line to a model's losses in the second half of its steps.

    Args:
      steps: at which a loss was recorded, from 1.
      losses: nats per answer token.
      total: the model's steps.

    Returns:
      `loss`, the line at the last step; `loss_fall`, by how much it falls in the last quarter of the steps, with its
      95 % interval `loss_fall_low`, `loss_fall_high`; `loss_falls`, whether the interval is above zero and the fall
      above `FALL` and `FALL_NATS`. NaN with too few losses.
    """
    from scipy.stats import linregress, t

    at, values = np.asarray(steps, float), np.asarray(losses, float)
    keep = np.isfinite(values) & (at > total / 2)
    at, values = at[keep], values[keep]
    if len(at) < _FEWEST_LOSSES or np.ptp(at) == 0:
        return {"loss": np.nan, "loss_fall": np.nan, "loss_fall_low": np.nan, "loss_fall_high": np.nan,
                "loss_falls": False}  # fmt: skip
    line = linregress(at, values)
    end, fall = line.intercept + line.slope * total, -line.slope * total / 4
    half_width = t.ppf(0.975, len(at) - 2) * line.stderr * total / 4
    falls = fall - half_width > 0 and fall > FALL * max(end, 0.0) and fall > FALL_NATS
    return {
        "loss": float(end),
        "loss_fall": float(fall),
        "loss_fall_low": float(fall - half_width),
        "loss_fall_high": float(fall + half_width),
        "loss_falls": bool(falls),
    }


def find_convergence(settling: pd.DataFrame, trajectory: pd.DataFrame, losses: pd.DataFrame) -> pd.DataFrame:
    """Tells which models have not converged: most layers still move after half of the steps, or the loss still falls.

    Args:
      settling: from `find_settling`.
      trajectory: the table that it was found from.
      losses: rows `task, cluster, held_out, model, steps` and those of `loss_trend`, one per model; E once, with its
        name as task.

    Returns:
      `losses` with `layers`, block outputs with a value at the last snapshot (0 where it was not looked at), `moving`,
      those of them that have not settled there, `last_share`, that snapshot's share of the steps, `converged` and
      `reason`. E's layers are counted over the prompts of all tasks.
    """
    blocks = settling[settling["layer"].astype(str).str.isdigit() & settling["settled"].notna()]
    blocks = blocks.assign(moving=blocks["settled"] >= 1)
    shares = trajectory.groupby(["task", "model"])["share_of_steps"].max()
    rows = []
    for row in losses.to_dict("records"):
        is_own = blocks["model"] == row["model"]
        if row["model"] != TUNED:
            is_own &= blocks["task"] == row["task"]
        own = blocks[is_own]
        looked = [shares[key] for key in shares.index if key[1] == row["model"] and (own["task"] == key[0]).any()]
        layers, moving = len(own), int(own["moving"].sum())
        reasons = []
        if layers and moving > layers / 2:
            place = f"{moving} of {layers} layers" if row["model"] != TUNED else f"{moving / layers:.0%} of its layers"
            reasons.append(f"{place} still move after {looked[0]:.0%} of the steps")
        if row["loss_falls"]:
            fall = f"{row['loss_fall']:.3f} nats per token in the last quarter, to {row['loss']:.3f}"
            reasons.append(f"the loss still falls ({fall})")
        rows.append(
            row
            | {
                "layers": layers,
                "moving": moving,
                "last_share": looked[0] if looked else np.nan,
                "converged": not reasons,
                "reason": "; ".join(reasons),
            }
        )
    return pd.DataFrame(rows)


def convergence_summary(
    analyses: Mapping[str, pd.DataFrame] | None, left_out: Sequence[str] = ()
) -> dict[str, Any] | None:
    """Returns which specialists have not converged; None where no snapshots were kept.

    Args:
      analyses: tables of the analyses, by name.
      left_out: tasks without a competent specialist, which no finding rests on.

    Returns:
      `specialists`, how many were looked at; `unconverged`, names of those that have not converged, with `reasons`;
      `tuned`, why E has not converged, empty if it has.
    """
    table = (analyses or {}).get("convergence")
    if table is None or not len(table):
        return None
    own = table[(table["model"] != TUNED) & ~table["task"].isin(left_out)]
    late = own[~own["converged"].astype(bool)]
    tuned = table[table["model"] == TUNED]
    return {
        "specialists": len(own),
        "unconverged": list(late["task"]),
        "reasons": dict(zip(late["task"], late["reason"], strict=True)),
        "tuned": "; ".join(reason for reason in tuned["reason"] if reason),
    }
