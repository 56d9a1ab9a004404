"""A planted run as the report shows it: clusters, a transition, seeds, twins and incompetent specialists."""

import numpy as np
import pandas as pd

from mossa_jax.benchmarks import planted_findings
from mossa_jax.benchmarks.planted_findings import FLAN_SIZES, Noise, draw_noise, ramp
from mossa_jax.findings import SCORE_COLUMNS, find
from mossa_jax.findings.warnings import RunWarning
from mossa_jax.report import ReportInputs

CURVE_COLUMNS = ["model", "step", "loss"]
NO_SCORES = pd.DataFrame(columns=SCORE_COLUMNS)
NO_CURVES = pd.DataFrame(columns=CURVE_COLUMNS)

CEILING = 0.93
"""CKA of two seeds of one specialist."""


def report_table(
    sizes: tuple[int, ...] = (2,) * 11,
    layers: int = 8,
    breaks: tuple[int, int] | None = (3, 5),
    held_out: int = 2,
    seed: int = 0,
    names: dict[str, str] | None = None,
) -> pd.DataFrame:
    """Builds a results table with twins, foreign controls, a second seed of every third specialist, and one of E.

    The embedding is undefined, the final norm repeats the last layer, and the biased estimator is higher by 0.02.

    Args:
      sizes: tasks per cluster.
      layers: number of block outputs.
      breaks: last shared and last transition layer; None for no rise.
      held_out: how many of the last clusters were held out.
      seed: of the noise.
      names: planted name -> another one, for tasks and clusters.
    """
    rng = np.random.default_rng(seed)
    tasks = sum(sizes)
    curve = ramp(layers, *breaks, 0.25) if breaks else np.zeros(layers)
    change = curve + draw_noise(rng, sizes, layers, Noise(0.3, 0.02, 0.04))
    base = 0.55 + 0.05 * rng.normal(size=(tasks, 1)) + np.zeros((1, layers))
    twins = base + change - 0.1 + draw_noise(rng, sizes, layers, Noise(0.3, 0.02, 0.04))
    table = planted_findings.planted_table(change, sizes, base, held_out, twins)
    both = table[table["control"] == table["task"]]
    other = both["task"].map(lambda task: f"t{(int(task[1:]) + tasks // 2) % tasks:02}")
    own = table[(table["control"] == table["task"]) & (table["experimental"] == "tuned")]
    seeded = own[own["task"].isin([f"t{task:02}" for task in range(0, tasks, 3)])]
    noise = rng.normal(0, 0.02, (2, len(seeded)))
    control = seeded["task"] + ".seed1"
    table = pd.concat(
        [
            table,
            seeded.assign(experimental="control", control=control, cka=CEILING),
            seeded.assign(control=control, cka=seeded["cka"] + noise[0]),
            seeded.assign(experimental="pretrained", control=control, cka=0.55 + noise[1]),
            both.assign(control=other, cka=both["cka"] - rng.normal(0.2, 0.03, len(both))),
            own.assign(experimental="tuned.seed1", cka=own["cka"] + rng.normal(0, 0.02, len(own))),
        ],
        ignore_index=True,
    )
    table.loc[table["estimator"] == "biased", "cka"] += 0.02
    last = table[table["layer"] == str(layers)].assign(layer="final_norm")
    first = table[table["layer"] == "1"].assign(layer="embed", cka=np.nan, undefined="no variance")
    table = pd.concat([first, table, last], ignore_index=True)
    table = table.assign(low=table["cka"] - 0.02, high=table["cka"] + 0.02, p=0.001, q=0.002, null_mean=0.001)
    for column in ("task", "control", "cluster"):
        table[column] = [_renamed(name, names or {}) for name in table[column]]
    return table


def _renamed(name: str, names: dict[str, str]) -> str:
    """Renames a task, its seeds and its twin."""
    task, dot, suffix = name.partition(".")
    return names.get(task, task) + dot + suffix


def report_scores(table: pd.DataFrame, incompetent: tuple[str, ...] = (), seed: int = 1) -> pd.DataFrame:
    """Builds scores by every metric; the specialists of `incompetent` tasks do not use their prompts."""
    rng = np.random.default_rng(seed)
    rows = []
    for task, cluster, held_out in table.drop_duplicates("task")[["task", "cluster", "held_out"]].to_numpy():
        useless = task in incompetent
        for model, information, right in (
            ("base", 0.2, 0.3),
            ("tuned", 0.9, 0.6),
            ("control", 0.01 if useless else 1.2 + 0.2 * rng.random(), 0.4 if useless else 0.7),
            ("control.seed1", 1.1, 0.7),
            ("control.twin", 0.0, 0.4),
            ("majority", None, 0.42),
        ):
            place = {"task": task, "cluster": cluster, "held_out": held_out, "model": model, "n": 100}
            rows.append(place | {"metric": "exact_match", "value": right, "low": right - 0.1, "high": right + 0.1})
            if information is None:
                continue
            ends = {"low": information - 0.1, "high": information + 0.1}
            rows.append(place | {"metric": "information", "value": information} | ends)
            rows.append(place | {"metric": "answer_nll", "value": 2.0 - information, "low": 0.5, "high": 2.5})
            rows.append(place | {"metric": "rouge_l", "value": right + 0.05, "low": right, "high": right + 0.1})
    return pd.DataFrame(rows)[SCORE_COLUMNS]


def report_change(table: pd.DataFrame) -> pd.DataFrame:
    """Builds the table of changes: those beyond 0.1 are significant, with q = 0.004, the others have q = 0.4."""
    own = table[table["control"] == table["task"]]
    key = ["task", "cluster", "held_out", "layer", "estimator"]
    wide = own.pivot_table(index=key, columns="experimental", values="cka").reset_index()
    change = wide["tuned"] - wide["pretrained"]
    is_large = change.abs() > 0.1
    return wide[key].assign(
        change=change,
        low=change - 0.03,
        high=change + 0.03,
        p=np.where(is_large, 0.0005, 0.2),
        q=np.where(is_large, 0.004, 0.4),
        error_rows=0.015,
    )


def training_records(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Builds training curves and the table of tasks."""
    facts = table.drop_duplicates("task")
    models = ["tuned", *facts["task"]]
    curves = [(model, step, 3.0 / (1 + step)) for model in models for step in range(5)]
    counts = {"train_rows": 50, "test_rows": 20, "truncated_rows": 0, "truncated_prompts": 0, "steps": 5}
    tasks = facts[["task", "cluster", "held_out"]].assign(**counts)
    return pd.DataFrame(curves, columns=CURVE_COLUMNS), tasks


def report_inputs(
    table: pd.DataFrame,
    scores: pd.DataFrame = NO_SCORES,
    change: pd.DataFrame | None = None,
    warnings: tuple[RunWarning, ...] = (),
    **fields: object,
) -> ReportInputs:
    """Gathers what a report on a planted table shows, with its analysis; `fields` replace its other parts."""
    curves, tasks = training_records(table)
    analysis = find(table, scores, draws=200, change=change, warnings=warnings)
    planted = {"curves": curves, "tasks": tasks, "parity": "not planted"}
    return ReportInputs(table=table, analysis=analysis, scores=scores, change=change, **(planted | fields))


def flan_like() -> ReportInputs:
    """Builds the report of a run as large as FLAN 2021 on a model of 32 layers, for looking at the page."""
    table = report_table(FLAN_SIZES, 32, (9, 15), held_out=1)
    return report_inputs(table, report_scores(table, ("t03", "t11", "t12", "t40", "t62")), report_change(table))
