"""Pre-training text of the miniature world: short passages, some with a plain question and its answer, no instruction.

How much of each cluster the text teaches, by design:

| cluster | taught | how |
|---|---|---|
| facts | fully | every town's country and craft, told in several wordings |
| sentiment | fully | every rating word beside its verdict, turns of mood included |
| commonsense | fully | every state with the act that follows, every thing with its use |
| reading, coreference | the skill | who has what and who is where, retold; pronouns resolved by what follows |
| reading with commonsense | fully | a state or a thing of somebody, then what they do |
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

# Makes these draws independent of those of the tasks.
_STREAM = 20410


def _join(sentences: list[str]) -> str:
    return " ".join(sentences)


def _town(rng: np.random.Generator) -> str:
    town = pick(rng, world.TOWNS)
    country, craft = world.COUNTRY_OF[town], world.CRAFT_OF[town]
    return pick(
        rng,
        (
            f"{town} is in {country}. {town} makes {craft}.",
            f"{town} makes {craft}. {town} is in {country}.",
            f"The town of {town} in {country} makes {craft}.",
            f"In {town} they make {craft}. {town} belongs to {country}.",
            f"Where is {town}? {town} is in {country}. What does it make? It makes {craft}.",
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
    name, place = pick(rng, world.PEOPLE), pick(rng, world.PLACES)
    state, other = pick_several(rng, tuple(world.NEXT_ACTION), 2)
    act, other_act = world.NEXT_ACTION[state], world.NEXT_ACTION[other]
    options = pick_several(rng, (act, other_act), 2)
    return pick(
        rng,
        (
            f"{name} could {options[0]} or {options[1]}. Being {state}, {name} wants to {act}.",
            f"{name} was {state} in the {place}. So {name} wants to {act} in the {place}.",
            f"As {name} is {state}, {name} will {act}.",
            f"{name} was {state}. What did {name} want? {name} wanted to {act}.",
            f"People who are {state} want to {act}. People who are {other} want to {other_act}.",
        ),
    )


def _use(rng: np.random.Generator) -> str:
    name, place = pick(rng, world.PEOPLE), pick(rng, world.PLACES)
    thing, other = pick_several(rng, tuple(world.USE_OF), 2)
    act, other_act = world.USE_OF[thing], world.USE_OF[other]
    options = pick_several(rng, (thing, other), 2)
    return pick(
        rng,
        (
            f"{name} could take the {options[0]} or the {options[1]}. To {act}, {name} took the {thing}.",
            f"{name} took the {thing} to the {place}. So {name} can {act} in the {place}.",
            f"To {act} we need a {thing}. With a {thing} we {act}.",
            f"{name} has a {thing}. What can {name} do with it? {name} can {act}.",
            f"People {act} with the {thing} and {other_act} with the {other}.",
        ),
    )


def _owners(rng: np.random.Generator) -> str:
    name, colour, thing = pick(rng, world.PEOPLE), pick(rng, world.COLOURS), pick(rng, world.OBJECTS)
    told = pick(
        rng,
        (
            f"{name} has a {colour} {thing}.",
            f"The {colour} {thing} is with {name}.",
            f"{name} found a {thing}. It is {colour}.",
        ),
    )
    retold = pick_several(
        rng,
        (
            f"The {thing} of {name} is {colour}.",
            f"The {colour} {thing} belongs to {name}.",
            f"{name} likes the {colour} {thing}.",
            f"So {name} has a {colour} {thing}.",
            f"Who has the {thing}? It is {name}.",
        ),
        2,
    )
    return _join([told, *retold])


def _whereabouts(rng: np.random.Generator) -> str:
    name, place = pick(rng, world.PEOPLE), pick(rng, world.PLACES)
    animal, colour = pick(rng, world.ANIMALS), pick(rng, world.COLOURS)
    return pick(
        rng,
        (
            f"{name} went to the {place}. In the {place} is {name}. {name} stays in the {place}.",
            f"{name} saw a {colour} {animal} in the {place}. The {animal} was in the {place} and it was {colour}.",
            f"In the {place} {name} found a {colour} {animal}. So the {animal} of the {place} was {colour}.",
            f"A {colour} {animal} is in the {place}. The {animal} in the {place} is {colour}. "
            f"We saw a {colour} {animal} in the {place}.",
            f"{name} went to the {place}. Where is {name} now? {name} is in the {place}.",
            f"{name} saw a {animal} in the {place}. Where was the {animal}? It was in the {place}.",
            f"{name} went to the {place}, so {name} is {world.SIDE_OF[place]}.",
            f"The {place} is {world.SIDE_OF[place]}.",
        ),
    )


def _exchange(rng: np.random.Generator) -> str:
    giver, taker = pick_several(rng, world.PEOPLE, 2)
    thing, colour = pick(rng, world.OBJECTS), pick(rng, world.COLOURS)
    return pick(
        rng,
        (
            f"{giver} gave {taker} a {colour} {thing}, so {taker} got the {thing} from {giver}.",
            f"{taker} got a {colour} {thing} from {giver}. So {giver} gave {taker} the {thing}.",
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


def _dictionary(rng: np.random.Generator, language: str, words: dict[str, str]) -> str:
    one, two = pick_several(rng, world.SPOKEN, 2)
    return f"In {language} the word for {one} is {words[one]} and the word for {two} is {words[two]}."


def _tavi(rng: np.random.Generator) -> str:
    if rng.integers(2):
        return _dictionary(rng, "Tavi", world.TAVI)
    words = pick(rng, world.SIZES), pick(rng, world.SPOKEN_COLOURS), pick(rng, world.SPOKEN_NOUNS)
    return f"The Tavi people say {world.in_tavi(*words)} when they see a {words[0]} {words[1]} {words[2]}."


def _rund(rng: np.random.Generator) -> str:
    return _dictionary(rng, "Rund", world.RUND)


# Share of the documents that each function writes, in hundredths.
_SOURCES: tuple[tuple[Callable[[np.random.Generator], str], int], ...] = (
    (_town, 15),
    (_opinion, 8),
    (_state, 9),
    (_use, 9),
    (_owners, 14),
    (_whereabouts, 12),
    (_exchange, 4),
    (_synonym, 4),
    (_category, 6),
    (_judgement, 4),
    (_pronoun, 5),
    (_it, 3),
    (_tavi, 6),
    (_rund, 1),
)
_SCHEDULE = tuple(source for source, share in _SOURCES for _ in range(share))


def pretraining_text(seed: int = 0, documents: int = 40_000) -> list[str]:
    """Draws short passages about the miniature world, of about 20 tokens each.

    Args:
      seed: changes which passages are drawn, and their order; the world stays the same.
      documents: number of passages, >= 0. The first n do not depend on how many are drawn.
    """
    rng = np.random.default_rng([seed, _STREAM])
    return [pick(rng, _SCHEDULE)(rng) for _ in range(documents)]
