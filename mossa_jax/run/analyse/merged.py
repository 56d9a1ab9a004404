"""The mean of the specialists as a further experimental model: is E more than that, and where?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mossa_jax.config import TUNED
from mossa_jax.function import information, measures
from mossa_jax.function.likelihood import log_likelihoods
from mossa_jax.llama.adapters import Adapter, stack, target_sizes
from mossa_jax.llama.updates import quotients
from mossa_jax.run.analyse.analysis import Analysis, TaskStates, all_tasks, one_table
from mossa_jax.run.analyse.merged_adapter import block_squares, load_merged, specialists
from mossa_jax.run.analyse.sample import first_rows, rows_of
from mossa_jax.run.context import Run
from mossa_jax.run.exported import tuned_adapter
from mossa_jax.run.models import tunes_whole_models
from mossa_jax.similarity import Similarities, compare_states
from mossa_jax.similarity.changes import paired_changes
from mossa_jax.similarity.estimators import ESTIMATORS
from mossa_jax.similarity.lineup import BASE, OWN, E
from mossa_jax.states import keep_states
from mossa_jax.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

MERGED = "merged"
"""The mean of the specialists, in the column `model` of its scores."""

# Places in the joined states; the base, E and the own control stand as in the lineup.
_MEAN = OWN + 1
_PAIRS = ((_MEAN, OWN), (_MEAN, E), (E, OWN), (BASE, OWN))
# Column of the scores -> its name in the parts.
_SCORE_COLUMNS = {name: f"score_{name}" for name in ("model", "metric", "value", "low", "high", "n")}


def _tasks(run: Run) -> Sequence[Task]:
    """Returns all tasks; none if models are tuned in full, or if there are no two specialists to merge."""
    return [] if tunes_whole_models(run.config) or len(specialists(run)) < 2 else all_tasks(run)


def _models(run: Run, task: Task) -> list[str]:
    """Returns E, the task's control and all specialists that are merged."""
    return [TUNED, task.name, *specialists(run)]


def _price(run: Run) -> str:
    config, arch = run.config, run.architecture
    count, widths = len(specialists(run)), target_sizes(arch)
    ranks = {t: min(count * config.tuning.rank, config.analyse.merged_rank, *widths[t]) for t in config.tuning.targets}
    size = 4 * arch.layers * sum(rank * sum(widths[target]) for target, rank in ranks.items())
    most = min(config.analyse.merged_prompts, config.tasks.max_test)
    return (
        f"one pass of one more model per task, over up to {most:,} prompts and {run.score_prompts:,} with answers; the "
        f"mean of {count} specialists has rank {max(ranks.values())}, {size / 2**20:,.1f} MiB per device"
    )


def _similarities(run: Run, states: TaskStates, merged: Adapter) -> Similarities:
    """Compares the merged model with the others over the first prompts of a task."""
    kept, prompts = states.kept, states.prompts.first(run.config.analyse.merged_prompts)
    # The shapes of the comparison's own passes, or those of the sample where it streams.
    of_comparison = run.pass_shapes[0].kept[-1] == kept.states.shape[2]
    shapes = run.pass_shapes if of_comparison else run.sample_shapes
    ids: list = prompts.ids  # NumPy arrays, which stand for sequences of ids
    mean = keep_states(run.model, stack(run.architecture, [merged]), ids, run.pass_config, shapes)
    rows = rows_of(min(mean.rows, kept.rows), run.config.analyse.merged_prompts)
    padding = (0, rows - len(prompts))
    return compare_states(
        # [4, K, rows, D]: the merged model behind the base, E and the own control.
        first_rows(run.mesh, kept.states, OWN + 1, rows, mean.states),
        np.arange(rows) < len(prompts),
        _PAIRS,
        items=np.pad(prompts.items, padding),
        templates=np.pad(prompts.templates, padding),
    )


def _rows(run: Run, task: Task, states: TaskStates | None) -> list[dict[str, Any]]:
    assert states is not None
    arch, merged = run.architecture, load_merged(run)
    similarities = _similarities(run, states, merged.adapter)
    # E against the control less the merged model against it: [K, 2] each.
    change = paired_changes(similarities, [_PAIRS.index((E, OWN))], [_PAIRS.index((_MEAN, OWN))])
    of_tuned, of_control = (tuned_adapter(run, name) for name in (TUNED, task.name))
    of_blocks = {
        "update_cosine_tuned": merged.cosines(of_tuned),
        "update_cosine_control": merged.cosines(of_control),
        # The mean's update is small where those of the specialists have little in common.
        "update_size_tuned": quotients(np.sqrt(merged.squares), np.sqrt(block_squares(of_tuned))),
    }
    rows = []
    for k, layer in enumerate(states.kept.names):
        # The embedding and the final norm have no update.
        block = k - 1 if 0 < k <= arch.layers else None
        update = {name: np.nan if block is None else values[block] for name, values in of_blocks.items()}
        for e, estimator in enumerate(ESTIMATORS):
            with_control, with_tuned, tuned, base = (similarities.value[p, k, e] for p in range(len(_PAIRS)))
            cell = {
                "layer": layer,
                "estimator": estimator,
                "cka": with_control,
                "low": similarities.low[0, k, e],
                "high": similarities.high[0, k, e],
                "cka_tuned": with_tuned,
                "tuned": tuned,
                "pretrained": base,
                "difference": change.value[0, k, e],
                "difference_low": change.low[0, k, e],
                "difference_high": change.high[0, k, e],
                "n": similarities.n,
                **update,
                "undefined": similarities.undefined[0, k, e],
            }
            rows.append({**cell, **dict.fromkeys(_SCORE_COLUMNS.values())})
    return rows + [{**dict.fromkeys(rows[0]), **score} for score in _scores(run, task, merged.adapter)]


def _scores(run: Run, task: Task, merged: Adapter) -> list[dict[str, Any]]:
    """Returns what the merged model knows of the answers; nothing if no prompts are scored."""
    if not run.score_prompts:
        return []
    pairs = run.answer_pairs(task)
    (likelihoods,) = log_likelihoods(
        run.model, stack(run.architecture, [merged]), pairs.pairs, run.reading_config, run.continuation_shape
    )
    estimates = {
        measures.ANSWER_NLL: information.answer_nll(pairs, likelihoods),
        measures.INFORMATION: information.information(pairs, likelihoods),
    }
    rows = measures.score_rows(MERGED, estimates, len(pairs.items))
    # In the parts they stand beside cells, which have `low`, `high` and `n` of their own.
    return [{_SCORE_COLUMNS[name]: value for name, value in row.items()} for row in rows]


def _tables(run: Run, parts: pd.DataFrame) -> Mapping[str, pd.DataFrame]:
    is_score, columns = parts["score_metric"].notna(), list(_SCORE_COLUMNS.values())
    cells = parts[~is_score].drop(columns=columns).astype({"n": int})
    scores = parts.loc[is_score, ["task", "cluster", "held_out", *columns]]
    scores = scores.rename(columns={ours: name for name, ours in _SCORE_COLUMNS.items()})
    numbers = {"value": float, "low": float, "high": float, "n": int}
    return {
        **one_table("merged")(run, cells.reset_index(drop=True)),
        "merged_scores": scores.astype(numbers).reset_index(drop=True),
    }


ANALYSIS = Analysis(
    name="merged",
    models=_models,
    settings=("merged_rank", "merged_scale", "merged_prompts"),
    table_names=("merged", "merged_scores"),
    needs_states=True,
    price=_price,
    tasks=_tasks,
    rows=_rows,
    tables=_tables,
    needs="adapters over one base, of two specialists at least",
)
