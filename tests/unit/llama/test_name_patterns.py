"""Patterns of others match names as Python's own matcher says, and never run away."""

import random
import re

import pytest

from mossa_jax.llama.files.name_patterns import LONGEST, Budget, NamePattern, PatternError

NAMES = (
    "model.layers.12.self_attn.q_proj", "model.layers.3.mlp.up_proj", "layers.0.mlp.down_proj", "lm_head", "aab",
    "abab",
)  # fmt: skip
ATOMS = (
    "a", "b", ".", r"\.", r"\d", r"\w", r"\W", "[a-c]", "[^b.]", r"\b", "^", "$", "model", "layers", "q_proj", "(?=a)",
    "(?!b)", "(?<=a)", "(?<!l)", r"\Z", r"\A", "[0-9]+", "M", "(?i:MODEL)", r"\S", "_", "(?#c)",
)  # fmt: skip


def drawn(rng, depth):
    """A random pattern, of a size for which Python's own matcher is quick."""
    kind = rng.random()
    if depth == 0 or kind < 0.3:
        return rng.choice(ATOMS)
    if kind < 0.6:
        return "".join(drawn(rng, depth - 1) for _ in range(rng.randint(1, 4)))
    if kind < 0.75:
        return "(?:" + "|".join(drawn(rng, depth - 1) for _ in range(rng.randint(1, 3))) + ")"
    if kind < 0.85:
        return rng.choice(("(", "(?=", "(?!")) + drawn(rng, depth - 1) + ")"
    return f"(?:{drawn(rng, 1)})" + rng.choice(("*", "+", "?", "*?", "{2}", "{1,3}", "{,2}?", "{2,}", "+?"))


def test_drawn_patterns_match_as_pythons_own_matcher_says():
    rng, compared = random.Random(7), 0
    while compared < 4000:
        pattern = drawn(rng, 3)
        try:
            theirs = re.compile(pattern)
        except re.error:
            continue
        if sum(map(pattern.count, "*+{")) > 2 or len(pattern) > 60:
            continue
        ours = NamePattern(pattern, Budget(100))
        for name in NAMES:
            assert ours.matches(name) == bool(theirs.fullmatch(name)), (pattern, name)
            assert ours.matches(name, is_whole=False) == bool(theirs.match(name)), (pattern, name)
            compared += 1


def test_what_stands_around_a_pattern_counts_for_plain_names_too():
    for key in ("q_proj", "self_attn.q_proj", "x|q_proj"):
        around = NamePattern(key, Budget(1), r"(.*\.)?(", ")$")
        assert around.matches(NAMES[0]) and not around.matches(NAMES[1]) and not around.matches("xq_proj.y")


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(.*.*)*x", "(x?){1,60000}y", "((.{1,50}){1,50}){1,50}z", "(((.*)*)*)*q", "(a|a|a|.)*b",
     "(.|.)" * 40 + "!", "(" * 40 + "a*" + ")*" * 40 + "$"],
)  # fmt: skip
def test_patterns_that_run_away_elsewhere_have_their_answer(pattern):
    """Each is `False` by hand: it asks for a last sign that the name does not have, or is not `a` alone."""
    budget = Budget(1)
    assert not NamePattern(pattern, budget).matches("model.layers.12.self_attn.a_proj")
    assert 0 <= budget.left


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (".*" * 1000 + "x", "too intricate"),
        ("a" * (LONGEST + 1), f"{LONGEST:,} are the most"),
        ("q_(proj", "no valid regular expression"),
        ("(" * 3000, "no valid regular expression"),
        ("a{99999999999}", "no valid regular expression"),
        ("(?P<x>m)(?P=x)", "groupref"),
        ("(?>m)", "atomic_group"),
        ("m*+", "possessive_repeat"),
    ],
    ids=lambda text: text[:12],
)
def test_patterns_that_are_not_matched_are_named(pattern, words):
    with pytest.raises(PatternError, match=words):
        NamePattern(pattern, Budget(1)).matches(NAMES[0])


def test_one_budget_serves_several_patterns():
    budget = Budget(1)
    before = budget.left
    NamePattern(".*x", budget).matches(NAMES[0])
    NamePattern(".*y", budget).matches(NAMES[0])
    assert budget.left < before - 2 * len(NAMES[0])
