"""Configurations as plain data: nothing is lost on the way to JSON and back, and wrong data is refused by name."""

import json
from dataclasses import replace

import pytest

from mossa_jax.config import (
    Config,
    Schedule,
    Tuning,
    check,
    config_from_data,
    config_to_data,
    load_config,
    load_runs,
    published_configs,
    with_fields,
)
from mossa_jax.errors import Refusal


def refused(call):
    with pytest.raises(Refusal) as caught:
        call()
    assert caught.value.code == 2
    return str(caught.value)


def published():
    return [config for name in published_configs() for config in load_runs(name).values()]


def kinds(value):
    return {name: kinds(one) for name, one in vars(value).items()} if hasattr(value, "__dict__") else type(value)


def test_every_published_config_comes_back_from_json_the_same():
    configs = published()
    assert len(configs) >= 8 and len({config.name for config in configs}) == len(configs)
    for config in configs:
        back = config_from_data(json.loads(json.dumps(config_to_data(config))), "x")
        assert back == config and kinds(back) == kinds(config)


def test_fields_that_are_missing_have_their_defaults():
    data = {"seed": 3, "tuning": {"control": {"epochs": 2}, "targets": ["q_proj"]}, "results_format": 3}
    expected = replace(Config(seed=3), tuning=Tuning(control=Schedule(epochs=2), targets=("q_proj",)))
    assert config_from_data(data, "x") == expected


def test_values_take_the_type_of_their_field_and_the_original_stays_as_it_is():
    before = Config()
    after = with_fields(before, {"tuning.rank": 4, "tuning": {"remat": True}, "tasks": {"only": ["a", "b"]}})
    assert before == Config()
    assert (after.tuning.rank, after.tuning.remat, after.tasks.only) == (4, "on", ("a", "b"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([1], "x: holds a list; a configuration is an object"),
        (None, "x: holds null"),
        ({"tuning": {"rnak": 3}}, "x: tuning.rnak: no such field; did you mean tuning.rank?"),
        ({"rank": 3}, "x: rank: no such field; did you mean tuning.rank?"),
        ({"tuning": 8}, "x: tuning=8: is a group of fields, as tuning.rank; set those"),
        ({"tuning": {"rank": "8"}}, "x: tuning.rank='8': must be a whole number"),
        ({"tuning": {"rank": True}}, "x: tuning.rank=True: must be a whole number"),
        ({"tuning": {"alpha": "8"}}, "x: tuning.alpha='8': must be a number"),
        ({"tuning": {"alpha": float("nan")}}, "x: tuning.alpha=nan: must be finite"),
        ({"tuning": {"reproducible": 1}}, "x: tuning.reproducible=1: must be true or false"),
        ({"base": None}, "x: base=None: must be a text"),
        ({"compare": {"pool": "men"}}, "x: compare.pool='men': must be one of last, mean, all; did you mean mean?"),
        ({"tuning": {"targets": ["q_prj"]}}, "x: tuning.targets=['q_prj']: must be some of q_proj, k_proj"),
        ({"tuning": {"targets": "q_proj"}}, "x: tuning.targets='q_proj': must be some of q_proj"),
        ({"tasks": {"only": "facts"}}, "x: tasks.only='facts': must be texts in a list"),
        ({"tasks": {"only": [1]}}, "x: tasks.only=[1]: must be texts in a list"),
        ({"architectures": ["L"], "hidden_size": 1, "eos": 2}, "is it a model's, for config.base?"),
    ],
)
def test_wrong_data_is_refused_with_source_field_and_value(data, words):
    assert words in refused(lambda: config_from_data(data, "x"))


def test_a_field_that_is_given_twice_is_refused():
    assert "tuning.rank is given twice" in refused(
        lambda: with_fields(Config(), {"tuning.rank": 1, "tuning": {"rank": 2}})
    )


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Config(tuning=Tuning(rank="8")), "config.tuning.rank='8': must be a whole number"),
        (Config(tuning=Tuning(clip=float("inf"))), "config.tuning.clip=inf: must be finite"),
        (Config(seed=1.5), "config.seed=1.5: must be a whole number"),
    ],
)
def test_a_python_file_cannot_bring_values_of_other_types(config, words):
    assert words in refused(lambda: check(config))


def test_load_config_takes_what_config_to_data_gives(tmp_path):
    config = load_config("demo")
    (tmp_path / "config.json").write_text(json.dumps(config_to_data(config) | {"results_format": 3}))
    assert load_config(tmp_path) == load_config(tmp_path / "config.json") == config
