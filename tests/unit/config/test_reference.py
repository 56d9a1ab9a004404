"""The configuration explains every field and refuses values that cannot work."""

import dataclasses

import pytest

from mossa_jax.config import Analyse, Config, Schedule, Tasks, Tuning, check, describe_fields
from mossa_jax.errors import Refusal


def names(group, above=""):
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        if dataclasses.is_dataclass(value):
            yield from names(value, f"{above}{field.name}.")
        else:
            yield f"{above}{field.name}"


def test_every_field_is_described_once_with_its_type_and_default():
    described = {field.name: field for field in describe_fields()}
    assert list(described) == list(names(Config())) and len(described) > 80
    assert all(field.text.endswith(".") and "\n" not in field.text for field in described.values())
    rank, pool, track = described["tuning.rank"], described["compare.pool"], described["track"]
    assert (rank.type, rank.default) == ("int", "8") and "authors" in rank.text
    assert (pool.type, pool.default) == ("last | mean | all", "last")
    assert (track.type, track.default) == ("tuple of tensorboard | wandb", "()")


def test_the_defaults_are_accepted():
    check(Config())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(dtype="float16"), "config.dtype='float16': must be one of float32, bfloat16"),
        (Config(seed=-1), "config.seed=-1: must be at least 0"),
        (Config(tasks=Tasks(suite="glue")), "config.tasks.suite='glue': must be one of miniature, flan2021"),
        (
            Config(tuning=Tuning(targets=("w",))),
            "config.tuning.targets=('w',): must be some of q_proj",
        ),
        (Config(tuning=Tuning(targets=())), "config.tuning.targets=(): must be some of q_proj"),
        (Config(tuning=Tuning(rank=0)), "config.tuning.rank=0: must be at least 1"),
        (
            Config(tuning=Tuning(control=Schedule(parts=3))),
            "config.tuning.control.parts=3: must be at least 1",
        ),
        (Config(tuning=Tuning(control=Schedule(optimizer="adafactor"))), "adapters are tuned by adamw only"),
        (Config(analyse=Analyse(layers_prompts=3)), "config.analyse.layers_prompts=3: must be at least 4"),
        (Config(analyse=Analyse(merged_rank=0)), "config.analyse.merged_rank=0: must be at least 1"),
        (Config(analyse=Analyse(merged_scale=0.0)), "config.analyse.merged_scale=0.0: must be above 0"),
    ],
)
def test_a_wrong_value_is_refused_with_what_it_may_be(config, message):
    with pytest.raises(Refusal) as caught:
        check(config)
    assert message in str(caught.value) and caught.value.code == 2
