"""How much a run has to do: models, steps and prompts, by count; what is assumed about lengths stands in one place."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from mossa_jax.config import Config, Schedule
from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.files.base import base_tokenizer
from mossa_jax.llama.model import can_share_prefix
from mossa_jax.tasks import chosen_tasks, training_rows
from mossa_jax.tasks.mixture import mixture_counts
from mossa_jax.tokens.packing import WORTH

_LLAMA2_IDS = 133  # that the template `llama2` puts in front of the content, BOS among them, with Llama-2's tokenizer


@dataclass(frozen=True)
class Work:
    """What a run has to do.

    Attributes:
      controls: training examples of each control model.
      mixture: training examples of E.
      models: how many E there are (seeds).
      tasks: that are scored and compared.
      prompts: of each of them, at most.
      ids: of an example, prompt and answer, without what a template puts in front; assumed.
      head: ids that a template puts in front of each.
    """

    controls: tuple[int, ...]
    mixture: int
    models: int
    tasks: int
    prompts: int
    ids: float
    head: int

    def shared(self, config: Config, arch: Architecture) -> int:
        """How many of `head` stand once in a packed row, for all its examples: all or none."""
        worth = self.head > WORTH * (self.head + self.ids)
        return self.head if config.tokens.share_prefix and can_share_prefix(arch) and worth else 0

    def positions(self, examples: int, row_length: int, shared: int) -> float:
        """Positions of packed rows that so many examples take."""
        if shared:
            return examples * self.ids * row_length / (row_length - shared)
        return examples * (self.ids + self.head)

    def steps(self, examples: int, schedule: Schedule, row_length: int, shared: int) -> int:
        """Steps of a model with so many training examples."""
        batch = schedule.batch_rows * row_length
        steps = max(1, ceil(schedule.epochs * self.positions(examples, row_length, shared) / batch))
        return min(steps, schedule.max_steps) if schedule.max_steps else steps


def work_of(config: Config, *, ids: float, prompts: int, shape_alone: bool) -> Work:
    """Counts what a run has to do.

    Args:
      config: of the run.
      ids: of an example, assumed.
      prompts: test prompts of a task; 0 takes as many as are taken at most.
      shape_alone: the model's tokenizer is not at hand.

    Raises:
      Refusal: 2 for template `chat` without a tokenizer; as `tasks.load_suite`.
    """
    suite, rows = training_rows(config.tasks)
    tuning = config.tuning
    seeded = chosen_tasks(suite, "config.tuning.seeded", tuning.seeded) or tuple(rows)
    return Work(
        controls=tuple(count for name, count in rows.items() for _ in range(_seeds(tuning, name in seeded))),
        mixture=sum(mixture_counts(suite, rows, config.tasks).values()),
        models=tuning.seeds,
        tasks=len(rows),
        prompts=min(prompts or config.tasks.max_test, config.tasks.max_test),
        ids=ids,
        head=_head_ids(config, shape_alone),
    )


def _seeds(tuning, seeded: bool) -> int:
    return tuning.control_seeds if seeded else 1


def _head_ids(config: Config, shape_alone: bool) -> int:
    if config.tokens.template == "none":
        return 0
    if not shape_alone:
        return len(base_tokenizer(config).head)
    if config.tokens.template != "llama2":
        raise Refusal(BAD_CONFIG, f"template {config.tokens.template!r} needs a tokenizer; give --base, not --shape")
    return _LLAMA2_IDS
