"""Words and lines that the sections on several analyses share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mossa_jax.findings.layer_means import LayerMeans
from mossa_jax.report.inputs import ReportInputs

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def random_of(inputs: ReportInputs) -> tuple[int, int]:
    """Returns the seed and the number of draws of the run's findings."""
    return int(inputs.analysis["seed"]), int(inputs.analysis["draws"])


def incompetent(inputs: ReportInputs) -> list[str]:
    """Returns the tasks that the findings leave out."""
    return list(inputs.analysis["competence"]["incompetent"])


def interval(estimate: Mapping[str, Any], digits: int = 3, signed: bool = True) -> str:
    """Writes the mean of an `Estimate` with its interval: "+0.123 [+0.100, +0.146]"."""
    form = f"{'+' if signed else ''}.{digits}f"
    if not np.isfinite(estimate["mean"]):
        return "undefined"
    if not np.isfinite(estimate["low"]):
        return f"{estimate['mean']:{form}}"
    return f"{estimate['mean']:{form}} [{estimate['low']:{form}}, {estimate['high']:{form}}]"


def mean(values: np.ndarray, digits: int = 3) -> str:
    """Writes the mean of the defined values."""
    return f"{np.nanmean(values):.{digits}f}" if np.isfinite(values).any() else "undefined"


def p_value(estimate: Mapping[str, Any]) -> str:
    """Writes the p value of an `Estimate`, or why there is none."""
    if estimate["reason"] or not np.isfinite(estimate["p"]):
        return str(estimate["reason"] or "not tested")
    return "p < 0.001" if estimate["p"] < 0.001 else f"p = {estimate['p']:.3f}"


def counted(number: int, noun: str) -> str:
    """Writes a number of things, such as "1 task" or "3 tasks"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def units(estimate: Mapping[str, Any]) -> str:
    """Writes over how many units an `Estimate` is taken."""
    return counted(int(estimate["n_units"]), str(estimate["unit"]).removesuffix("s"))


def draw_means(axes: Axes, x: np.ndarray, means: LayerMeans, colour: str, label: str, style: str = "-") -> bool:
    """Draws a curve over layers with its band; returns whether any of it is defined."""
    if not np.isfinite(means.mean).any():
        return False
    axes.plot(x, means.mean, color=colour, lw=1.8, ls=style, label=label, marker="o", ms=3 if len(x) <= 12 else 0)
    axes.fill_between(x, means.low, means.high, color=colour, alpha=0.18, lw=0)
    return True
