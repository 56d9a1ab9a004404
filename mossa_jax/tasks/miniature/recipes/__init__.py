"""The recipes of the tasks of the miniature suite, in suite order.

`recipe` says what one is; the others hold those of some clusters: `knowledge` (facts, sentiment, commonsense),
`reading`, `judgement` and `writing`.
"""

from mossa_jax.tasks.miniature.recipes import judgement, knowledge, reading, writing
from mossa_jax.tasks.miniature.recipes.recipe import Item, Recipe, draw_rows, split_of_item

RECIPES: tuple[Recipe, ...] = knowledge.RECIPES + reading.RECIPES + judgement.RECIPES + writing.RECIPES

__all__ = ["RECIPES", "Item", "Recipe", "draw_rows", "split_of_item"]
