"""The miniature world: every word, fact and relation that its tasks and its pre-training text share.

The world is fixed. Seeds change which rows and documents are drawn from it, never the facts, so a base model that is
pre-trained with one seed can be asked about rows drawn with another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

FEMALE = ("Anna", "Clara", "Emma", "Iris", "Julia", "Nora", "Rosa", "Vera")
MALE = ("Adam", "Boris", "Emil", "Hugo", "Leo", "Oscar", "Paul", "Tom")
PEOPLE = FEMALE + MALE
PRONOUN = {name: "she" for name in FEMALE} | {name: "he" for name in MALE}

CATEGORIES = {
    "animal": ("dog", "cat", "horse", "goat", "duck", "fox"),
    "food": ("soup", "bread", "cheese", "apple", "rice", "cake"),
    "tool": ("knife", "spade", "broom", "needle", "axe", "brush"),
    "garment": ("hat", "coat", "scarf", "shirt", "boot", "glove"),
    "vehicle": ("car", "bus", "boat", "train", "bike", "truck"),
    "toy": ("ball", "doll", "kite", "drum", "puzzle", "robot"),
}
CATEGORY_OF = {word: category for category, words in CATEGORIES.items() for word in words}
NOUNS = tuple(CATEGORY_OF)
ANIMALS = CATEGORIES["animal"]
OBJECTS = CATEGORIES["garment"] + CATEGORIES["toy"]

COLOURS = ("red", "blue", "green", "black", "white", "brown", "yellow", "grey")
SIZES = ("big", "small", "old", "new")

OUTSIDE = ("garden", "field", "forest", "street")
INSIDE = ("kitchen", "cellar", "library", "office")
PLACES = OUTSIDE + INSIDE
SIDE_OF = {place: "outside" for place in OUTSIDE} | {place: "inside" for place in INSIDE}

# State of a person -> what that person wants to do next.
NEXT_ACTION = {
    "hungry": "eat",
    "thirsty": "drink",
    "tired": "sleep",
    "dirty": "wash",
    "bored": "play",
    "late": "run",
    "sad": "cry",
    "amused": "laugh",
}
# Thing -> its use.
USE_OF = {
    "knife": "cut",
    "spade": "dig",
    "broom": "sweep",
    "needle": "sew",
    "axe": "chop",
    "brush": "paint",
    "pen": "write",
    "pan": "cook",
    "key": "open",
    "ruler": "measure",
    "rope": "tie",
    "match": "light",
}
LIVING_STATES = ("hungry", "thirsty", "tired", "bored", "sad")
THING_STATES = ("broken", "torn", "cheap", "wooden", "painted")

SYNONYMS = (
    ("big", "large"),
    ("small", "little"),
    ("quick", "fast"),
    ("glad", "cheerful"),
    ("sick", "ill"),
    ("quiet", "silent"),
    ("angry", "cross"),
    ("clever", "smart"),
)
SYNONYM_OF = {a: b for a, b in SYNONYMS} | {b: a for a, b in SYNONYMS}

GOOD_WORDS = ("lovely", "superb", "great", "pleasant", "charming", "splendid", "wonderful", "brilliant")
BAD_WORDS = ("awful", "dull", "poor", "nasty", "terrible", "dreadful", "horrible", "dreary")
RATED = ("film", "book", "song", "meal", "hotel", "show", "game", "concert")

COUNTRIES = ("Arland", "Dovia", "Kestria", "Morvane", "Sundia", "Velmark")
CRAFTS = ("glass", "silk", "paper", "honey", "salt", "wool")
_TOWN_STARTS = ("Bel", "Cor", "Dun", "Fal", "Gor", "Har", "Mar", "Tor")
_TOWN_ENDS = ("dale", "ford", "ham", "mere", "wick")
TOWNS = tuple(start + end for start in _TOWN_STARTS for end in _TOWN_ENDS)


def _spread(values: Sequence[str], salt: int) -> dict[str, str]:
    """Assigns a value to each town, each value equally often, so that a town's name does not reveal it."""
    order = np.random.default_rng(salt).permutation(len(TOWNS))
    return {town: values[int(rank) % len(values)] for town, rank in zip(TOWNS, order, strict=True)}


COUNTRY_OF = _spread(COUNTRIES, 11)
CRAFT_OF = _spread(CRAFTS, 12)

# Two made-up languages. Tavi puts the noun first, then colour, then size; Rund keeps the English order.
SPOKEN_NOUNS = ("dog", "cat", "hat", "coat", "ball", "car")
SPOKEN_COLOURS = COLOURS[:6]
SPOKEN = SIZES + SPOKEN_COLOURS + SPOKEN_NOUNS


def _language(onsets: str, vowels: str, ending: str) -> dict[str, str]:
    """Makes a language, English word -> made-up word, one to one: two open syllables and the language's own ending."""
    pairs = zip(vowels, reversed(vowels), strict=True)
    forms = [a + v + b + w + ending for v, w in pairs for a in onsets for b in onsets if a != b]
    return dict(zip(SPOKEN, forms[:: len(forms) // len(SPOKEN)], strict=False))


TAVI = _language("tvlmsp", "aio", "")
RUND = _language("rndgkb", "ueo", "k")


def in_tavi(size: str, colour: str, noun: str) -> str:
    """Translates the phrase "size colour noun" to Tavi: noun, colour, size."""
    return f"{TAVI[noun]} {TAVI[colour]} {TAVI[size]}"


def in_rund(size: str, colour: str, noun: str) -> str:
    """Translates the phrase "size colour noun" to Rund: size, colour, noun."""
    return f"{RUND[size]} {RUND[colour]} {RUND[noun]}"


def article(word: str) -> str:
    """Returns the article "a" or "an", by the first letter of `word`."""
    return "an" if word[0] in "aeiou" else "a"


def pick(rng: np.random.Generator, values: Sequence[T]) -> T:
    """Picks one of `values`, uniformly."""
    return values[int(rng.integers(len(values)))]


def pick_several(rng: np.random.Generator, values: Sequence[T], count: int) -> list[T]:
    """Picks `count` different elements of `values`, in random order."""
    return [values[int(i)] for i in rng.permutation(len(values))[:count]]


def pick_other(rng: np.random.Generator, values: Sequence[T], *taken: T) -> T:
    """Picks one of `values` that is none of `taken`."""
    return pick(rng, [value for value in values if value not in taken])
