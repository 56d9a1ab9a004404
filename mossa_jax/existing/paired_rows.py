"""The error over rows of the difference of two runs, from both runs' models over the same prompts."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import pandas as pd

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.existing.run_models import RunModels
from mossa_jax.findings.run_tables import CHANGE
from mossa_jax.log import log
from mossa_jax.similarity import ESTIMATORS, compare_states
from mossa_jax.similarity.intervals import jackknife_error
from mossa_jax.states import KeptStates

# Base, E and specialist of the first run, then of the second; each is compared with its own specialist.
_PAIRS = ((0, 2), (1, 2), (3, 5), (4, 5))


def paired_rows(reference: RunModels, run: RunModels, tasks: Sequence[str]) -> pd.DataFrame:
    """Runs base, E and specialists of two runs over the same prompts, and leaves out the same item in both at a time.

    What a row does to both runs alike cancels, so this error is that of the difference itself. Similarities themselves
    are those of the tables, up to rounding.

    Args:
      reference: the models of the run that is subtracted.
      run: those of the other run.
      tasks: whose test prompts are the same in both.

    Returns:
      Columns `task, quantity, layer, estimator, error_paired, units_paired`.

    Raises:
      Refusal: 3 if a model or its rows are no longer there.
    """
    prompts = {task: reference.test_prompts(task) for task in tasks}
    lists = [prompts[task].ids for task in tasks]
    rows = []
    for number, task in enumerate(tasks, 1):
        log.info("rows of both runs, %d of %d: %s", number, len(tasks), task)
        kept = [
            models.keep([PRETRAINED, TUNED, task], prompts[task].ids, models.config.compare.pool, lists)
            for models in (reference, run)
        ]
        items = np.pad(prompts[task].items, (0, len(kept[0].valid) - len(prompts[task])), constant_values=-1)
        both = _joined(kept)
        similarities = compare_states(both, kept[0].valid, _PAIRS, rows=kept[0].rows, items=items)
        before, after = similarities.replicates[:2], similarities.replicates[2:]  # [2, K, 2, m] each
        base, tuned = after - before
        for quantity, replicates in ((PRETRAINED, base), (TUNED, tuned), (CHANGE, tuned - base)):
            errors = jackknife_error(replicates)  # [K, 2]
            rows += [
                (task, quantity, layer, estimator, errors[at, column], similarities.units)
                for at, layer in enumerate(kept[0].names)
                for column, estimator in enumerate(ESTIMATORS)
            ]
    columns = ["task", "quantity", "layer", "estimator", "error_paired", "units_paired"]
    return pd.DataFrame(rows, columns=columns)


def _joined(kept: Sequence[KeptStates]) -> jnp.ndarray:
    """Stacks the states of both runs; the narrower side gets zero columns, which change no inner product."""
    width = max(each.states.shape[-1] for each in kept)
    return jnp.concatenate(
        [jnp.pad(each.states, ((0, 0), (0, 0), (0, 0), (0, width - each.states.shape[-1]))) for each in kept]
    )
