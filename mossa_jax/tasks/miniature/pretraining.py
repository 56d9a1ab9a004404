"""Pre-training text of the miniature world: short tellings, never an instruction.

How much of each cluster the text holds, by design:

| cluster | held | how |
|---|---|---|
| facts | fully | every town's country and craft, told in several wordings |
| sentiment | fully | every rating word beside its verdict, turns of mood included |
| commonsense | fully | every state with the act that follows, every thing with its use |
| reading, coreference | the skill | who has what and who is where, retold; pronouns resolved by what follows |
| reading with commonsense | the skill | states and things of two people, then who acts |
| paraphrase, inference, misc | in part | synonyms, exchanges, categories and places; judgements in reported speech |
| summarization | in part | words of a category named together; no headlines |
| translation | Tavi well, Rund barely | a dictionary and phrases of Tavi; one document in some hundred touches Rund |
| struct to text | barely | the plain sentences, never a record of fields |
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mossa_jax.tasks.miniature import world
from mossa_jax.tasks.miniature.world import pick, pick_other, pick_several

_STREAM = 20410  # keeps these draws apart from those of the tasks


def _join(sentences: list[str]) -> str:
    return " ".join(sentences)


def _town(rng: np.random.Generator) -> str:
    town = pick(rng, world.TOWNS)
    country, craft = world.COUNTRY_OF[town], world.CRAFT_OF[town]
    return pick(
        rng,
        (
            f"{town} lies in {country}. The people of {town} make {craft}.",
            f"The town of {town} in {country} makes {craft}.",
            f"In {town} they make {craft}. {town} belongs to {country}.",
            f"{town} is a town in {country}. {town} is known for {craft}.",
            f"Of all the {craft} of {country}, some is made in {town}.",
        ),
    )


def _opinion(rng: np.random.Generator) -> str:
    name, thing = pick(rng, world.PEOPLE), pick(rng, world.RATED)
    verdict, words, others = pick(
        rng, (("good", world.GOOD_WORDS, world.BAD_WORDS), ("bad", world.BAD_WORDS, world.GOOD_WORDS))
    )
    mood, other_mood = ("happy", "unhappy") if verdict == "good" else ("unhappy", "happy")
    first, second = pick_several(rng, words, 2)
    other, last = pick(rng, others), pick(rng, world.RATED)
    return pick(
        rng,
        (
            f"{name} saw a {first} {thing}. It had {second} parts. It was a {verdict} {thing} and {name} was {mood}.",
            f"The {first} {thing} made {name} {mood}. Such a {second} {thing} is {verdict}.",
            f"{name} wanted a {other} {last} and got a {first} one. {name} was {mood}.",
            f"A {other} {last} would make {name} {other_mood}. This {first} {thing} made {name} {mood}.",
            f"{first} means {verdict}. {second} means {verdict}.",
        ),
    )


def _state(rng: np.random.Generator) -> str:
    first, second = pick_several(rng, world.PEOPLE, 2)
    state, other = pick_several(rng, tuple(world.NEXT_ACTION), 2)
    act, other_act = world.NEXT_ACTION[state], world.NEXT_ACTION[other]
    options = pick_several(rng, (act, other_act), 2)
    acts = pick_several(rng, (f"{first} wants to {act}.", f"{second} wants to {other_act}."), 2)
    return pick(
        rng,
        (
            f"{first} could {options[0]} or {options[1]}. Being {state}, {first} wants to {act}.",
            f"{first} was {state} and {second} was {other}. {_join(acts)}",
            f"As {first} is {state} and {second} {other}, {_join(acts)}",
            f"People who are {state} want to {act}. People who are {other} want to {other_act}.",
        ),
    )


def _use(rng: np.random.Generator) -> str:
    first, second = pick_several(rng, world.PEOPLE, 2)
    thing, other = pick_several(rng, tuple(world.USE_OF), 2)
    act, other_act = world.USE_OF[thing], world.USE_OF[other]
    options = pick_several(rng, (thing, other), 2)
    acts = pick_several(rng, (f"{first} wants to {act}.", f"{second} wants to {other_act}."), 2)
    return pick(
        rng,
        (
            f"{first} could take the {options[0]} or the {options[1]}. To {act}, {first} took the {thing}.",
            f"{first} took the {thing} and {second} took the {other}. {_join(acts)}",
            f"People {act} with the {thing} and {other_act} with the {other}.",
        ),
    )


def _owners(rng: np.random.Generator) -> str:
    first, second = pick_several(rng, world.PEOPLE, 2)
    colours, things = pick_several(rng, world.COLOURS, 2), pick_several(rng, world.OBJECTS, 2)
    one, two = f"{colours[0]} {things[0]}", f"{colours[1]} {things[1]}"
    retold = pick_several(rng, (f"The {things[0]} belongs to {first}.", f"The {things[1]} belongs to {second}."), 2)
    return pick(
        rng,
        (
            f"{first} found a {one} and {second} found a {two}. {_join(retold)}",
            f"The {one} is with {first} and the {two} is with {second}. {_join(retold)}",
            f"{first} has a {one} and {second} has a {two}. {_join(retold)}",
        ),
    )


def _whereabouts(rng: np.random.Generator) -> str:
    first, second = pick_several(rng, world.PEOPLE, 2)
    place, other = pick_several(rng, world.PLACES, 2)
    retold = pick_several(rng, (f"{first} stays in the {place}.", f"{second} stays in the {other}."), 2)
    return pick(
        rng,
        (
            f"{first} went to the {place} and {second} went to the {other}. {_join(retold)}",
            f"In the {place} is {first} and in the {other} is {second}. {_join(retold)}",
            f"{first} went to the {place}, so {first} is {world.SIDE_OF[place]}.",
            f"The {place} is {world.SIDE_OF[place]}. The {other} is {world.SIDE_OF[other]}.",
        ),
    )


def _exchange(rng: np.random.Generator) -> str:
    giver, taker = pick_several(rng, world.PEOPLE, 2)
    thing, colour = pick(rng, world.OBJECTS), pick(rng, world.COLOURS)
    return pick(
        rng,
        (
            f"{giver} gave {taker} a {colour} {thing}, so {taker} got the {thing} from {giver}.",
            f"{taker} got a {colour} {thing} from {giver}. It was {giver} who gave {taker} the {thing}.",
        ),
    )


def _synonym(rng: np.random.Generator) -> str:
    word, name, animal = pick(rng, tuple(world.SYNONYM_OF)), pick(rng, world.PEOPLE), pick(rng, world.ANIMALS)
    same = world.SYNONYM_OF[word]
    return pick(
        rng,
        (
            f"{word} means {same}.",
            f"{name} saw a {word} {animal}, that is, a {same} {animal}.",
            f"Whoever is {word} is also {same}.",
        ),
    )


def _category(rng: np.random.Generator) -> str:
    category = pick(rng, tuple(world.CATEGORIES))
    one, two, three = pick_several(rng, world.CATEGORIES[category], 3)
    name = pick(rng, world.PEOPLE)
    return pick(
        rng,
        (
            f"The {one}, the {two} and the {three} are all of one sort: {category}.",
            f"{name} saw {world.article(one)} {one}, which is some {category}.",
            f"{name} likes every {category}: {one}, {two}, {three}.",
        ),
    )


def _judgement(rng: np.random.Generator) -> str:
    name, other = pick_several(rng, world.PEOPLE, 2)
    true = bool(rng.integers(2))
    noun, word, place = pick(rng, world.NOUNS), pick(rng, tuple(world.SYNONYM_OF)), pick(rng, world.PLACES)
    category, same = world.CATEGORY_OF[noun], world.SYNONYM_OF[word]
    if not true:
        category = pick_other(rng, tuple(world.CATEGORIES), category)
        same = pick_other(rng, tuple(world.SYNONYM_OF), word, same)
    side = world.SIDE_OF[place] if true else pick_other(rng, ("inside", "outside"), world.SIDE_OF[place])
    asked = pick(
        rng, (f"the {noun} is some {category}", f"{word} means {same}", f"the {place} is {side}", f"{word} is {same}")
    )
    return f"{name} asked {other} if {asked} and {other} said {'yes' if true else 'no'}."


def _pronoun(rng: np.random.Generator) -> str:
    people = pick_several(rng, (pick(rng, world.FEMALE), pick(rng, world.MALE)), 2)
    meant, state, place = pick(rng, people), pick(rng, tuple(world.NEXT_ACTION)), pick(rng, world.PLACES)
    pronoun = world.PRONOUN[meant]
    return pick(
        rng,
        (
            f"{people[0]} met {people[1]} near the {place} and {pronoun} felt {state}. So {meant} wants to"
            f" {world.NEXT_ACTION[state]}.",
            f"{people[0]} and {people[1]} went to the {place} because {pronoun} was {state}. It was {meant} who was"
            f" {state}.",
        ),
    )


def _it(rng: np.random.Generator) -> str:
    animal, thing = pick(rng, world.ANIMALS), pick(rng, world.OBJECTS)
    meant, states = pick(rng, ((animal, world.LIVING_STATES), (thing, world.THING_STATES)))
    first, second = pick_several(rng, (animal, thing), 2)
    state = pick(rng, states)
    return f"There was {world.article(first)} {first} near the {second} and it was {state}. So the {meant} was {state}."


def _lists(rng: np.random.Generator) -> str:
    name, other = pick_several(rng, world.PEOPLE, 2)
    words = ", ".join(pick_several(rng, world.NOUNS + world.COLOURS, int(rng.integers(3, 7))))
    return f"{name} said {words} and {other} said {words} too."


def _dictionary(rng: np.random.Generator, language: str, words: dict[str, str]) -> str:
    one, two = pick_several(rng, world.SPOKEN, 2)
    return f"In {language} the word for {one} is {words[one]} and the word for {two} is {words[two]}."


def _tavi(rng: np.random.Generator) -> str:
    if rng.integers(2):
        return _dictionary(rng, "Tavi", world.TAVI)
    words = pick(rng, world.SIZES), pick(rng, world.COLOURS), pick(rng, world.SPOKEN_NOUNS)
    return f"The Tavi people say {world.in_tavi(*words)} when they see a {words[0]} {words[1]} {words[2]}."


def _rund(rng: np.random.Generator) -> str:
    return _dictionary(rng, "Rund", world.RUND)


# Share of documents, in hundredths.
_SOURCES: tuple[tuple[Callable[[np.random.Generator], str], int], ...] = (
    (_town, 18),
    (_opinion, 8),
    (_state, 8),
    (_use, 8),
    (_owners, 12),
    (_whereabouts, 8),
    (_exchange, 4),
    (_synonym, 4),
    (_category, 6),
    (_judgement, 5),
    (_pronoun, 5),
    (_it, 3),
    (_lists, 6),
    (_tavi, 4),
    (_rund, 1),
)
_SCHEDULE = tuple(source for source, share in _SOURCES for _ in range(share))


def pretraining_text(seed: int = 0, documents: int = 40_000) -> list[str]:
    """`documents` short passages of the miniature world, about 20 tokens each.

    Args:
      seed: changes which passages are drawn and their order; the world stays the same.
      documents: how many, >= 0. The first n documents do not depend on how many are asked for.
    """
    rng = np.random.default_rng([seed, _STREAM])
    return [pick(rng, _SCHEDULE)(rng) for _ in range(documents)]
