"""Where in the network the gain of tuning sits, by function, and whether similarity says the same.

A share is the part that a variant keeps of what tuning adds to a task's answers, in information if it was measured.
With U(k) the share of adapters kept up to block k and F(k) that of adapters kept from block k + 1, block l carries

  m(l) = [U(l) - U(l - 1) + F(l - 1) - F(l)] / 2,

the mean of what it adds to the blocks below it and of what it adds to those above it. Over all blocks this sums to 1.
U(k) + F(k) - 1 is the interaction of what lies below k and above: negative where neither works without the other.

Shape letters: T tasks, L layers.

References:
  Shapley 1953, "A value for n-person games": m is the mean over two of the orders in which blocks can be added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from mossa_jax.findings.cells import Cells
from mossa_jax.findings.claims import Evidence, sizes_agree
from mossa_jax.findings.curves import HEADLINE, REPORTED_ESTIMATORS, differences, mean_defined
from mossa_jax.findings.units import estimate, t_interval, unit_means

MEASURES = {"information": "share_of_information", "answer_nll": "share_of_gain"}
"""What a gain is measured by, the first that is defined -> its share in the table."""

COSTS = {"information": "information_cost", "answer_nll": "cost"}
"""The same -> the cost of a variant against the unaltered model."""

MODELS, DIRECTIONS, EXCHANGES = ("tuned", "control"), ("upto", "from"), ("swap_upto", "swap_from")

TOP_SHARE = 4
"""Without a transition, one layer in so many counts as those with the largest rise of the change."""


def find_profile(
    profile: pd.DataFrame | None,
    cells: Cells,
    sections: Mapping[str, dict[str, Any]],
    layers: Sequence[str],
    seed: int = 0,
    draws: int = 2000,
) -> dict[str, Any]:
    """Says where the gain sits, and how much of it the layers carry in which similarity changes most.

    Args:
      profile: the table `results/profile`; None if it was not made.
      cells: of competent tasks, both estimators.
      sections: estimator -> from `sections.find_sections`.
      layers: names of all block outputs.
      seed: seed of the sign flips.
      draws: number of flips.

    Returns:
      `measured`; `shown`: what `Gain.summary` returns, over competent tasks or, if none of them gains anything, over
      all tasks of the mixture (then nothing is measured, since no finding may rest on them); None without either;
      `by_change`: by estimator `rise`, the layers in which the change rises by the fit of the sections (None without
      one), and `top`, those over which it rises most one by one, each with `layers`, `share_of_layers` and the
      `Estimate`s `carried`, `upto` and `from` (by one direction alone) and `excess` (carried beyond their part of all
      layers); `correlation`, over layers, of the ranks of the rise with those of what a layer carries; `is_transition`.
    """
    if profile is None or profile.empty:
        return {"measured": False, "shown": None}
    profile = profile[~profile["held_out"].astype(bool)]
    changes = {name: differences(cells, name, False, list(layers)) for name in sections}
    gain = Gain.of(profile[profile["task"].isin(changes[HEADLINE].index)], len(layers))
    if gain is None:
        rest = Gain.of(profile, len(layers))
        return {"measured": False, "shown": rest and rest.summary()}
    by_change: dict[str, Any] = {}
    for number, name in enumerate(REPORTED_ESTIMATORS):
        # The embedding is the same for all models: its change is zero.
        rise = np.diff(changes[name].reindex(gain.tasks).to_numpy(float), axis=1, prepend=0.0)
        random = (seed, 70, number)
        correlations = _rank_correlations(rise, gain.carried["carried"])
        spans = {"rise": _ramp(sections[name]), "top": _top_layers(rise, gain.clusters)}
        by_change[name] = {
            "correlation": estimate(correlations, gain.clusters, (*random, 9), draws),
            "is_transition": sections[name]["is_transition"],
            **{
                key: span and _carried_by(span, gain.carried, gain.clusters, random, draws)
                for key, span in spans.items()
            },
        }
    return {"measured": True, "shown": gain.summary(), "by_change": by_change}


@dataclass(frozen=True)
class Gain:
    """Where the gain of some tasks sits.

    Attributes:
      profile: the rows of tasks of the mixture.
      measure: a key of `MEASURES`.
      tasks: those with a defined gain of E.
      clusters: the cluster of each.
      shares: `upto` and `from`, [T, L + 1] by depth.
      carried: what each layer carries, [T, L]: by `upto` alone, by `from` alone, and `carried`, their mean.
    """

    profile: pd.DataFrame
    measure: str
    tasks: list[str]
    clusters: list[str]
    shares: dict[str, Float[np.ndarray, "T L+1"]]
    carried: dict[str, Float[np.ndarray, "T L"]]

    @classmethod
    def of(cls, profile: pd.DataFrame, layers: int) -> Gain | None:
        """Reads the gain from the rows of some tasks; None if none of them has a gain by any measure."""
        measure = next((name for name in MEASURES if _depth_curves(profile, "tuned", name, layers)), None)
        if measure is None:
            return None
        curves = _depth_curves(profile, "tuned", measure, layers)
        tasks = list(curves["upto"].index)
        cluster_of = _clusters_of(profile)
        shares = {kept: curve.to_numpy() for kept, curve in curves.items()}
        parts = {"upto": np.diff(shares["upto"], axis=1), "from": -np.diff(shares["from"], axis=1)}
        parts["carried"] = (parts["upto"] + parts["from"]) / 2
        return cls(profile, measure, tasks, [cluster_of[task] for task in tasks], shares, parts)

    def summary(self) -> dict[str, Any]:
        """Summarises the gain over units.

        Returns:
          `measure`; `tasks`; `curves`: per model, kept, layer and measure the mean share over units with its t
          interval; `exchange`: the same of what exchanged layers cost, in nats; `interaction` by depth; `layers`: per
          layer the share that it carries; `most`, the layer that carries most.
        """
        by_layer = _summaries(self.carried["carried"], self.clusters)
        interaction = _summaries(self.shares["upto"] + self.shares["from"] - 1, self.clusters)
        return {
            "measure": self.measure,
            "tasks": self.tasks,
            "curves": _table_curves(self.profile, MODELS, MEASURES, ("upto", "from", "only")),
            "exchange": _table_curves(self.profile, MODELS[:1], COSTS, EXCHANGES),
            "interaction": [{"depth": depth, **each} for depth, each in enumerate(interaction)],
            "layers": [{"layer": layer, **each} for layer, each in enumerate(by_layer, 1)],
            "most": int(np.argmax([each["mean"] for each in by_layer])) + 1,
        }


def _clusters_of(profile: pd.DataFrame) -> dict[str, str]:
    return dict(profile.drop_duplicates("task")[["task", "cluster"]].itertuples(index=False, name=None))


def _ramp(sections: dict[str, Any]) -> list[int] | None:
    """Returns the layers in which the change rises by the fit of the sections; None if none was shown."""
    if sections["shape"] in (None, "none"):
        return None
    return list(range(int(sections["fit"]["start"]["layer"]), int(sections["fit"]["end"]["layer"]) + 1))


def _top_layers(rise: Float[np.ndarray, "T L"], clusters: Sequence[str]) -> list[int]:
    """Returns the layers over which the change rises most, by the mean over units, wherever they are."""
    means = np.nan_to_num(mean_defined(unit_means(rise, clusters), axis=0), nan=-np.inf)
    count = -(-len(means) // TOP_SHARE)
    return sorted((np.argsort(-means, kind="stable")[:count] + 1).tolist())


def _carried_by(
    layers: list[int],
    parts: Mapping[str, Float[np.ndarray, "T L"]],
    clusters: Sequence[str],
    seed: tuple[int, ...],
    draws: int,
) -> dict[str, Any]:
    """Returns what some layers carry of the gain, and how much that is beyond their part of all layers."""
    index, count = [layer - 1 for layer in layers], parts["carried"].shape[1]
    sums = {key: values[:, index].sum(1) for key, values in parts.items()}
    estimates = {key: estimate(values, clusters, seed, draws) for key, values in sums.items()}
    excess = estimate(sums["carried"] - len(layers) / count, clusters, seed, draws)
    if len(layers) == count:
        excess |= {"p": float("nan"), "reason": "these are all layers"}
    return {"layers": layers, "share_of_layers": len(layers) / count, **estimates, "excess": excess}


def _depth_curves(profile: pd.DataFrame, model: str, measure: str, count: int) -> dict[str, pd.DataFrame]:
    """Returns both directions as [tasks, L + 1] shares by depth, between the depths that were cut interpolated.

    Tasks without a defined share are left out; without any task there are no curves.
    """
    rows = profile[profile["model"] == model]
    curves = {}
    for kept, first in zip(DIRECTIONS, (0, 1), strict=True):
        own = rows[rows["kept"] == kept]
        shares = own.assign(depth=own["layer"] - first).pivot(index="task", columns="depth", values=MEASURES[measure])
        shares = shares.dropna().sort_index(axis=1)
        if shares.empty:
            return {}
        depths = np.arange(count + 1)
        values = [np.interp(depths, shares.columns, row) for row in shares.to_numpy(float)]
        curves[kept] = pd.DataFrame(values, index=shares.index, columns=depths)
    return curves


def carried_shares(profile: pd.DataFrame, model: str, count: int) -> pd.DataFrame:
    """Returns the share of the gain that each block carries, m(l): [tasks, 1..L]; undefined tasks are left out."""
    measure = next((name for name in MEASURES if _depth_curves(profile, model, name, count)), None)
    if measure is None:
        return pd.DataFrame(columns=range(1, count + 1), dtype=float)
    curves = _depth_curves(profile, model, measure, count)
    carried = (curves["upto"].diff(axis=1) - curves["from"].diff(axis=1)) / 2
    return carried.drop(columns=0)


def _table_curves(
    profile: pd.DataFrame,
    models: Sequence[str],
    columns: Mapping[str, str],
    kept: Sequence[str],
) -> list[dict[str, Any]]:
    """Averages columns of the table over units, for each model, kind of variant and layer."""
    rows, cluster_of = [], _clusters_of(profile)
    for measure, column in columns.items():
        for (model, kind, layer), group in profile.groupby(["model", "kept", "layer"], sort=True):
            if model in models and kind in kept:
                names = [cluster_of[task] for task in group["task"]]
                (summary,) = _summaries(group[[column]].to_numpy(float), names)
                rows.append({"measure": measure, "model": model, "kept": kind, "layer": int(layer), **summary})
    return rows


def _summaries(values: Float[np.ndarray, "T K"], clusters: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the mean over units of each column, with its t interval and the number of tasks."""
    means = unit_means(values, clusters)
    summaries = []
    for column, own in zip(means.T, values.T, strict=True):
        low, high = t_interval(column)
        count = int(np.isfinite(own).sum())
        summaries.append({"mean": mean_defined(column[None])[0], "low": low, "high": high, "n_tasks": count})
    return summaries


def _rank_correlations(rise: Float[np.ndarray, "T L"], carried: Float[np.ndarray, "T L"]) -> Float[np.ndarray, " T"]:
    """Returns Spearman's correlation over layers for each task; NaN where a layer is undefined or nothing varies."""
    from scipy.stats import rankdata

    result = np.full(len(rise), np.nan)
    for task, (x, y) in enumerate(zip(rise, carried, strict=True)):
        if np.isfinite(x).all() and np.ptp(x) > 0 and np.ptp(y) > 0:
            result[task] = np.corrcoef(rankdata(x), rankdata(y))[0, 1]
    return result


def gain_evidence(profile: dict[str, Any]) -> Evidence:
    """Returns what the data say about the claim that the layers with the largest change carry the gain.

    The layers with the largest change are named in two ways, by the fit of the sections and one by one. The claim needs
    both (an intersection-union test): the larger p counts, and where they point apart nothing is shown.

    Args:
      profile: from `find_profile`, in JSON's own types.
    """
    if not profile["measured"]:
        return Evidence("What layers do for the answers was not measured.", is_measured=False)
    headline, check = (profile["by_change"][name] for name in REPORTED_ESTIMATORS)
    kinds = [kind for kind in ("rise", "top") if headline[kind]]
    shown, correlation = profile["shown"], headline["correlation"]
    most = shown["layers"][shown["most"] - 1]
    sentence = "; ".join(_carried_sentence(headline, kind) for kind in kinds)
    first = headline[kinds[0]]
    sentence = (
        f"Of {_gain(shown)}, {sentence} (means of both directions over {_units(first['excess'])}). Layer "
        f"{shown['most']} alone carries {_with_interval(most)}. Over layers, the rise of the change goes with the "
        f"share that a layer carries at a rank correlation of {_number(correlation['mean'])}{_interval(correlation)}."
    )
    figures = {**first["excess"], "by_change": headline, "most": shown["most"], "measure": shown["measure"]}
    reason = next((headline[kind]["excess"]["reason"] for kind in kinds if headline[kind]["excess"]["p"] is None), "")
    if reason:
        return Evidence(sentence, figures, too_few=reason)
    signs = {headline[kind]["excess"]["mean"] >= 0 for kind in kinds}
    p = max(headline[kind]["excess"]["p"] for kind in kinds) if len(signs) == 1 else 1.0
    if len(signs) > 1:
        sentence += " The two ways of naming the layers point to opposite answers."
    evidence = Evidence(sentence, figures | {"p": p}, p, 1 if signs == {True} else -1, first["excess"]["least_p"])
    for kind in kinds:
        other = check[kind]
        if other and not sizes_agree(headline[kind]["excess"]["mean"], other["excess"]["mean"]):
            evidence.reservations.append(f"By the biased estimator {_carried_sentence(check, kind)}.")
    return evidence


def section_sentence(profile: dict[str, Any]) -> str:
    """Returns what the finding on sections says of the gain; empty if it was not measured."""
    if not profile["measured"]:
        return ""
    headline = profile["by_change"][HEADLINE]
    part = _carried_sentence(headline, "rise" if headline["rise"] else "top")
    shown = profile["shown"]
    return f" By function, of {_gain(shown)}, {part}; layer {shown['most']} carries most of it."


def _carried_sentence(by_change: dict[str, Any], kind: str) -> str:
    part = by_change[kind]
    layers, share = part["layers"], _percent(part["share_of_layers"])
    name = {"rise": "the rise of the change", "top": "the layers over which the change rises most"}[kind]
    if kind == "rise" and by_change["is_transition"]:
        name = "the transition"
    verb = "carry" if kind == "top" else "carries"
    return f"{name} ({_span(layers)}, {share} of all layers) {verb} {_with_interval(part['carried'])}"


def _span(layers: list[int]) -> str:
    if len(layers) == 1:
        return f"layer {layers[0]}"
    if layers == list(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]} to {layers[-1]}"
    return f"layers {', '.join(map(str, layers[:-1]))} and {layers[-1]}"


def _gain(shown: dict[str, Any]) -> str:
    return {
        "information": "the information that tuning adds",
        "answer_nll": "the likelihood that tuning adds to the answers",
    }[shown["measure"]]


def _units(figures: dict[str, Any]) -> str:
    count, noun = figures["n_units"], figures["unit"]
    return f"{count} {noun if count != 1 else noun.removesuffix('s')}"


def _percent(value: float | None) -> str:
    return "an unknown share" if value is None else f"{round(100 * value)} %"


def _with_interval(summary: dict[str, Any]) -> str:
    if summary["low"] is None:
        return _percent(summary["mean"])
    return f"{_percent(summary['mean'])} [{round(100 * summary['low'])} to {round(100 * summary['high'])} %]"


def _number(value: float | None) -> str:
    return "an unknown size" if value is None else f"{value:+.2f}"


def _interval(summary: dict[str, Any]) -> str:
    return "" if summary["low"] is None else f" [{summary['low']:+.2f} to {summary['high']:+.2f}]"
