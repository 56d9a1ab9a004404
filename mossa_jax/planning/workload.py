"""How much work a run has: models, steps and prompts, by count.

Lengths are not known before the data is tokenized. `Workload` holds all assumptions about them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from mossa_jax.config import Config, Schedule
from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.files.base import base_tokenizer
from mossa_jax.llama.model import can_share_prefix
from mossa_jax.tasks import count_training_rows
from mossa_jax.tasks.controls import chosen_tasks, control_models
from mossa_jax.tasks.mixture import mixture_counts
from mossa_jax.tokens.packing import WORTH

# Ids that the template `llama2` puts before the content, BOS among them, with the tokenizer of Llama-2.
_LLAMA2_IDS = 133


@dataclass(frozen=True)
class Workload:
    """The work of a run.

    Attributes:
      controls: training examples of each control model.
      mixture: training examples of E.
      experimental_models: the number of models E (seeds).
      tasks: the number of tasks that are scored and compared.
      prompts: test prompts per task, at most.
      example_ids: ids of an example, prompt and answer, without those of the template; assumed.
      template_ids: ids that the template puts before each example.
      repeated: of the tasks, those whose control has further seeds or a twin.
      mixture_tasks: of the tasks, those that E is trained on.
      chosen: analysis -> the tasks that it looks at, for those that look at some.
      steps_taken: stage -> the steps of its models, in a run that is done; of other runs they are counted.
    """

    controls: tuple[int, ...]
    mixture: int
    experimental_models: int
    tasks: int
    prompts: int
    example_ids: float
    template_ids: int
    repeated: int = 0
    mixture_tasks: int = 0
    chosen: Mapping[str, int] = field(default_factory=dict)
    steps_taken: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Returns the `work` of a saved plan, under the names that its format gives them."""
        return {
            "controls": self.controls,
            "mixture": self.mixture,
            "models": self.experimental_models,
            "tasks": self.tasks,
            "prompts": self.prompts,
            "ids": self.example_ids,
            "head": self.template_ids,
        }

    def shared_ids(self, config: Config, arch: Architecture) -> int:
        """Returns how many of the template's ids a packed row holds once for all its examples: all of them or none."""
        is_worth_it = self.template_ids > WORTH * (self.template_ids + self.example_ids)
        return self.template_ids if config.tokens.share_prefix and can_share_prefix(arch) and is_worth_it else 0

    def positions(self, examples: int, row_length: int, shared: int) -> float:
        """Returns the positions of the packed rows that hold `examples` examples."""
        if shared:
            return examples * self.example_ids * row_length / (row_length - shared)
        return examples * (self.example_ids + self.template_ids)

    def steps(self, examples: int, schedule: Schedule, row_length: int, shared: int) -> int:
        """Returns the steps of a model that trains on `examples` examples."""
        batch = schedule.batch_rows * row_length
        steps = max(1, ceil(schedule.epochs * self.positions(examples, row_length, shared) / batch))
        return min(steps, schedule.max_steps) if schedule.max_steps else steps


def count_work(config: Config, *, example_ids: float, prompts: int, has_tokenizer: bool) -> Workload:
    """Counts the work of a run.

    Args:
      config: of the run.
      example_ids: ids of an example, assumed.
      prompts: test prompts per task; 0 takes `config.tasks.max_test`.
      has_tokenizer: whether the base model's tokenizer can be loaded.

    Raises:
      Refusal: 2 for template `chat` without a tokenizer, and as in `tasks.load_suite`.
    """
    suite, rows = count_training_rows(config.tasks)
    tuning = config.tuning
    controls = control_models(suite, tuning)
    words = {name: getattr(config.analyse, f"{name}_tasks") for name in ("measures", "layers", "trajectory")}
    return Workload(
        controls=tuple(rows[control.task.name] for control in controls.values()),
        mixture=sum(mixture_counts(suite, rows, config.tasks).values()),
        experimental_models=tuning.seeds,
        tasks=len(rows),
        prompts=min(prompts or config.tasks.max_test, config.tasks.max_test),
        example_ids=example_ids,
        template_ids=_template_ids(config, has_tokenizer),
        repeated=len({control.task.name for name, control in controls.items() if name != control.task.name}),
        mixture_tasks=len(set(rows) - set(suite.held_out)),
        chosen={name: len(chosen_tasks(suite, f"config.analyse.{name}_tasks", names)) for name, names in words.items()},
    )


def _template_ids(config: Config, has_tokenizer: bool) -> int:
    if config.tokens.template == "none":
        return 0
    if has_tokenizer:
        return len(base_tokenizer(config).head)
    if config.tokens.template != "llama2":
        raise Refusal(BAD_CONFIG, f"template {config.tokens.template!r} needs a tokenizer; give --base, not --shape")
    return _LLAMA2_IDS
