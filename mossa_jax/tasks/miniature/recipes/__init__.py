"""The kinds of task of the miniature suite, in suite order."""

from mossa_jax.tasks.miniature.recipes import judgement, knowledge, reading, writing
from mossa_jax.tasks.miniature.recipes.recipe import Item, Kind, rows, split_of

KINDS: tuple[Kind, ...] = knowledge.KINDS + reading.KINDS + judgement.KINDS + writing.KINDS

__all__ = ["KINDS", "Item", "Kind", "rows", "split_of"]
