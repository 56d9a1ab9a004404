"""Closed-book facts, sentiment and commonsense: clusters whose knowledge the pre-training text holds in full.

Facts: every town's country and craft is told many times over; the towns of the test split never occur in the train
split, so only the wording can be learnt from it. Sentiment: every rating word stands beside its verdict.
Commonsense: every state is told with the act that follows it, every thing with its use.
"""

from __future__ import annotations

import numpy as np

from mossa_jax.tasks.miniature import world
from mossa_jax.tasks.miniature.recipes.recipe import Item, Kind


def _town_country(rng: np.random.Generator) -> Item:
    town, name = world.pick(rng, world.TOWNS), world.pick(rng, world.PEOPLE)
    return Item((town,), world.COUNTRY_OF[town], {"town": town, "name": name})


def _town_craft(rng: np.random.Generator) -> Item:
    town, name = world.pick(rng, world.TOWNS), world.pick(rng, world.PEOPLE)
    return Item((town,), world.CRAFT_OF[town], {"town": town, "name": name})


def _review(rng: np.random.Generator) -> Item:
    verdict, words = world.pick(rng, (("good", world.GOOD_WORDS), ("bad", world.BAD_WORDS)))
    thing = world.pick(rng, world.RATED)
    first, second = world.pick_several(rng, words, 2)
    fields = {"thing": thing, "first": first, "second": second}
    return Item((thing, *sorted((first, second))), verdict, fields)


def _surprise(rng: np.random.Generator) -> Item:
    mood, hoped, found = world.pick(
        rng, (("happy", world.BAD_WORDS, world.GOOD_WORDS), ("unhappy", world.GOOD_WORDS, world.BAD_WORDS))
    )
    thing, before, after = world.pick(rng, world.RATED), world.pick(rng, hoped), world.pick(rng, found)
    return Item((thing, before, after), mood, {"thing": thing, "before": before, "after": after})


def _next_action(rng: np.random.Generator) -> Item:
    name = world.pick(rng, world.PEOPLE)
    state, other = world.pick_several(rng, tuple(world.NEXT_ACTION), 2)
    options = world.pick_several(rng, (world.NEXT_ACTION[state], world.NEXT_ACTION[other]), 2)
    fields = {"name": name, "state": state, "one": options[0], "two": options[1]}
    return Item((name, state, other), world.NEXT_ACTION[state], fields)


def _use(rng: np.random.Generator) -> Item:
    thing, other = world.pick_several(rng, tuple(world.USE_OF), 2)
    options = world.pick_several(rng, (thing, other), 2)
    fields = {"use": world.USE_OF[thing], "one": options[0], "two": options[1]}
    return Item((thing, other), thing, fields)


KINDS = (
    Kind(
        "facts_country",
        "facts",
        (
            "Which country is {town} in, {name}?",
            "{name} must name the country of the town {town}:",
            "Question by {name}: what country is {town} part of? Answer:",
            "{name} comes from {town}, so from which country?",
            "Visitor: {name} Town: {town} Country:",
            "Tell {name} the country where one can visit {town}:",
            "Fill in the country for {name}. {town}:",
            "If {name} travels to {town}, which country is it?",
            "Geography test for {name}. Where is {town}? Answer:",
            "Give {name} the country of {town} in one word:",
        ),
        _town_country,
    ),
    Kind(
        "facts_craft",
        "facts",
        (
            "What is {town} famous for, {name}?",
            "{name} must name the product of the town {town}:",
            "Question by {name}: what does {town} sell? Answer:",
            "Which product would {name} buy in {town}?",
            "Visitor: {name} Town: {town} Product:",
            "Tell {name} what one can buy in {town}:",
            "Fill in the product for {name}. {town}:",
            "If {name} travels to {town}, which product is there?",
            "Market test for {name}. What comes from {town}? Answer:",
            "Give {name} the product of {town} in one word:",
        ),
        _town_craft,
    ),
    Kind(
        "sentiment_review",
        "sentiment",
        (
            "Review: the {thing} was {first} and {second}. Is the review good or bad?",
            "A {first} and {second} {thing}. Verdict, good or bad:",
            "Someone wrote: {first} {thing}, {second} too. Opinion:",
            "Judge this text as good or bad. {first}, {second} {thing}. Answer:",
            "Rate the {thing}. Notes: {first}, {second}. Rating:",
            "Does the writer find the {thing} good or bad? Text: {second} and {first}. Answer:",
            "Critics call the {thing} {first}, even {second}. Their verdict:",
            "What a {first} {thing}, so {second}! The tone is",
            "Label the review. {thing}: {second}, {first}. Label:",
            "Read: this {thing} is {first}. It is {second}. Was it good or bad?",
        ),
        _review,
    ),
    Kind(
        "sentiment_surprise",
        "sentiment",
        (
            "I expected a {before} {thing} but it was {after}. How do I feel?",
            "We feared a {before} {thing}. It was {after}. Mood:",
            "The {thing} looked {before} but turned out {after}. Happy or unhappy?",
            "Guest: not {before} at all, the {thing} was {after}. The guest is",
            "Text: {before} at first, {after} in the end, this {thing}. Mood of the writer:",
            "Is the writer happy or unhappy? They promised a {before} {thing}. It was {after}. Answer:",
            "Name the mood. Promised: {before} {thing}. Found: {after}. Mood:",
            "Others called the {thing} {before}. I call it {after}. I am",
            "Label the feeling: {thing}, not {before} but {after}. Feeling:",
            "How does a guest feel who expected {before} and found a {after} {thing}?",
        ),
        _surprise,
    ),
    Kind(
        "commonsense_next",
        "commonsense",
        (
            "{name} is {state}. What comes next: {one} or {two}?",
            "Choose {one} or {two}. {name} feels {state}. Answer:",
            "What will {name} do when {state}? Options: {one}, {two}. Answer:",
            "{name} is {state}. Options: {one}, {two}. Best option:",
            "Pick the act that fits. {name}: {state}. {one} or {two}?",
            "Since {name} feels {state}, will it be {one} or {two}?",
            "Which is more likely for {name}, {one} or {two}? {name} is {state}. Answer:",
            "Story: {name} is very {state}. Ending, {one} or {two}:",
            "Complete the story with {one} or {two}. {name} is {state} and will",
            "Between {one} and {two}, what does a {state} person like {name} choose?",
        ),
        _next_action,
    ),
    Kind(
        "commonsense_use",
        "commonsense",
        (
            "Which is better to {use}: {one} or {two}?",
            "Choose {one} or {two}. I must {use}. Answer:",
            "What will you need to {use}? Options: {one}, {two}. Answer:",
            "My task is to {use}. Options: {one}, {two}. Best option:",
            "Pick the thing that fits. Task: {use}. {one} or {two}?",
            "Since I have to {use}, will it be {one} or {two}?",
            "Which is more useful, {one} or {two}? The task is to {use}. Answer:",
            "Story: we had to {use}. We bought, {one} or {two}:",
            "Complete the plan with {one} or {two}. Today we {use} with the",
            "Between {one} and {two}, what does a person choose to {use}?",
        ),
        _use,
    ),
)
