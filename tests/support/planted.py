"""Results tables with a planted answer, for the tests of findings and report."""

import numpy as np
import pandas as pd

CLUSTERS = ["Closed-book QA", "Coreference", "Paraphrase", "Struct to text", "Translation"]
COLUMNS = (
    "experimental control task cluster held_out layer estimator cka low high n participation_ratio_a "
    "participation_ratio_b offset_a offset_b null_mean p q undefined"
).split()


def planted_differences(
    rng: np.random.Generator,
    tasks: int,
    layers: int,
    breaks: tuple[int, int] | None,
    rise: float = 0.25,
    noise: float = 0.05,
) -> np.ndarray:
    """d_t(l) [tasks, layers]: level, ramp between the breaks, level; plus noise that is smooth along layers.

    Tasks differ in level (s.d. 0.02) and in the size of the rise (s.d. 40 %); the noise is first-order
    autoregressive with coefficient 0.8, as neighbouring layers' similarities move together.
    """
    noise_ = rng.normal(size=(tasks, layers))
    for layer in range(1, layers):
        noise_[:, layer] = 0.8 * noise_[:, layer - 1] + 0.6 * noise_[:, layer]
    curve = -0.03 + 0.02 * rng.normal(size=(tasks, 1)) + noise * noise_
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
    """A results table whose pre-trained CKA is 0.8 - 0.05 x (cluster's number) at every block output.

    The embedding is undefined everywhere. `mismatched` adds rows of one wrong control per task, lower by that.
    """
    rng = np.random.default_rng(seed)
    names = names or [f"task{100 + i}_planted" for i in range(tasks)]
    change = planted_differences(rng, tasks, layers, breaks)
    rows = []
    for t, task in enumerate(names):
        level = 0.8 - 0.05 * (t % len(CLUSTERS)) + 0.005 * rng.normal()
        pairs = [(task, 0.0), *([(names[t - 1], mismatched)] if mismatched is not None else [])]
        for control, lowered in pairs:
            for experimental in ("pretrained", "tuned"):
                for layer in ["embed", *map(str, range(1, layers + 1)), "final_norm"]:
                    block = min(int(layer), layers) if layer.isdigit() else layers
                    cka = level - lowered + (change[t, block - 1] if experimental == "tuned" else 0.0)
                    for estimator in ("biased", "debiased"):
                        gone = "no variance" if layer == "embed" else ""
                        value = np.nan if gone else cka + (biased_shift if estimator == "biased" else 0.0)
                        own = (experimental, control, task, CLUSTERS[t % len(CLUSTERS)], t >= tasks - held_out)
                        measured = (layer, estimator, value, value - 0.02, value + 0.02, 120 + t)
                        rows.append((*own, *measured, 20.0, 22.0, 3.0, 4.0, 0.001, 0.002, 0.004, gone))
    return pd.DataFrame(rows, columns=COLUMNS)


def planted_scores(table: pd.DataFrame) -> pd.DataFrame:
    """Scores in which a specialist gains more where the pre-trained model holds less (rank correlation -1)."""
    own = table[(table["control"] == table["task"]) & (table["experimental"] == "pretrained")]
    held = own[own["estimator"] == "debiased"].groupby("task")["cka"].mean()
    facts = table.drop_duplicates("task").set_index("task")
    rows = [
        (task, facts.cluster[task], facts.held_out[task], model, score, 100)
        for task, cka in held.items()
        for model, score in (("base", 0.2), ("tuned", 0.6), ("control", 1.1 - cka))
    ]
    return pd.DataFrame(rows, columns=["task", "cluster", "held_out", "model", "exact_match", "n"])


def training_records(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training curves and the table of tasks."""
    facts = table.drop_duplicates("task")
    models = ["tuned", *facts["task"]]
    curves = [(model, step, 3.0 / (1 + step)) for model in models for step in range(5)]
    counts = {"train_rows": 50, "test_rows": 20, "truncated_rows": 0, "truncated_prompts": 0, "steps": 5}
    tasks = facts[["task", "cluster", "held_out"]].assign(**counts)
    return pd.DataFrame(curves, columns=["model", "step", "loss"]), tasks
