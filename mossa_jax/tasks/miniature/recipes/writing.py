"""Struct to text and translation: clusters that write a phrase, which the pre-training text barely holds.

It never shows a record of named fields, so nothing of struct to text beyond the plain sentence is there. It teaches
Tavi, word by word and in phrases; of Rund it has a rare line, so that language must come from tuning.
"""

from __future__ import annotations

import numpy as np

from mossa_jax.tasks.miniature import world
from mossa_jax.tasks.miniature.recipes.recipe import Item, Kind


def _owner_record(rng: np.random.Generator) -> Item:
    name, colour, thing = world.pick(rng, world.PEOPLE), world.pick(rng, world.COLOURS), world.pick(rng, world.OBJECTS)
    return Item((name, colour, thing), f"{name} has a {colour} {thing}", {"a": name, "b": colour, "c": thing})


def _animal_record(rng: np.random.Generator) -> Item:
    animal, colour, place = (
        world.pick(rng, world.ANIMALS),
        world.pick(rng, world.COLOURS),
        world.pick(rng, world.PLACES),
    )
    return Item((animal, colour, place), f"a {colour} {animal} in the {place}", {"a": animal, "b": colour, "c": place})


def _record_templates(a: str, b: str, c: str) -> tuple[str, ...]:
    """Ten ways to show a record of three fields named `a`, `b` and `c`."""
    return (
        f"{a} = {{a}}; {b} = {{b}}; {c} = {{c}}. Sentence:",
        f"Put in words: {a} {{a}}, {b} {{b}}, {c} {{c}}. Words:",
        f"Record: [{a}: {{a}}] [{b}: {{b}}] [{c}: {{c}}] Text:",
        f"Write a line from this data. {b}: {{b}}; {c}: {{c}}; {a}: {{a}}. Line:",
        "Table row: {a} | {b} | {c}. As text:",
        f"Data ({a}, {b}, {c}): {{a}}, {{b}}, {{c}}. Describe:",
        f"Turn the fields into text. {c} = {{c}}, {a} = {{a}}, {b} = {{b}}. Text:",
        f"{c}: {{c}} | {b}: {{b}} | {a}: {{a}}. Say it:",
        f"Describe the record {a} {{a}} / {b} {{b}} / {c} {{c}}:",
        "Use all of these: {b}, {c}, {a}. Text:",
    )


def _phrase(rng: np.random.Generator) -> tuple[str, str, str]:
    """Size, colour and noun, each uniform."""
    return world.pick(rng, world.SIZES), world.pick(rng, world.SPOKEN_COLOURS), world.pick(rng, world.SPOKEN_NOUNS)


def _to_tavi(rng: np.random.Generator) -> Item:
    words = _phrase(rng)
    return Item(words, world.in_tavi(*words), {"text": " ".join(words)})


def _to_rund(rng: np.random.Generator) -> Item:
    words = _phrase(rng)
    return Item(words, world.in_rund(*words), {"text": " ".join(words)})


def _translation_templates(language: str) -> tuple[str, ...]:
    """Ten ways to ask for `{text}` in `language`."""
    return (
        f"Translate to {language}: {{text}}. Answer:",
        f"English: {{text}}. {language}:",
        f"How do you say {{text}} in {language}?",
        f"{{text}} in {language}:",
        f"Put this into {language}. {{text}}. Translation:",
        f"What is {language} for {{text}}?",
        f"A friend speaks only {language}. Tell the friend {{text}}:",
        f"Give the {language} words. {{text}}. Words:",
        f"From English to {language}. Text: {{text}}. Result:",
        f"I need {{text}} on a sign, in {language}. Sign:",
    )


KINDS = (
    Kind("struct_owner", "struct to text", _record_templates("name", "colour", "thing"), _owner_record),
    Kind("struct_animal", "struct to text", _record_templates("animal", "colour", "place"), _animal_record),
    Kind("translation_tavi", "translation", _translation_templates("Tavi"), _to_tavi),
    Kind("translation_rund", "translation", _translation_templates("Rund"), _to_rund),
)
