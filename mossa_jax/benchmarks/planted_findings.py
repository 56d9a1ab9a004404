"""Results tables with known truth: what `mossa_jax.findings.find` is held to.

Noise is smooth along depth (autoregression of 0.9), grows with depth, and is correlated among the tasks of a cluster.

Shape letters: T tasks, U clusters, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from mossa_jax.config import PRETRAINED, TUNED

FLAN_SIZES = (10, 5, 4, 4, 2, 3, 4, 4, 4, 11, 8, 7)
"""Tasks per cluster of FLAN 2021, as its public list has them: 66."""

_SMOOTH = 0.9
_BASE_LEVEL = 0.55


@dataclass(frozen=True)
class Noise:
    """Noise of changes.

    Attributes:
      rho: correlation of the tasks of a cluster.
      first: standard deviation in the first layer.
      last: standard deviation in the last layer; linear in between.
    """

    rho: float = 0.0
    first: float = 0.05
    last: float = 0.15


def cluster_sizes(tasks: int, clusters: int) -> tuple[int, ...]:
    """Divides tasks evenly into clusters."""
    return tuple(tasks // clusters + (index < tasks % clusters) for index in range(clusters))


def draw_noise(rng: np.random.Generator, sizes: Sequence[int], layers: int, noise: Noise) -> Float[np.ndarray, "T L"]:
    """Draws the noise of every task."""
    codes = np.repeat(np.arange(len(sizes)), sizes)
    shared, own = (_smooth(rng, rows, layers) for rows in (len(sizes), len(codes)))
    mixed = np.sqrt(noise.rho) * shared[codes] + np.sqrt(1 - noise.rho) * own
    return mixed * np.linspace(noise.first, noise.last, layers)


def _smooth(rng: np.random.Generator, rows: int, layers: int) -> Float[np.ndarray, "rows L"]:
    steps = rng.standard_normal((rows, layers))
    steps[:, 1:] *= np.sqrt(1 - _SMOOTH**2)
    for layer in range(1, layers):
        steps[:, layer] += _SMOOTH * steps[:, layer - 1]
    return steps


def ramp(layers: int, last_shared: int, last_transition: int, rise: float) -> Float[np.ndarray, " L"]:
    """Returns a level of zero, a linear rise over layers `last_shared + 1` to `last_transition`, and a second level."""
    at = np.arange(1, layers + 1)
    return rise * np.clip((at - last_shared) / (last_transition - last_shared), 0.0, 1.0)


def planted_table(
    change: Float[np.ndarray, "T L"],
    sizes: Sequence[int],
    base: Float[np.ndarray, "T L"] | None = None,
    held_out: int = 0,
    twins: Float[np.ndarray, "T L"] | None = None,
) -> pd.DataFrame:
    """Makes a results table of given changes.

    Args:
      change: tuned minus pre-trained CKA.
      sizes: tasks per cluster.
      base: CKA of the pre-trained model; by default one level.
      held_out: how many of the last clusters were held out.
      twins: CKA of E with each task's twin, if there are twins.
    """
    tasks, layers = change.shape
    base = np.full(change.shape, _BASE_LEVEL) if base is None else base
    codes = np.repeat(np.arange(len(sizes)), sizes)
    frames = [(PRETRAINED, "", base), (TUNED, "", base + change)]
    if twins is not None:
        frames.append((TUNED, ".twin", twins))
    parts = []
    for experimental, suffix, values in frames:
        for estimator in ("debiased", "biased"):
            parts.append(
                pd.DataFrame(
                    {
                        "experimental": experimental,
                        "control": np.repeat([f"t{task:02}{suffix}" for task in range(tasks)], layers),
                        "task": np.repeat([f"t{task:02}" for task in range(tasks)], layers),
                        "cluster": np.repeat([f"c{code:02}" for code in codes], layers),
                        "held_out": np.repeat(codes >= len(sizes) - held_out, layers),
                        "layer": np.tile([str(layer) for layer in range(1, layers + 1)], tasks),
                        "estimator": estimator,
                        "cka": values.ravel(),
                        "n": 500,
                        "undefined": "",
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def planted_scores(
    sizes: Sequence[int], rng: np.random.Generator, held_out: int = 0, competent: np.ndarray | None = None
) -> pd.DataFrame:
    """Makes task scores without any link to similarity; `competent` [T] says whose specialist uses its prompts."""
    rows = []
    codes = np.repeat(np.arange(len(sizes)), sizes)
    for task, code in enumerate(codes):
        is_competent = competent is None or bool(competent[task])
        specialist = rng.uniform(0.5, 2.0) if is_competent else rng.normal(0.0, 0.02)
        values = {"base": rng.normal(0.1, 0.1), TUNED: specialist, "control": specialist}
        for model, value in values.items():
            row = {"task": f"t{task:02}", "cluster": f"c{code:02}", "held_out": code >= len(sizes) - held_out}
            row |= {"model": model, "metric": "information", "value": value, "low": value - 0.1, "high": value + 0.1}
            rows.append(row | {"n": 500})
    return pd.DataFrame(rows)


def shape_changes(name: str, rng: np.random.Generator, sizes: Sequence[int], layers: int, noise: Noise) -> tuple:
    """Returns the changes [T, L] and the base's curves [T, L] (None: one level) of a planted shape.

    Args:
      name: a key of `SHAPE_KINDS`.
      rng: source of randomness.
      sizes: tasks per cluster.
      layers: L.
      noise: of the changes.
    """
    tasks, at = sum(sizes), np.arange(1, layers + 1)
    drawn, depth, base = draw_noise(rng, sizes, layers, noise), at / layers, None
    few = rng.permutation(tasks) < max(1, tasks // 10)
    half = rng.permutation(tasks) < tasks // 2
    if name == "dip to -.12 and back":
        curve = -0.12 * np.exp(-0.5 * ((at - 0.22 * layers) / (layers / 12)) ** 2)
    elif name == "falls to -.2, returns to -.1":
        curve = np.interp(depth, [0.0, 0.25, 0.5, 1.0], [0.0, -0.2, -0.1, -0.1])
    elif name == "up to .3 and back":
        curve = 0.3 * (1 - np.abs(2 * depth - 1))
    elif name == "one in ten jumps":
        curve = np.where(few[:, None], 0.8 * (at >= 0.6 * layers), 0.05 * (at >= layers / 4))
    elif name == "two depths":
        curve = 0.3 * np.where(half[:, None], at >= layers / 8, at >= layers / 2)
    elif name == "last layer":
        curve = 0.3 * (at == layers)
    elif name == "E flat, base falls":
        base = np.tile(np.interp(depth, [0.0, 0.25, 0.625, 1.0], [0.95, 0.95, 0.6, 0.6]), (tasks, 1))
        curve = 0.95 - base
    else:
        curve = 0.3 * {"line": depth, "square root": np.sqrt(depth), "square": depth**2}[name]
    return drawn + curve, base


SHAPE_KINDS = {
    "dip to -.12 and back": ("dip",),
    "falls to -.2, returns to -.1": ("dip",),
    "up to .3 and back": ("bump",),
    "one in ten jumps": ("a few tasks",),
    "two depths": ("several depths", "drift"),
    "line": ("drift",),
    "square root": ("drift",),
    "square": ("drift", "last layers"),
    "last layer": ("last layers",),
    "E flat, base falls": ("base falls",),
}
"""Planted shape -> the names that count as right."""
