"""A task's rows as a run takes them: `mossa.load_task`."""

from __future__ import annotations

import difflib
from os import PathLike

from mossa_jax.config import Config, check, load_config
from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.tasks import SPLITS, Example, load_suite
from mossa_jax.tasks.order import draw_seed, take_rows


def load_task(
    config: str | PathLike[str] | Config, name: str, split: str = "test", limit: int | None = None
) -> list[Example]:
    """Returns the rows of a task that a run of this configuration takes, in its order.

    Args:
      config: the name of a published configuration, a config file, or a `mossa_jax.config.Config`.
      name: of the task.
      split: "train", "validation" or "test". Test rows are drawn by the configuration's seed, as in a run.
      limit: the most rows; by default `tasks.max_train` or `tasks.max_test` of the configuration.

    Returns:
      One `Example` per row with `inputs` (the prompt, before any template of the tokenizer), `targets` (the answer),
      `template` (number of the instruction wording, -1 if the source does not say) and `item` (what rows share, empty
      if the source does not say). `pandas.DataFrame(examples)` is a table of them. Prompts that repeat others are still
      there; a run's comparison leaves them out.

    Raises:
      Refusal: 2 for a configuration, split or task that does not exist; 3 for a source that cannot be read.

    Example:
      >>> import mossa_jax as mossa
      >>> examples = mossa.load_task("demo", "sentiment_surprise", limit=3)
      >>> [example.targets for example in examples]
      ['happy', 'unhappy', 'unhappy']
    """
    chosen = config if isinstance(config, Config) else load_config(config)
    check(chosen)
    if split not in SPLITS:
        raise Refusal(BAD_CONFIG, f"split {split!r} is not one of {', '.join(SPLITS)}")
    tasks = {task.name: task for task in load_suite(chosen.tasks).tasks}
    if name not in tasks:
        close = difflib.get_close_matches(name, tasks, 3) or list(tasks)[:8]
        raise Refusal(BAD_CONFIG, f"no task {name!r} in this configuration's {len(tasks)}; there is {', '.join(close)}")
    task = tasks[name]
    most = chosen.tasks.max_test if split == "test" else chosen.tasks.max_train
    return list(take_rows(task, split, most if limit is None else min(limit, most), draw_seed(chosen, task, split)))
