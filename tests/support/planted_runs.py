"""Planted tables of several runs: cells around a known truth, with rows and seeds that spread as they say."""

import numpy as np
import pandas as pd

from mossa_jax.findings.run_tables import RunTables
from mossa_jax.run.change import CHANGE_ERROR, change_table
from mossa_jax.run.noise import add_errors

SCORES = pd.DataFrame(columns=["task", "cluster", "held_out", "model", "metric", "value", "low", "high", "n"])
UNITS = 200


def truth(tasks: int, layers: int, shift: float = 0.0) -> dict[str, np.ndarray]:
    """CKA of the base and of E with each specialist, [tasks, layers]; `shift` raises that of E."""
    depth = np.linspace(0.1, 1.0, layers)
    base = np.linspace(0.4, 0.6, tasks)[:, None] * np.ones(layers)
    return {"pretrained": base, "tuned": base + 0.2 * depth + shift}


def planted_run(
    name: str,
    rng: np.random.Generator,
    means: dict[str, np.ndarray],
    rows: float = 0.02,
    seeds: float = 0.03,
    shared: dict[str, np.ndarray] | None = None,
    control_seeds: int = 2,
    prompts: str = "same",
    **settings: object,
) -> RunTables:
    """One run: the truth, plus noise of rows and of a seed for each cell.

    Args:
      name: of the run.
      rng: source of the noise.
      means: from `truth`.
      rows: standard error over rows of a cell of either model.
      seeds: standard deviation between seeds of a specialist of a cell of either model.
      shared: noise of rows in units of `rows`, [tasks, layers] per model, where two runs have the same prompts.
      control_seeds: specialists per task.
      prompts: what stands for the test prompts of every task.
      **settings: fields of the configuration.
    """
    tasks, layers = means["pretrained"].shape
    noise = shared or {model: rng.normal(size=(tasks, layers)) for model in means}
    cells = []
    for seed in range(control_seeds):
        for model, mean in means.items():
            values = mean + rows * noise[model] + seeds * rng.normal(size=(tasks, layers))
            for task in range(tasks):
                for layer in range(layers):
                    own = f"t{task:02}"
                    place = (model, own + (f".seed{seed}" if seed else ""), own, f"c{task // 2}", str(layer + 1))
                    cells += [(*place, estimator, values[task, layer]) for estimator in ("debiased", "biased")]
    columns = ["experimental", "control", "task", "cluster", "layer", "estimator", "cka"]
    table = pd.DataFrame(cells, columns=columns)
    table = table.assign(
        held_out=False, low=table.cka, high=table.cka, units=UNITS, error_rows=rows, n=UNITS, undefined="", q=np.nan,
        p=np.nan, null_mean=0.0, offset_a=0.0, offset_b=0.0, participation_ratio_a=1.0, participation_ratio_b=1.0,
        repairing="rows", error_template=np.nan,
    )  # fmt: skip
    # Rows of the two models are independent, so the error of their difference is known.
    table[CHANGE_ERROR] = np.where(table.experimental == "tuned", np.sqrt(2) * rows, np.nan)
    table = add_errors(table)
    change = change_table(table, SCORES)
    table = table.drop(columns=CHANGE_ERROR)
    names = sorted(set(table.task))
    competence = {"competence": {"incompetent": [], "competent": names}}
    return RunTables(name, table, change, competence, {"seed": 0, **settings}, dict.fromkeys(names, prompts))
