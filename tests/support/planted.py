"""Results tables with a planted answer, for the tests of findings and report."""

import numpy as np
import pandas as pd

from mossa_jax.findings import COLUMNS, SCORE_COLUMNS
from mossa_jax.findings.curves import EXPERIMENTALS, REPORTED_ESTIMATORS
from mossa_jax.report import ReportInputs

CLUSTERS = ["Closed-book QA", "Coreference", "Paraphrase", "Struct to text", "Translation"]
CURVE_COLUMNS = ["model", "step", "loss"]
NO_SCORES = pd.DataFrame(columns=SCORE_COLUMNS)
NO_CURVES = pd.DataFrame(columns=CURVE_COLUMNS)


def planted_differences(
    rng: np.random.Generator,
    tasks: int,
    layers: int,
    breaks: tuple[int, int] | None,
    rise: float = 0.25,
    noise: float = 0.05,
) -> np.ndarray:
    """Draws d_t(l), [tasks, layers]: a level, a ramp between the breaks and a second level, plus smooth noise.

    Tasks differ in level (s.d. 0.02) and in the size of the rise (s.d. 40 %). The noise is first-order autoregressive
    along layers with coefficient 0.8, since similarities of neighbouring layers move together.
    """
    smooth = rng.normal(size=(tasks, layers))
    for layer in range(1, layers):
        smooth[:, layer] = 0.8 * smooth[:, layer - 1] + 0.6 * smooth[:, layer]
    curve = -0.03 + 0.02 * rng.normal(size=(tasks, 1)) + noise * smooth
    if breaks is not None:
        ramp = np.clip((np.arange(1, layers + 1) - breaks[0]) / (breaks[1] - breaks[0]), 0, 1)
        curve = curve + rise * (1 + 0.4 * rng.normal(size=(tasks, 1))) * ramp
    return curve


def planted_table(
    tasks: int = 12,
    layers: int = 6,
    held_out: int = 2,
    breaks: tuple[int, int] | None = (2, 4),
    seed: int = 0,
    mismatched: float | None = None,
    biased_shift: float = 0.02,
    names: list[str] | None = None,
) -> pd.DataFrame:
    """Builds a results table whose pre-trained CKA is 0.8 - 0.05 x (number of the cluster) at every block output.

    The embedding is undefined everywhere. `mismatched` adds rows of one wrong control per task, lower by that much.
    """
    rng = np.random.default_rng(seed)
    names = names or [f"task{100 + i}_planted" for i in range(tasks)]
    change = planted_differences(rng, tasks, layers, breaks)
    rows = []
    for t, task in enumerate(names):
        level = 0.8 - 0.05 * (t % len(CLUSTERS)) + 0.005 * rng.normal()
        pairs = [(task, 0.0), *([(names[t - 1], mismatched)] if mismatched is not None else [])]
        for control, lowered in pairs:
            for experimental in EXPERIMENTALS:
                for layer in ["embed", *map(str, range(1, layers + 1)), "final_norm"]:
                    block = min(int(layer), layers) if layer.isdigit() else layers
                    cka = level - lowered + (change[t, block - 1] if experimental == "tuned" else 0.0)
                    for estimator in sorted(REPORTED_ESTIMATORS):
                        undefined = "no variance" if layer == "embed" else ""
                        value = np.nan if undefined else cka + (biased_shift if estimator == "biased" else 0.0)
                        own = (experimental, control, task, CLUSTERS[t % len(CLUSTERS)], t >= tasks - held_out)
                        measured = (layer, estimator, value, value - 0.02, value + 0.02, 120 + t)
                        rows.append((*own, *measured, 20.0, 22.0, 3.0, 4.0, 0.001, 0.002, 0.004, undefined))
    return pd.DataFrame(rows, columns=COLUMNS)


def planted_scores(table: pd.DataFrame) -> pd.DataFrame:
    """Builds scores in which a specialist gains more where the pre-trained model holds less (rank correlation -1)."""
    own = table[(table["control"] == table["task"]) & (table["experimental"] == "pretrained")]
    pretrained_cka = own[own["estimator"] == "debiased"].groupby("task")["cka"].mean()
    facts = table.drop_duplicates("task").set_index("task")
    rows = [
        (task, facts.cluster[task], facts.held_out[task], model, score, 100)
        for task, cka in pretrained_cka.items()
        for model, score in (("base", 0.2), ("tuned", 0.6), ("control", 1.1 - cka))
    ]
    return pd.DataFrame(rows, columns=SCORE_COLUMNS)


def training_records(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Builds training curves and the table of tasks."""
    facts = table.drop_duplicates("task")
    models = ["tuned", *facts["task"]]
    curves = [(model, step, 3.0 / (1 + step)) for model in models for step in range(5)]
    counts = {"train_rows": 50, "test_rows": 20, "truncated_rows": 0, "truncated_prompts": 0, "steps": 5}
    tasks = facts[["task", "cluster", "held_out"]].assign(**counts)
    return pd.DataFrame(curves, columns=CURVE_COLUMNS), tasks


def report_inputs(table: pd.DataFrame, analysis: dict, scores: pd.DataFrame, **fields: object) -> ReportInputs:
    """Gathers what a report on a planted table shows; `fields` replace its other parts."""
    curves, tasks = training_records(table)
    planted = {"curves": curves, "tasks": tasks, "parity": "not planted"}
    return ReportInputs(table=table, analysis=analysis, scores=scores, **(planted | fields))
