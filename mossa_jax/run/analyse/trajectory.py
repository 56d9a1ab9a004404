"""When each layer settles: the snapshots of E and of the specialists beside their own ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from mossa_jax.config import TUNED
from mossa_jax.devices.mesh import round_up
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files.write import is_whole
from mossa_jax.findings.trajectory import find_convergence, find_settling, loss_trend
from mossa_jax.llama.adapters import Adapter, stack
from mossa_jax.monitoring import goodput
from mossa_jax.run.analyse.analysis import Analysis, TaskStates
from mossa_jax.run.context import Run
from mossa_jax.run.exported import model_steps, snapshot_adapter, tuned_adapter
from mossa_jax.similarity import compare_states
from mossa_jax.similarity.cells import similarity_cells
from mossa_jax.states import PassConfig, PassShape, keep_states
from mossa_jax.tasks import Task
from mossa_jax.tasks.controls import chosen_tasks, seed_name
from mossa_jax.tokens.test_prompts import TestPrompts
from mossa_jax.tuning.curves import recorded_losses
from mossa_jax.tuning.population import optimizer_for
from mossa_jax.tuning.snapshots import snapshot_steps

if TYPE_CHECKING:
    import pandas as pd

_CONTROL = "control"
_STEPS = 1024  # numbers of steps are rounded up to a multiple of this
_COLUMNS = (
    "task", "cluster", "held_out", "model", "step", "share_of_steps", "share_of_rate", "layer", "cka", "low", "high",
    "n", "ceiling", "undefined",
)  # fmt: skip


def _tasks(run: Run) -> Sequence[Task]:
    if not run.config.tuning.snapshots:
        return ()
    names = chosen_tasks(run.suite, "config.analyse.trajectory_tasks", run.config.analyse.trajectory_tasks)
    return [task for task in run.suite.tasks if task.name in names]


def _models_per_pass(run: Run) -> int:
    """The untrained model, the snapshots, the end, and the end of another seed."""
    return run.config.tuning.snapshots + 3


def _price(run: Run) -> str:
    models, prompts, arch = _models_per_pass(run), run.config.analyse.trajectory_prompts, run.architecture
    kept = models * (arch.layers + 2) * prompts * arch.hidden * 4 / 2**30
    return (
        f"{2 * len(_tasks(run))} passes of {models} models over at most {prompts} prompts, at most two programs per "
        f"row length, {kept:.2g} GiB of states at a time"
    )


@dataclass(frozen=True)
class _Path:
    """A model's way to its end.

    Attributes:
      label: `tuned` or `control`.
      name: of the model.
      steps: that it took.
      snapshots: steps after which it was kept, rising.
      second: another seed of it; None if there is none.
    """

    label: str
    name: str
    steps: int
    snapshots: tuple[int, ...]
    second: str | None


def _paths(run: Run, task: Task) -> list[_Path]:
    paths = []
    known = {*run.experimental_names, *run.controls}
    for label, name in ((TUNED, TUNED), (_CONTROL, task.name)):
        steps, second = _steps(run, name), seed_name(name, 1)
        snapshots = snapshot_steps(steps, run.config.tuning.snapshots)
        paths.append(_Path(label, name, steps, snapshots, second if second in known else None))
    return paths


def _models(run: Run, task: Task) -> list[str]:
    """Returns E and the task's control, each with its second seed if there is one."""
    names = (TUNED, seed_name(TUNED, 1), task.name, seed_name(task.name, 1))
    return [name for name in names if name in {*run.experimental_names, *run.controls}]


def _steps(run: Run, name: str) -> int:
    return model_steps(run, name)


def _rows(run: Run, task: Task, states: TaskStates | None) -> list[dict[str, Any]]:
    del states  # those of the comparison are at the ends of the ways, over all prompts
    prompts = run.test_prompts(task).first(run.config.analyse.trajectory_prompts)
    config = _pass_config(run)
    shapes = _shapes(run, config)
    return [row for path in _paths(run, task) for row in _path_rows(run, path, prompts, config, shapes)]


def _pass_config(run: Run) -> PassConfig:
    config = run.pass_config
    # Tokens are never kept; where they are compared, the last ones stand for them here.
    return replace(config, pool="last") if config.pool == "all" else config


def _shapes(run: Run, config: PassConfig) -> tuple[PassShape, ...]:
    """Returns the shapes of the passes, the same for all tasks, so that one program serves them."""
    most, arch = run.config.analyse.trajectory_prompts, run.architecture
    with goodput.lost("input"):
        prompts: list[list] = [run.test_prompts(task).first(most).ids for task in _tasks(run)]
        return config.shapes([config.pack(arch, ids).sizes for ids in prompts], run.mesh)


def _path_rows(
    run: Run, path: _Path, prompts: TestPrompts, config: PassConfig, shapes: Sequence[PassShape]
) -> list[dict[str, Any]]:
    """Compares the untrained model and each snapshot of a model with its end, in one pass over the prompts."""
    with goodput.lost("load"):
        adapters = _adapters(run, path)
    ids: list = prompts.ids
    kept = keep_states(run.model, stack(run.architecture, adapters), ids, config, shapes)
    end, second = len(adapters) - 2, len(adapters) - 1
    pairs = [*((snapshot, end) for snapshot in range(end)), (end, second)]
    similarities = compare_states(
        kept.states,
        kept.valid,
        pairs,
        rows=kept.rows,
        items=np.pad(prompts.items, (0, len(kept.valid) - len(prompts))),
    )
    *to_end, to_second = similarity_cells(similarities, pairs, kept.names)
    ceiling = {cell["layer"]: cell["cka"] if path.second else np.nan for cell in _debiased(to_second)}
    rates = _rates(run, path)
    return [
        {
            "model": path.label,
            "step": step,
            "share_of_steps": step / path.steps,
            "share_of_rate": float(rates[:step].sum() / rates.sum()),
            **{name: cell[name] for name in ("layer", "cka", "low", "high", "n", "undefined")},
            "ceiling": ceiling[cell["layer"]],
        }
        for step, cells in zip((0, *path.snapshots), to_end, strict=False)
        for cell in _debiased(cells)
    ]


def _debiased(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [cell for cell in cells if cell["estimator"] == "debiased"]


def _adapters(run: Run, path: _Path) -> list[Adapter]:
    """Loads the untrained model, the snapshots, the end and the second seed, always equally many."""
    snapshots = []
    for step in path.snapshots:
        folder = run.snapshot_folder(path.name, step)
        if not is_whole(folder):
            raise Refusal(
                BAD_INPUT,
                f"{folder} is missing; put it back, delete {run.tuned_folder(path.name)} too (both are made again), or "
                "set analyse.trajectory=false",
            )
        snapshots.append(snapshot_adapter(run, path.name, step))
    end = tuned_adapter(run, path.name)
    second = tuned_adapter(run, path.second) if path.second else end
    # The end takes the places of snapshots that a short model lacks.
    fillers = [end] * (run.config.tuning.snapshots - len(snapshots))
    return [{}, *snapshots, *fillers, end, second]


def _rates(run: Run, path: _Path) -> np.ndarray:
    """Returns the learning rate of each of a model's steps, [steps]."""
    optimizer = optimizer_for(run.config.tuning, run.schedule(path.name))
    # Each length of an array is a program of its own, so models of similar lengths share one.
    steps = jnp.arange(round_up(path.steps, _STEPS))
    return np.asarray(optimizer.rate(steps, jnp.asarray(path.steps)), np.float64)[: path.steps]


def _tables(run: Run, parts: pd.DataFrame) -> Mapping[str, pd.DataFrame]:
    trajectory = parts[list(_COLUMNS)]
    settling = find_settling(trajectory)
    return {
        "trajectory": trajectory,
        "settling": settling,
        "convergence": find_convergence(settling, trajectory, _losses(run)),
    }


def _losses(run: Run) -> pd.DataFrame:
    """Returns the trend of each model's training loss: E's, and that of every task's own control."""
    import pandas as pd

    recorded = recorded_losses(run.folder)
    models = [(TUNED, TUNED, "", False)]
    models += [(task.name, _CONTROL, task.cluster, task.name in run.suite.held_out) for task in run.suite.tasks]
    rows = []
    for name, label, cluster, held_out in models:
        records, steps = recorded.get(name, {}), _steps(run, name)
        losses = {step: record["loss"] for step, record in records.items() if record.get("loss") is not None}
        trend = loss_trend(list(losses), list(losses.values()), steps)
        rows.append({"task": name, "cluster": cluster, "held_out": held_out, "model": label, "steps": steps, **trend})
    return pd.DataFrame(rows)


ANALYSIS = Analysis(
    name="trajectory",
    models=_models,
    settings=("trajectory_tasks", "trajectory_prompts"),
    table_names=("trajectory", "settling", "convergence"),
    needs_states=False,
    price=_price,
    tasks=_tasks,
    rows=_rows,
    tables=_tables,
    needs="snapshots (tuning.snapshots)",
)
