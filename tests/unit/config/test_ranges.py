"""Every field of the configuration has a rule, and no value of any kind is met with anything but a refusal."""

import copy
import functools
import json
import random
from dataclasses import is_dataclass
from typing import Literal, get_args, get_origin

import pytest

from mossa_jax.config import Config, check, config_to_data, load_config, published_configs, with_fields
from mossa_jax.config.ranges import RANGES, TASK_LISTS
from mossa_jax.config.values import field_types
from mossa_jax.errors import BAD_CONFIG, Refusal

FIELDS = {name: type_ for name, type_ in field_types().items() if not is_dataclass(type_)}
EXTREMES = (
    0, 1, -1, 2, 7, 2**31, 2**32, 2**63, -(2**63), 10**400, 10**5000, 0.0, -0.0, 0.5, 1e-300, 1e308, float("nan"),
    float("inf"), -float("inf"), True, False, None, "", " ", "a", "a\0b", "a\nb", "\ud800", "\ufeff", "x" * 10_000,
    "../..", "~nobody/x", "$NOT_SET/x", "full", "adafactor", "folder", "hub", "all", "suite", (), [], ("a",), ("", ""),
    ("a", "a"), ("q_proj", "q_proj"), ("\0",), tuple("abc") * 5_000, ["a", 3], {}, {"a": 1}, object(), b"x", 1j,
)  # fmt: skip


def set_field(config, name, value):
    group, _, field = name.rpartition(".")
    setattr(functools.reduce(getattr, filter(None, group.split(".")), config), field, value)


def test_every_number_has_a_range_with_two_ends_that_its_default_keeps():
    numbers = {name for name, type_ in FIELDS.items() if type_ in (int, float)}
    assert numbers == RANGES.keys()
    for name, limits in RANGES.items():
        default = functools.reduce(getattr, name.split("."), Config())
        assert limits.problem(default) == "", name
        assert limits.problem(limits.least - 1) and limits.problem(10**400), name


def test_every_other_field_is_a_choice_a_truth_a_text_or_a_list():
    kinds = {name: get_origin(type_) or type_ for name, type_ in FIELDS.items() if name not in RANGES}
    assert set(kinds.values()) == {Literal, bool, str, tuple}
    lists = {name for name, kind in kinds.items() if kind is tuple and get_origin(get_args(FIELDS[name])[0]) is None}
    assert lists - set(TASK_LISTS) == {"tasks.sources"}


@pytest.mark.parametrize("name", [*RANGES])
def test_a_number_outside_its_range_is_refused_by_its_name(name):
    for value in (RANGES[name].least - 1, RANGES[name].most + 1 if RANGES[name].most < 1e9 else 1e31, 10**400):
        config = Config()
        number = int(value) if FIELDS[name] is int else value
        set_field(config, name, number)
        with pytest.raises(Refusal, match=rf"^config\.{name}=") as caught:
            check(config)
        assert caught.value.code == BAD_CONFIG and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("name", "a\0b", "must not hold control characters"),
        ("base", "a\ud800", "must be UTF-8"),
        ("tasks.folder", "x" * 5_000, "must have at most 4,096 characters"),
        ("tasks.only", ("a", " "), "must not hold an empty name"),
        ("tuning.targets", ("q_proj", "q_proj"), "must not name anything twice"),
        ("mesh.fsdp", 0, "must be at least 1, or -1 for the rest"),
        ("pretraining.heads", 5, "must be a multiple of twice heads=5"),
    ],
)
def test_texts_lists_and_pairs_have_rules_too(name, value, words):
    config = Config()
    set_field(config, name, value)
    with pytest.raises(Refusal, match=words):
        check(config)


def test_a_task_may_be_called_what_the_data_call_it():
    check(with_fields(Config(), {"tasks.only": ("line\nbreak", "tab\t", "コロン:")}))


def test_no_drawn_configuration_ends_in_anything_but_a_refusal(tmp_path):
    draw, names, refused = random.Random(21), [*FIELDS], 0
    for number in range(2_000):
        changes = {draw.choice(names): draw.choice(EXTREMES) for _ in range(draw.choice((1, 1, 2, 4)))}
        config = Config()
        for name, value in changes.items():
            set_field(config, name, copy.copy(value))
        try:
            check(config)
            assert json.loads(json.dumps(config_to_data(config)))
            with_fields(Config(), changes)
        except Refusal as refusal:
            assert refusal.code == BAD_CONFIG and len(str(refusal)) < 1_000, changes
            refused += 1
        if number % 10 == 0:
            file = tmp_path / "config.json"
            try:
                file.write_text(json.dumps(changes), encoding="utf-8", errors="surrogatepass")
                load_config(file)
            except (Refusal, TypeError, ValueError) as error:
                # JSON itself takes neither objects nor bytes.
                assert isinstance(error, Refusal) or "serializ" in str(error) or "digits" in str(error), changes
    assert 500 < refused < 2_000


@pytest.mark.parametrize("name", [*published_configs()])
def test_published_configs_keep_all_rules(name):
    if not name.startswith("sweep"):
        check(load_config(name))
