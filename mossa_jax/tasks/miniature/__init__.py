"""The embedded suite `miniature`: 24 instruction tasks in 12 clusters over a small made-up world.

It is a small mirror of FLAN 2021 (Wei et al., arXiv 2109.01652; Zhao et al., arXiv 2410.20008, section 4): clusters of
tasks with ten instruction wordings each, and tasks held out of the mixture. Clusters differ in how much of them the
pre-training text teaches (the table in `corpus`), so it is a real question what tuning adds to the pre-trained model.

Read in this order: `world` (words and facts), `corpus` (pre-training text), `recipes` (the tasks), `build_tokenizer`.
"""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

from mossa_jax.tasks.miniature.corpus import pretraining_text
from mossa_jax.tasks.miniature.recipes import RECIPES, Recipe, draw_rows
from mossa_jax.tasks.suite import Example, Suite, Task

TOKENIZER = Path(__file__).parent / "tokenizer"

# A task whose sister asks for the same choice between two options, and a task that resembles no other.
HELD_OUT = ("commonsense_use", "misc_odd_word")


def _read(recipe: Recipe, counts: dict[str, int], seed: int, split: str) -> list[Example]:
    """Draws the rows of a split; `counts` says how many."""
    return draw_rows(recipe, split, counts[split], seed)


def miniature(seed: int = 0, train: int = 512, validation: int = 64, test: int = 256) -> Suite:
    """Builds the suite, the same on every machine; rows are drawn when a split is first read, and kept.

    Args:
      seed: changes which rows are drawn; an item (say, a town) stays in the same split under every seed.
      train: rows of each task's train split.
      validation: rows of each task's validation split.
      test: rows of each task's test split.
    """
    counts = {"train": train, "validation": validation, "test": test}
    tasks = tuple(
        Task(
            recipe.name,
            recipe.cluster,
            cache(partial(_read, recipe, counts, seed)),
            source="embedded",
            licence="Apache-2.0, as this package",
        )
        for recipe in RECIPES
    )
    return Suite(name="miniature", tasks=tasks, held_out=HELD_OUT)


__all__ = ["HELD_OUT", "TOKENIZER", "miniature", "pretraining_text"]
