"""Reading comprehension, reading with commonsense, coreference and summarization: finding words of a passage.

The pre-training text holds the skill behind reading and coreference (who has what, who is where, whom a pronoun
means) and the knowledge behind reading with commonsense, in telling form and as plain questions ("Who has the hat?"),
never in the templates' words.
Of summarization it holds the topics (which words belong to a category) but no headline.
"""

from __future__ import annotations

import numpy as np

from mossa_jax.tasks.miniature import world
from mossa_jax.tasks.miniature.recipes.recipe import Item, Kind


def _who_has(rng: np.random.Generator) -> Item:
    name, place = world.pick(rng, world.PEOPLE), world.pick(rng, world.PLACES)
    thing, colour = world.pick(rng, world.OBJECTS), world.pick(rng, world.COLOURS)
    story = f"{name} has a {colour} {thing} in the {place}."
    return Item((name, thing, colour, place), name, {"story": story, "thing": thing})


def _where_is(rng: np.random.Generator) -> Item:
    name, place = world.pick(rng, world.PEOPLE), world.pick(rng, world.PLACES)
    animal, colour = world.pick(rng, world.ANIMALS), world.pick(rng, world.COLOURS)
    story = f"{name} saw a {colour} {animal} in the {place}."
    return Item((name, animal, colour, place), place, {"story": story, "name": name})


def _will(rng: np.random.Generator) -> Item:
    name, place = world.pick(rng, world.PEOPLE), world.pick(rng, world.PLACES)
    state = world.pick(rng, tuple(world.NEXT_ACTION))
    story = f"{name} is {state} in the {place}."
    return Item((name, place, state), world.NEXT_ACTION[state], {"story": story, "name": name})


def _can(rng: np.random.Generator) -> Item:
    name, place = world.pick(rng, world.PEOPLE), world.pick(rng, world.PLACES)
    thing = world.pick(rng, tuple(world.USE_OF))
    story = f"{name} has the {thing} in the {place}."
    return Item((name, place, thing), world.USE_OF[thing], {"story": story, "name": name})


def _pronoun(rng: np.random.Generator) -> Item:
    people = world.pick_several(rng, (world.pick(rng, world.FEMALE), world.pick(rng, world.MALE)), 2)
    place, state = world.pick(rng, world.PLACES), world.pick(rng, tuple(world.NEXT_ACTION))
    meant = world.pick(rng, people)
    pronoun = world.PRONOUN[meant]
    story = f"{people[0]} saw {people[1]} in the {place}. Then {pronoun} was {state}."
    fields = {"story": story, "state": state, "pronoun": pronoun}
    return Item((*people, place, state), meant, fields)


def _thing_or_animal(rng: np.random.Generator) -> Item:
    animal, thing = world.pick(rng, world.ANIMALS), world.pick(rng, world.OBJECTS)
    meant, states = world.pick(rng, ((animal, world.LIVING_STATES), (thing, world.THING_STATES)))
    state = world.pick(rng, states)
    first, second = world.pick_several(rng, (animal, thing), 2)
    story = f"The {first} was next to the {second}. It was {state}."
    return Item((animal, thing, state), meant, {"story": story, "state": state})


def _topic(rng: np.random.Generator) -> Item:
    category = world.pick(rng, tuple(world.CATEGORIES))
    words = world.pick_several(rng, world.CATEGORIES[category], 3)
    fields = {"name": world.pick(rng, world.PEOPLE), "one": words[0], "two": words[1], "three": words[2]}
    return Item(tuple(sorted(words)), category, fields)


def _headline(rng: np.random.Generator) -> Item:
    name, state = world.pick(rng, world.PEOPLE), world.pick(rng, tuple(world.NEXT_ACTION))
    thing, colour, place = world.pick(rng, world.OBJECTS), world.pick(rng, world.COLOURS), world.pick(rng, world.PLACES)
    story = f"In the {place} {name}, who was {state}, found a {colour} {thing}."
    return Item((name, thing, place), f"{name} found {thing}", {"story": story})


def _questions(story: str, ask: str) -> tuple[str, ...]:
    """Ten ways to set the question `ask` over the passage `story`."""
    return tuple(
        frame.format(story=story, ask=ask)
        for frame in (
            "{story} Question: {ask} Answer:",
            "Read the story. {story} {ask}",
            "{ask} Story: {story} Answer:",
            "Story: {story} Question: {ask}",
            "Answer from the text. {story} {ask} Answer:",
            "Text: {story} Now tell me, {ask}",
            "Use the story to find out: {ask} {story} Answer:",
            "{story} From this story, {ask}",
            "Please read: {story} Then answer: {ask}",
            "A test of reading. {ask} {story} The answer is",
        )
    )


KINDS = (
    Kind("reading_who", "reading", _questions("{story}", "who has the {thing}?"), _who_has),
    Kind("reading_where", "reading", _questions("{story}", "where is {name}?"), _where_is),
    Kind("reasoning_will", "reading with commonsense", _questions("{story}", "what will {name} do?"), _will),
    Kind("reasoning_can", "reading with commonsense", _questions("{story}", "what can {name} do?"), _can),
    Kind(
        "coreference_person",
        "coreference",
        (
            "{story} Who was {state}?",
            "{story} The word {pronoun} means",
            "Read: {story} Name the person who was {state}:",
            "Whom does {pronoun} stand for? {story} Answer:",
            "Text: {story} Question: who was {state}? Answer:",
            "Replace {pronoun} with a name. {story} Name:",
            "{story} In this text, {pronoun} is",
            "Find the person meant by {pronoun}: {story} Person:",
            "Who is it that was {state}? {story} Answer:",
            "Story: {story} The {state} person is called",
        ),
        _pronoun,
    ),
    Kind(
        "coreference_thing",
        "coreference",
        (
            "{story} What was {state}?",
            "{story} The word it means the",
            "Read: {story} Name the one that was {state}:",
            "What does the word it stand for? {story} Answer:",
            "Text: {story} Question: what was {state}? Answer:",
            "Replace it with a noun. {story} Noun:",
            "{story} In this text, it is the",
            "Find the noun meant by the word it: {story} Noun:",
            "What is it that was {state}? {story} Answer:",
            "Story: {story} The {state} one is the",
        ),
        _thing_or_animal,
    ),
    Kind(
        "summary_topic",
        "summarization",
        (
            "{name} wrote about the {one}, the {two} and the {three}. Topic:",
            "What is this text about? {one}, {two}, {three}. Answer:",
            "Sum up in one word: {one}, {two}, {three}.",
            "News of the day: {one}, {two} and {three}. Subject:",
            "Give the topic. Text: {name} spoke of {one}, {two}, {three}. Topic:",
            "A page by {name} on {one}, {two} and {three}. Its subject is",
            "Label the text with its topic: {one} and {two} and {three}. Label:",
            "Which topic do {one}, {two} and {three} share?",
            "{name} asks for one word to cover {one}, {two}, {three}. Word:",
            "Shorten to a topic. {three}, {two}, {one}. Short:",
        ),
        _topic,
    ),
    Kind(
        "summary_headline",
        "summarization",
        (
            "{story} Headline:",
            "Sum up the story. {story} Summary:",
            "Write a headline for this text: {story} Headline:",
            "News: {story} In short:",
            "Make it short. {story} Short:",
            "Text: {story} Summary:",
            "What happened, in three words? {story} Answer:",
            "Shorten this: {story} Short form:",
            "{story} Give only the main point:",
            "Leave out the details. {story} Main point:",
        ),
        _headline,
    ),
)
