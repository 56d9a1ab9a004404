"""Paraphrase, inference and misc: clusters that judge or sort what they are given.

The pre-training text holds the knowledge that they turn on (synonyms, who got what from whom, categories, which places
are outside, word order) and now and then a judgement in reported speech, so these clusters are held in part.
"""

from __future__ import annotations

import numpy as np

from mossa_jax.tasks.miniature import world
from mossa_jax.tasks.miniature.recipes.recipe import Item, Kind

_TWO_SENTENCES = (
    "One: {one} Two: {two} Do they mean the same? Answer:",
    "{one} {two} Same meaning, yes or no?",
    "Compare. {one} Against: {two} Same? Answer:",
    "Does the first say what the second says? {one} {two} Answer:",
    "First: {one} Second: {two} Equal, yes or no:",
    "Text: {one} Other text: {two} Is it a paraphrase?",
    "Yes or no, is this said in other words? {one} {two} Answer:",
    "Are these two alike? {one} And: {two} Answer:",
    "Can I replace this: {one} With this: {two} Yes or no?",
    "Check the meaning. {one} Copy: {two} Is the copy right?",
)


def _synonym_pair(rng: np.random.Generator) -> Item:
    same = bool(rng.integers(2))
    word = world.pick(rng, tuple(world.SYNONYM_OF))
    other = (
        world.SYNONYM_OF[word] if same else world.pick_other(rng, tuple(world.SYNONYM_OF), word, world.SYNONYM_OF[word])
    )
    animal, place = world.pick(rng, world.ANIMALS), world.pick(rng, world.PLACES)
    fields = {"one": f"The {word} {animal} ran to the {place}.", "two": f"The {other} {animal} ran to the {place}."}
    return Item((*sorted((word, other)), animal, place), "yes" if same else "no", fields)


def _gave_got(rng: np.random.Generator) -> Item:
    same = bool(rng.integers(2))
    giver, taker = world.pick_several(rng, world.PEOPLE, 2)
    thing = world.pick(rng, world.OBJECTS)
    source, goal = (giver, taker) if same else (taker, giver)
    fields = {"one": f"{giver} gave {taker} the {thing}.", "two": f"{goal} got the {thing} from {source}."}
    return Item((giver, taker, thing), "yes" if same else "no", fields)


def _inference(rng: np.random.Generator, truth: str, falsehood: str, said: str) -> tuple[str, dict[str, str], str]:
    """A premise about one person, a hypothesis, and the verdict: "maybe" where it speaks of someone else."""
    verdict = world.pick(rng, ("yes", "no", "maybe"))
    name, other = world.pick_several(rng, world.PEOPLE, 2)
    about = other if verdict == "maybe" else name
    claim = falsehood if verdict == "no" else truth
    return verdict, {"premise": f"{name} {said}.", "claim": f"{about} {claim}"}, name


def _category_inference(rng: np.random.Generator) -> Item:
    noun = world.pick(rng, world.NOUNS)
    category = world.CATEGORY_OF[noun]
    wrong = world.pick_other(rng, tuple(world.CATEGORIES), category)
    verdict, fields, name = _inference(
        rng, f"has some {category}", f"has some {wrong}", f"bought {world.article(noun)} {noun}"
    )
    return Item((name, noun), verdict, fields)


def _place_inference(rng: np.random.Generator) -> Item:
    place = world.pick(rng, world.PLACES)
    side = world.SIDE_OF[place]
    wrong = "inside" if side == "outside" else "outside"
    act = world.pick(rng, tuple(world.NEXT_ACTION.values()))
    verdict, fields, name = _inference(rng, f"is {side}", f"is {wrong}", f"will {act} in the {place}")
    return Item((name, place, act), verdict, fields)


def _odd_word(rng: np.random.Generator) -> Item:
    most, least = world.pick_several(rng, tuple(world.CATEGORIES), 2)
    words = world.pick_several(rng, world.CATEGORIES[most], 2)
    odd = world.pick(rng, world.CATEGORIES[least])
    shown = world.pick_several(rng, (*words, odd), 3)
    return Item((*sorted(words), odd), odd, {"one": shown[0], "two": shown[1], "three": shown[2]})


def _grammar(rng: np.random.Generator) -> Item:
    correct = bool(rng.integers(2))
    name, colour, thing = world.pick(rng, world.PEOPLE), world.pick(rng, world.COLOURS), world.pick(rng, world.OBJECTS)
    words = [name, "has", "a", colour, thing]
    if not correct:
        at = int(rng.integers(1, 4))
        words[at], words[at + 1] = words[at + 1], words[at]
    return Item((name, colour, thing), "correct" if correct else "wrong", {"text": " ".join(words)})


_PREMISE_AND_CLAIM = (
    "{premise} So {claim}? Yes, no or maybe:",
    "Given: {premise} Claim: {claim}. True? Answer:",
    "Premise: {premise} Does it follow that {claim}?",
    "If this is true: {premise} is it true that {claim}?",
    "{premise} Can we say that {claim}? Answer:",
    "Text: {premise} Statement: {claim}. Verdict:",
    "Decide if {claim}. We know: {premise} Answer:",
    "Yes, no or maybe? {premise} Then {claim}. Answer:",
    "We read: {premise} Someone adds: {claim}. Right?",
    "Claim: {claim}. Evidence: {premise} Conclusion:",
)

KINDS = (
    Kind("paraphrase_synonym", "paraphrase", _TWO_SENTENCES, _synonym_pair),
    Kind("paraphrase_exchange", "paraphrase", _TWO_SENTENCES, _gave_got),
    Kind("inference_category", "inference", _PREMISE_AND_CLAIM, _category_inference),
    Kind("inference_place", "inference", _PREMISE_AND_CLAIM, _place_inference),
    Kind(
        "misc_odd_word",
        "misc",
        (
            "Which word does not fit: {one}, {two}, {three}?",
            "Odd one out: {one}, {two}, {three}. Answer:",
            "Find the odd word. {one} {two} {three} Answer:",
            "Two of these belong together: {one}, {two}, {three}. The other is",
            "One word must leave: {one}, {two}, {three}. It is",
            "List: {one}, {two}, {three}. Odd word:",
            "Remove the word that is not like the others. {one}, {two}, {three}. Removed:",
            "Among {one}, {two} and {three}, which is different?",
            "Pick the stranger from {one}, {two}, {three}:",
            "A list went wrong: {one}, {two}, {three}. The mistake is",
        ),
        _odd_word,
    ),
    Kind(
        "misc_grammar",
        "misc",
        (
            "Is this sentence correct or wrong? {text}. Answer:",
            "Sentence: {text}. Grammar:",
            "Check the word order: {text}. Result:",
            "{text}. Correct or wrong?",
            "Would a teacher mark this as correct or wrong? {text}. Mark:",
            "Judge the grammar. {text}. Answer:",
            "A pupil wrote: {text}. This is",
            "Read the line: {text}. Is its order correct or wrong?",
            "Label as correct or wrong. {text}. Label:",
            "Test of language. {text}. Verdict:",
        ),
        _grammar,
    ),
)
