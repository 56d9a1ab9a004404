"""Simulations behind the promises of the findings: false claims, coverage, power, and shapes that are no transition."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import pandas as pd

from mossa_jax.benchmarks.planted_findings import (
    FLAN_SIZES,
    SHAPE_KINDS,
    Noise,
    cluster_sizes,
    draw_noise,
    planted_scores,
    planted_table,
    ramp,
    shape_changes,
)
from mossa_jax.benchmarks.published_figure import figure2
from mossa_jax.benchmarks.row_statistics import row_statistics
from mossa_jax.findings import find
from mossa_jax.findings.clusters import CLUSTER_LEVEL, brown_forsythe
from mossa_jax.findings.units import t_interval

Sizes = tuple[int, ...]

SUITES: dict[str, tuple[Sizes, int, tuple[int, int]]] = {
    "24 in 12, 8 layers": (cluster_sizes(24, 12), 8, (2, 4)),
    "60 in 12, 32 layers": (cluster_sizes(60, 12), 32, (9, 15)),
    "66 as FLAN, 32 layers": (FLAN_SIZES, 32, (9, 15)),
}
"""Suite -> tasks per cluster, layers, last shared and last transition layer of a planted rise."""


def null_claims(runs: int, seed: int, draws: int = 500) -> pd.DataFrame:
    """Counts false claims without any effect, over suites and correlations within clusters."""
    rows = []
    for name, (sizes, layers, _) in SUITES.items():
        for rho in (0.0, 0.3, 0.5):
            results = repeat(partial(_null_run, sizes, layers, rho, draws), runs, seed)
            rows.append({"suite": name, "rho": rho, "runs": runs, **results.mean().to_dict()})
    return pd.DataFrame(rows)


def _null_run(sizes: Sizes, layers: int, rho: float, draws: int, seed: int) -> dict[str, float]:
    rng = np.random.default_rng([seed, 1])
    # One more cluster is held out, and every task has a twin: all claims are measured.
    sizes = (*sizes, *cluster_sizes(16, 8))
    change = draw_noise(rng, sizes, layers, Noise(rho))
    base = 0.55 + rng.normal(0.0, 0.05, (len(change), 1)) + 0 * change
    twins = base + change + draw_noise(rng, sizes, layers, Noise(rho))
    table = planted_table(change, sizes, base, held_out=8, twins=twins)
    result = find(table, planted_scores(sizes, rng, held_out=8), seed, draws)
    verdicts = {finding["id"]: finding["verdict"] for finding in result["findings"]}
    shift = result["shift"]
    return {
        "false transition": verdicts["transition"] == "supported",
        "uncorrected rise": result["sections"]["p_rise"] <= 0.025,
        "shift p <= .05": shift["p"] <= 0.05,
        "coverage of shift": shift["low"] <= 0 <= shift["high"],
        "any supported": "supported" in verdicts.values(),
        "any decided": bool({"supported", "contradicted"} & set(verdicts.values())),
    }


def rises(runs: int, seed: int, draws: int = 500) -> pd.DataFrame:
    """Measures power, breaks and coverage with a planted rise."""
    rows = []
    for name, (sizes, layers, breaks) in SUITES.items():
        for rho in (0.0, 0.5):
            for rise in (0.15, 0.35):
                for outliers in (False, True):
                    if outliers and rise < 0.3:
                        continue
                    run = partial(_rise_run, sizes, layers, breaks, rho, rise, outliers, draws)
                    results = repeat(run, runs, seed)
                    settings = {"suite": name, "rho": rho, "rise": rise, "outliers": outliers, "runs": runs}
                    rows.append(settings | results.mean().to_dict())
    return pd.DataFrame(rows)


def _rise_run(
    sizes: Sizes, layers: int, breaks: tuple[int, int], rho: float, rise: float, outliers: bool, draws: int, seed: int
) -> dict[str, float]:
    rng = np.random.default_rng([seed, 2])
    drawn = draw_noise(rng, sizes, layers, Noise(rho))
    change = drawn + ramp(layers, *breaks, rise)
    sections = _sections(change, sizes, seed, draws)[0]
    moved = 0.0
    if outliers:
        few = rng.permutation(len(change)) < max(1, len(change) // 10)
        at = np.arange(1, layers + 1)
        odd = change.copy()
        odd[few] = drawn[few] + 0.8 * (at >= 0.6 * layers)
        clean = sections["fit"]
        sections, verdict = _sections(odd, sizes, seed, draws)
        moved = max(abs(sections["fit"][key]["layer"] - clean[key]["layer"]) for key in ("start", "end"))
    else:
        sections, verdict = _sections(change, sizes, seed, draws)
    fit, first, last = sections["fit"], breaks[0] + 1, breaks[1]
    before, after = fit["before"]["interval"], fit["after"]["interval"]
    return {
        "supported": verdict == "supported",
        "first within 1": abs(fit["start"]["layer"] - first) <= 1,
        "last within 1": abs(fit["end"]["layer"] - last) <= 1,
        "coverage of first": fit["start"]["interval"][0] <= first <= fit["start"]["interval"][1],
        "coverage of last": fit["end"]["interval"][0] <= last <= fit["end"]["interval"][1],
        "coverage before": before[0] <= 0 <= before[1],
        "coverage after": after[0] <= rise <= after[1],
        "moved by outliers <= 1": moved <= 1,
    }


def _sections(change: np.ndarray, sizes: Sizes, seed: int, draws: int, base: np.ndarray | None = None) -> tuple:
    table = planted_table(change, sizes, base)
    result = find(table, planted_scores(sizes, np.random.default_rng([seed, 9])), seed, draws)
    return result["sections"], result["findings"][0]["verdict"]


def shapes(runs: int, seed: int, draws: int = 300) -> pd.DataFrame:
    """Counts shapes that are no transition and are called one, and those that are named rightly."""
    rows = []
    for name, kinds in SHAPE_KINDS.items():
        for sizes, layers in ((cluster_sizes(60, 12), 32), (cluster_sizes(24, 12), 16)):
            results = repeat(partial(_shape_run, name, kinds, sizes, layers, draws), runs, seed)
            seen = results.pop("shape").value_counts()
            settings = {"shape": name, "tasks": sum(sizes), "layers": layers, "runs": runs}
            named = ", ".join(f"{kind} {count}" for kind, count in seen.items())
            rows.append(settings | results.mean().to_dict() | {"names": named})
    return pd.DataFrame(rows)


def _shape_run(
    name: str, kinds: Sequence[str], sizes: Sizes, layers: int, draws: int, seed: int
) -> dict[str, float | str]:
    rng = np.random.default_rng([seed, 3])
    change, base = shape_changes(name, rng, sizes, layers, Noise(0.0, 0.1, 0.1))
    sections, verdict = _sections(change, sizes, seed, draws, base)
    return {
        "supported": verdict == "supported",
        "named rightly": sections["shape"] in kinds,
        "shape": str(sections["shape"]),
    }


def cluster_tests(runs: int, seed: int) -> pd.DataFrame:
    """Counts false differences of clusters with unequal spreads, and coverage of the intervals of small clusters."""
    rng = np.random.default_rng([seed, 4])
    flan = np.array(FLAN_SIZES)
    ends = np.array([11, 11, 11, 3, 3, 3])
    spreads = {
        "FLAN, equal": (flan, np.ones(12)),
        "FLAN, small ones 3 x": (flan, np.where(flan <= 4, 3.0, 1.0)),
        "FLAN, small ones 6 x": (flan, np.where(flan <= 4, 6.0, 1.0)),
        "FLAN, large ones 3 x": (flan, np.where(flan >= 7, 3.0, 1.0)),
        "11 and 3, small 4 x": (ends, np.where(ends == 3, 2.0, 0.5)),
        "11 and 3, large 4 x": (ends, np.where(ends == 3, 0.5, 2.0)),
    }
    rows = []
    for name, (sizes, spread) in spreads.items():
        p = [
            brown_forsythe([sd * rng.standard_normal(size) for size, sd in zip(sizes, spread, strict=True)])[1]
            for _ in range(runs)
        ]
        rows.append(
            {"what": "clusters differ, p <= .05", "setting": name, "runs": runs, "share": np.mean(np.array(p) <= 0.05)}
        )
    draw: dict[str, Callable[[int], np.ndarray]] = {
        "normal": rng.standard_normal,
        "1 - lognormal": lambda size: np.exp(0.5) - np.exp(rng.standard_normal(size)),
    }
    for kind, sample in draw.items():
        for size in (3, 4, 5, 7, 11):
            inside = [low <= 0 <= high for low, high in (t_interval(sample(size), CLUSTER_LEVEL) for _ in range(runs))]
            rows.append(
                {
                    "what": "coverage of a cluster's mean",
                    "setting": f"{kind}, {size} tasks",
                    "runs": runs,
                    "share": np.mean(inside),
                }
            )
    return pd.DataFrame(rows)


def repeat(run: Callable[[int], dict[str, Any]], runs: int, seed: int) -> pd.DataFrame:
    """Runs a simulation with as many seeds, on all processors; one row per run."""
    seeds = [int(value) for value in np.random.default_rng([seed, 5]).integers(0, 2**31, runs)]
    return pd.DataFrame(list(_processes().map(run, seeds, chunksize=max(1, runs // 16))))


@lru_cache
def _processes() -> ProcessPoolExecutor:
    """Returns the processes of all simulations, which import the package once."""
    # Every process has one processor, so threads of its linear algebra would only wait for each other. The variable is
    # read when a process first imports NumPy.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    # Forked processes of a program with threads may hang.
    return ProcessPoolExecutor(mp_context=get_context("spawn"))


PARTS: dict[str, Callable[[int, int], pd.DataFrame]] = {
    "null": null_claims,
    "rise": rises,
    "shapes": shapes,
    "clusters": cluster_tests,
    "figure2": figure2,
    "rows": row_statistics,
}
"""Name of a part -> its simulation, given runs and a seed."""
