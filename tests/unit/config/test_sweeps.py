"""Sweeps: every combination once, under a name that says what is varied and that a folder can have."""

import re

import pytest

from mossa_jax.config import Config, Tuning, load_runs, sweep, varied_fields
from mossa_jax.config.sweeps import check_sweep
from mossa_jax.errors import Refusal


def refused(call):
    with pytest.raises(Refusal) as caught:
        call()
    assert caught.value.code == 2
    return str(caught.value)


def test_every_combination_has_a_run_named_by_what_is_varied():
    base = Config(name="n")
    runs = sweep(base, **{"tuning.rank": (4, 8), "seed": (0, 1)})
    assert list(runs) == [f"tuning.rank={rank},seed={seed}" for rank in (4, 8) for seed in (0, 1)]
    for name, config in runs.items():
        rank, seed = map(int, re.findall(r"\d+", name))
        assert config == Config(name=f"n {name}", seed=seed, tuning=Tuning(rank=rank))
    assert base == Config(name="n")
    assert varied_fields(runs)["tuning.rank=8,seed=0"] == {"seed": 0, "tuning.rank": 8}


def test_names_can_be_those_of_folders_whatever_the_values_are():
    bases = ["meta-llama/Llama-2-7b-hf", "a b", "ä", "x" * 300, "x" * 301]
    names = list(sweep(Config, base=bases, **{"tuning.targets": (("q_proj",), ("q_proj", "v_proj"))}))
    assert len(set(names)) == 10
    assert all(re.fullmatch(r"[A-Za-z0-9_.,=+-]{1,120}", name) for name in names)
    assert list(sweep(Config, **{"tuning.targets": (["q_proj", "v_proj"],)})) == ["tuning.targets=q_proj+v_proj"]


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({}, "no field is varied"),
        ({"seed": 3}, "seed=3: must be a tuple of one value per run"),
        ({"base": "miniature"}, "must be a tuple"),
        ({"seed": ()}, "must be a tuple"),
        ({"seed": (1, 1)}, "the run seed=1 is there twice"),
        ({"seed": ("x",)}, "sweep: seed='x': must be a whole number"),
        ({"tuning.rnak": (1, 2)}, "tuning.rnak: no such field; did you mean tuning.rank?"),
    ],
)
def test_axes_that_make_no_sweep_are_refused(axes, words):
    assert words in refused(lambda: sweep(Config(), **axes))


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ({}, "at least one run"),
        ([Config()], "a mapping"),
        ({"a": 1}, "the run a is no mossa_jax Config"),
        ({"a/b": Config()}, "'a/b': a run's name is that of its folder"),
        ({"..": Config()}, "'..': a run's name"),
        ({"": Config()}, "'': a run's name"),
        ({1: Config()}, "1: a run's name"),
    ],
)
def test_a_mapping_that_is_no_sweep_is_refused(runs, words):
    assert words in refused(lambda: check_sweep(runs, "x"))


def test_the_published_sweep_varies_rank_and_seed_of_the_demo():
    runs = load_runs("sweep_demo_rank")
    assert [tuple(fields.values()) for fields in varied_fields(runs).values()] == [(0, 4), (1, 4), (0, 8), (1, 8)]
    assert all(config.base == "miniature" and not config.analyse.profile for config in runs.values())
