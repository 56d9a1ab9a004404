"""Numbers as people read them: a true minus sign, a sign on every change, and the same digits on page and figures."""

from __future__ import annotations

import math
import re

from mossa_jax.findings.units import Estimate

NONE = "–"
"""What stands for a value that is not there."""

_MINUS = re.compile(r"(?<![\w.,\-–])-(?=[\d.])")


def fixed(value: float | None, digits: int = 3, signed: bool = False) -> str:
    """Writes a value with a fixed number of decimals: "0.123", "+0.123", "−0.050"; `NONE` if it is not there."""
    if value is None or not math.isfinite(value):
        return NONE
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    # A value that rounds to zero has no sign.
    if not float(text):
        text = text.lstrip("+-")
    return text.replace("-", "−")


def between(low: float | None, high: float | None, digits: int = 3, signed: bool = False) -> str:
    """Writes an interval: "0.100 to 0.146"; `NONE` if it is not there."""
    ends = fixed(low, digits, signed), fixed(high, digits, signed)
    return NONE if NONE in ends else f"{ends[0]} to {ends[1]}"


def with_interval(estimate: Estimate, digits: int = 3, signed: bool = False) -> str:
    """Writes the mean of an estimate with its interval: "+0.123 [+0.100, +0.146]"."""
    mean = fixed(estimate["mean"], digits, signed)
    low, high = (fixed(estimate[end], digits, signed) for end in ("low", "high"))
    return mean if NONE in (low, high) else f"{mean} [{low}, {high}]"


def p_value(p: float | None) -> str:
    """Writes a p or q value: "0.012", "< 0.001"; `NONE` if it is not there."""
    if p is None or not math.isfinite(p):
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def percent(share: float | None, digits: int = 0, signed: bool = False) -> str:
    """Writes a share as a percentage: "72 %"."""
    text = fixed(None if share is None else 100 * share, digits, signed)
    return text if text == NONE else f"{text} %"


def with_minus(sentence: str) -> str:
    """Gives the negative numbers of a sentence a true minus sign."""
    return _MINUS.sub("−", sentence)
