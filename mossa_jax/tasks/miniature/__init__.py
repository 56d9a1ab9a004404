"""The embedded suite `miniature`: 24 instruction tasks in 12 clusters over a small made-up world.

It mirrors FLAN 2021 in small (Wei et al., arXiv 2109.01652; Zhao et al., arXiv 2410.20008, section 4): clusters of
tasks with ten instruction wordings each, and tasks held out of the mixture. Clusters differ in how much of them the
pre-training text holds (the table of `mossa_jax.tasks.miniature.pretraining`), so that it is a real question what
tuning adds to the pre-trained model.
"""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

from mossa_jax.tasks.miniature.corpus import pretraining_text
from mossa_jax.tasks.miniature.recipes import KINDS, Kind, rows
from mossa_jax.tasks.suite import Example, Suite, Task

TOKENIZER = Path(__file__).parent / "tokenizer"

# One whose sister task asks for the same choice between two options, and one that resembles no other task.
HELD_OUT = ("commonsense_use", "misc_odd_word")


def _read(kind: Kind, counts: dict[str, int], seed: int, split: str) -> list[Example]:
    return rows(kind, split, counts[split], seed)


def miniature(seed: int = 0, train: int = 512, validation: int = 64, test: int = 256) -> Suite:
    """The suite, deterministic from `seed` on every machine; rows are made when a split is first read, and kept.

    Args:
      seed: changes the rows drawn; an item (say, a town) stays in the same split under every seed.
      train: rows of the train split, per task.
      validation: rows of the validation split, per task.
      test: rows of the test split, per task.
    """
    counts = {"train": train, "validation": validation, "test": test}
    tasks = tuple(
        Task(kind.name, kind.cluster, cache(partial(_read, kind, counts, seed)), source="embedded") for kind in KINDS
    )
    return Suite(name="miniature", tasks=tasks, held_out=HELD_OUT)


__all__ = ["HELD_OUT", "TOKENIZER", "miniature", "pretraining_text"]
