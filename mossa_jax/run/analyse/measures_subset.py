"""The tasks, prompts and layers that the panel of measures looks at, within its share of the comparison.

The subset follows from the configuration and the sizes of the data, never from a clock: an interrupted run continues
with the same one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mossa_jax.run.context import Run
from mossa_jax.run.lineup import line_up
from mossa_jax.similarity import engine
from mossa_jax.similarity.measures.panel import VARIANTS, panel_operations
from mossa_jax.similarity.null import GATHER_COST, MAX_GRAM_ROWS
from mossa_jax.tasks import Task
from mossa_jax.tasks.controls import chosen_tasks

MODELS, PAIRS = 5, 4
"""The most models and pairs that the panel compares for a task: the base, E, the own control, a foreign one, a seed."""
OTHER_POOL_MODELS = 3
"""Those that read the prompts again for the other pooling: the base, E and the own control."""

# Below these the panel says too little: ten neighbours of 48 rows are a fifth of them.
_LEAST_PROMPTS, _LEAST_LAYERS = 48, 4
_PROMPT_STEP = 16


@dataclass(frozen=True)
class Subset:
    """What the panel looks at.

    Attributes:
      prompts: the most per task.
      layers: block numbers, from 1.
      share: operations of the panel, as a share of the comparison's.
    """

    prompts: int
    layers: tuple[int, ...]
    share: float


def panel_tasks(run: Run) -> list[Task]:
    """Returns the tasks of the panel, in suite order.

    Raises:
      Refusal: 2 for a word in `analyse.measures_tasks` that is no task or cluster.
    """
    names = chosen_tasks(run.suite, "config.analyse.measures_tasks", run.config.analyse.measures_tasks)
    return [task for task in run.suite.tasks if task.name in names]


def choose_subset(run: Run) -> Subset:
    """Chooses the largest subset within `analyse.measures_share`; the smallest one if none is.

    Sizes are compared by prompts times layers; of equal ones, that with more prompts is taken.
    """
    config, depth = run.config.analyse, run.architecture.layers
    most_layers = min(config.measures_layers, depth)
    most_prompts = min(config.measures_prompts, max(_test_rows(run, task) for task in panel_tasks(run)))
    sizes = [(most_prompts, most_layers)]
    if config.measures_share > 0:
        steps = range(min(_LEAST_PROMPTS, most_prompts), most_prompts, _PROMPT_STEP)
        fewer = range(min(_LEAST_LAYERS, most_layers), most_layers + 1)
        sizes += [(prompts, layers) for prompts in steps for layers in fewer]
    sizes = sorted(set(sizes), key=lambda size: (-size[0] * size[1], -size[0]))
    comparison = comparison_operations(run)
    for prompts, layers in sizes:
        share = subset_operations(run, prompts, layers) / comparison
        if share <= config.measures_share or config.measures_share == 0:
            break
    numbers = np.unique(np.linspace(1, depth, layers).round().astype(int))
    return Subset(prompts, tuple(int(number) for number in numbers), share)


def comparison_operations(run: Run) -> float:
    """Estimates the operations of the comparison of all tasks; a multiplication with its addition counts two."""
    arch, config = run.architecture, run.config.compare
    total, layers, width = 0.0, arch.layers + 2, arch.hidden
    for task in run.suite.tasks:
        lineup, rows = line_up(run, task).lineup, _test_rows(run, task)
        total += lineup.models * _pass_operations(run, task, rows)
        total += engine.estimate_costs(lineup.models, layers, rows, width, lineup.pairs, 1, config.pool).kept.flops
        # A permutation gathers from Gram matrices, or multiplies rows again: see `null.permuted_products`.
        gathers = rows <= MAX_GRAM_ROWS and GATHER_COST * rows <= width**2
        each = GATHER_COST * rows**2 if gathers else 2 * rows * width**2
        total += config.permutations * len(lineup.pairs) * layers * each
    return total


def subset_operations(run: Run, prompts: int, layers: int) -> float:
    """Estimates the operations of the panel over all its tasks."""
    total, width = 0.0, run.architecture.hidden
    for task in panel_tasks(run):
        total += OTHER_POOL_MODELS * _pass_operations(run, task, min(prompts, _test_rows(run, task)))
        # The other pooling is measured on raw states alone, by the same programs.
        total += panel_operations(MODELS, layers, prompts, width, PAIRS, len(VARIANTS) + 1)
    return total


def _pass_operations(run: Run, task: Task, rows: int) -> float:
    """Estimates the operations of one model's blocks over the first rows of a task."""
    arch = run.architecture
    blocks = arch.matrix_parameters - arch.vocab * arch.hidden
    return 2.0 * blocks * float(run.encoded(task, "test").examples.prompt_lengths[:rows].sum())


def _test_rows(run: Run, task: Task) -> int:
    return len(run.encoded(task, "test"))
