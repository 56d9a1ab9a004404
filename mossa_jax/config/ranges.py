"""The range of every number of the configuration, and what its texts may be.

An upper bound is far above what any run needs: it is there so that a slip of the keyboard, or a value that no array and
no random generator takes, is refused at once and not deep inside.
"""

from __future__ import annotations

import unicodedata
from typing import Any, NamedTuple

_COUNT = 10**9  # rows, steps, prompts: their sums stay far below what 64 bits hold
_LENGTH = 2**20  # positions of a row, tokens of an answer
_TEXT = 4_096  # characters, the longest path of most systems
_WORDS = 10_000  # entries of a list


class Range(NamedTuple):
    """The values that a number may have.

    Attributes:
      least: the smallest.
      most: the largest.
      is_open: whether both ends are excluded.
    """

    least: float
    most: float
    is_open: bool = False

    def problem(self, value: float) -> str:
        """Returns what a value must be; empty if it is that."""
        if self.is_open:
            is_inside = self.least < value < self.most
            return "" if is_inside else f"must be above {self.least:g} and below {self.most:g}"
        if value < self.least:
            return f"must be at least {self.least:,}"
        return "" if value <= self.most else f"must be at most {self.most:,}"


_ROWS = Range(1, 2**20)
_RATE = Range(0, 1e30, is_open=True)
_SCHEDULE = {
    "epochs": Range(0, 1e6, is_open=True),
    "max_steps": Range(0, _COUNT),
    "batch_rows": _ROWS,
    "parts": _ROWS,
    "learning_rate": _RATE,
}

RANGES: dict[str, Range] = {
    # What random generators of 32 bits take.
    "seed": Range(0, 2**32 - 1),
    "tasks.test_share": Range(0, 1, is_open=True),
    "tasks.max_train": Range(1, _COUNT),
    "tasks.max_test": Range(1, _COUNT),
    "tasks.max_per_cluster": Range(1, _COUNT),
    "tasks.max_rate": Range(1, _COUNT),
    "tasks.mixture_rows": Range(0, _COUNT),
    "tokens.max_tokens": Range(4, _LENGTH),
    "tokens.row_length": Range(1, _LENGTH),
    "tokens.long_row_length": Range(0, _LENGTH),
    "tuning.rank": Range(1, 2**16),
    "tuning.alpha": Range(0, 1e9, is_open=True),
    "tuning.first_layer": Range(0, 10_000),
    **{f"tuning.{models}.{name}": each for models in ("control", "experimental") for name, each in _SCHEDULE.items()},
    "tuning.slots": Range(1, 2**16),
    "tuning.seeds": Range(1, 1_000),
    "tuning.control_seeds": Range(1, 1_000),
    "tuning.warmup": Range(0, 1),
    # A mean of gradients that decays by nothing never sees one.
    "tuning.beta1": Range(0, 1 - 1e-9),
    "tuning.beta2": Range(0, 1 - 1e-9),
    "tuning.weight_decay": Range(0, 1e6),
    "tuning.clip": _RATE,
    "tuning.skips": Range(1, _COUNT),
    "tuning.checkpoint_every": Range(1, _COUNT),
    # The last of these halves is less than a step.
    "tuning.snapshots": Range(0, 64),
    "tuning.log_every": Range(1, _COUNT),
    "tuning.score_prompts": Range(0, _COUNT),
    "tuning.score_tokens": Range(1, _LENGTH),
    "compare.mismatched": Range(0, 10_000),
    "compare.permutations": Range(0, 10**7),
    "compare.batch_rows": _ROWS,
    "compare.draws": Range(1, 10**7),
    "analyse.prompts": Range(4, _COUNT),
    "analyse.map_prompts": Range(2, _COUNT),
    "analyse.map_dimensions": Range(2, 2**20),
    "analyse.correlates_prompts": Range(1, _COUNT),
    "analyse.factor_permutations": Range(1, 10**7),
    "analyse.factor_prompts": Range(4, _COUNT),
    "analyse.measures_prompts": Range(12, _COUNT),
    "analyse.measures_layers": Range(1, 10_000),
    "analyse.measures_share": Range(0, 1e6),
    "analyse.layers_prompts": Range(4, _COUNT),
    "analyse.merged_rank": Range(1, 2**20),
    "analyse.merged_scale": Range(0, 1e9, is_open=True),
    "analyse.merged_prompts": Range(4, _COUNT),
    "analyse.profile_prompts": Range(2, _COUNT),
    "analyse.profile_layers": Range(0, 10_000),
    "analyse.trajectory_prompts": Range(4, _COUNT),
    "pretraining.layers": Range(1, 1_000),
    "pretraining.hidden": Range(2, 2**16),
    "pretraining.heads": Range(1, 2**12),
    "pretraining.feed_forward": Range(1, 2**20),
    "pretraining.documents": Range(1, _COUNT),
    "pretraining.row_length": Range(2, _LENGTH),
    "pretraining.batch_rows": _ROWS,
    "pretraining.steps": Range(1, _COUNT),
    "pretraining.learning_rate": _RATE,
    "pretraining.adam_learning_rate": _RATE,
    "pretraining.warmup": Range(0, 1),
    # 0 is refused beside it: -1 takes the devices that are left.
    "mesh.adapter": Range(-1, 2**20),
    "mesh.fsdp": Range(-1, 2**20),
    "mesh.tensor": Range(-1, 2**20),
}
"""Dotted name -> range, of every field that is a number."""

TASK_LISTS = (
    "tasks.only", "tasks.held_out", "tuning.seeded", "tuning.twins", "analyse.measures_tasks", "analyse.layers_tasks",
    "analyse.trajectory_tasks",
)  # fmt: skip
"""Lists of tasks and clusters, whose names are whatever the data call them."""


def text_problem(text: str, is_of_data: bool = False) -> str:
    """Returns what a text must be; empty if it is that.

    Args:
      text: any.
      is_of_data: whether it names what the data name, which may hold any character.
    """
    if len(text) > _TEXT:
        return f"must have at most {_TEXT:,} characters"
    if any(unicodedata.category(sign) == "Cs" for sign in text):
        return "must be UTF-8"
    if not is_of_data and any(unicodedata.category(sign) == "Cc" for sign in text):
        return "must not hold control characters"
    return ""


def list_problem(words: Any, is_of_data: bool) -> str:
    """Returns what a list of texts must be; empty if it is that. `is_of_data` as in `text_problem`."""
    if len(words) > _WORDS:
        return f"must have at most {_WORDS:,} entries"
    if any(not word.strip() for word in words):
        return "must not hold an empty name"
    if not is_of_data and len(set(words)) < len(words):
        return "must not name anything twice"
    return next((f"{word!r} {problem}" for word in words if (problem := text_problem(word, is_of_data))), "")
