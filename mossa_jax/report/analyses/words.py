"""Words that the sections on several analyses share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pandas as pd

from mossa_jax.findings.units import Estimate, unit_codes, unit_name
from mossa_jax.findings.wording import counted
from mossa_jax.report import numbers
from mossa_jax.report.inputs import ReportInputs
from mossa_jax.report.numbers import NONE

UNDEFINED = "undefined"


def random_of(inputs: ReportInputs) -> tuple[int, int]:
    """Returns the seed and the number of draws of the run's findings."""
    return int(inputs.analysis["seed"]), int(inputs.analysis["draws"])


def incompetent(inputs: ReportInputs) -> list[str]:
    """Returns the tasks that the findings leave out."""
    return list(inputs.analysis["competence"]["incompetent"])


def interval(estimate: Mapping[str, Any], digits: int = 3, signed: bool = True) -> str:
    """Writes the mean of an `Estimate` with its interval: "+0.123 [+0.100, +0.146]"."""
    text = numbers.with_interval(cast(Estimate, estimate), digits, signed)
    return UNDEFINED if text == NONE else text


def mean(values: np.ndarray, digits: int = 3) -> str:
    """Writes the mean of the defined values."""
    return numbers.fixed(float(np.nanmean(values)), digits) if np.isfinite(values).any() else UNDEFINED


def p_value(estimate: Mapping[str, Any]) -> str:
    """Writes the p value of an `Estimate`, or why there is none."""
    if estimate["reason"] or not np.isfinite(estimate["p"]):
        return str(estimate["reason"] or "not tested")
    text = numbers.p_value(estimate["p"])
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def units(estimate: Mapping[str, Any]) -> str:
    """Writes over how many units an `Estimate` is taken."""
    return counted(int(estimate["n_units"]), str(estimate["unit"]).removesuffix("s"))


def units_of(tasks: pd.DataFrame) -> str:
    """Writes how many units some tasks make, given rows with their `task` and `cluster`."""
    clusters = [str(name) for name in tasks.drop_duplicates("task")["cluster"]]
    number = int(unit_codes(clusters).max()) + 1 if clusters else 0
    return counted(number, unit_name(clusters).removesuffix("s"))
