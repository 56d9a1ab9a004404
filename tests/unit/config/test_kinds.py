"""What rests on which field: every field has a kind, and variants have names that say how they differ."""

import dataclasses

import pytest

from mossa_jax.config import Config, Schedule, Tuning, describe_fields
from mossa_jax.config.kinds import differences, kind_of, model_identity, name_of, tuning_identity


def test_models_rest_on_no_field_of_a_later_stage():
    kinds = {entry.name: kind_of(entry.name) for entry in describe_fields()}
    later = {name for name, kind in kinds.items() if kind == "later"}
    assert {"compare.pool", "compare.permutations", "analyse.profile", "tuning.score_prompts"} <= later
    assert all(name.startswith(("compare.", "analyse.", "tuning.score_")) for name in later)
    assert {kinds[name] for name in ("tuning.rank", "tokens.template", "base", "tasks.max_test", "seed")} == {"earlier"}
    assert {kinds[name] for name in ("mesh.fsdp", "name", "tasks.folder", "tuning.checkpoint_every")} == {"free"}


def test_checkpoints_rest_on_what_training_follows_from():
    one = Tuning()
    for field, value in (("checkpoint_every", 7), ("score_prompts", 3), ("snapshots", 2), ("skips", 9)):
        assert tuning_identity(dataclasses.replace(one, **{field: value})) == tuning_identity(one), field
    for field, value in (("rank", 4), ("slots", 2), ("reproducible", True), ("log_every", 3)):
        assert tuning_identity(dataclasses.replace(one, **{field: value})) != tuning_identity(one), field


def test_a_model_rests_on_its_own_schedule_and_not_on_what_is_tuned_beside_it():
    own = model_identity(Tuning(), Schedule())
    beside = Tuning(seeds=3, control_seeds=1, slots=2, log_every=3, twins=(), experimental=Schedule(epochs=9))
    assert model_identity(beside, Schedule(parts=2)) == own
    assert model_identity(Tuning(), Schedule(epochs=9)) != own != model_identity(Tuning(rank=4), Schedule())
    # A model without snapshots cannot stand for one with them.
    assert model_identity(Tuning(snapshots=2), Schedule()) != own


def test_differences_are_named_by_field():
    old, new = dataclasses.asdict(Config()), dataclasses.asdict(Config(seed=3))
    new["tuning"]["control"]["epochs"] = 1.0
    assert differences(old, new) == {"seed": (0, 3), "tuning.control.epochs": (3.0, 1.0)}
    assert differences(old, old) == {}


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, ""),
        ({"compare.pool": "mean"}, "compare.pool=mean"),
        ({"compare.pool": "mean", "analyse.map": False}, "compare.pool=mean,analyse.map=False"),
        ({"analyse.layers_tasks": ["a", "b"]}, "analyse.layers_tasks=a+b"),
    ],
)
def test_a_variant_says_how_it_differs(values, name):
    assert name_of(values) == name


def test_no_two_variants_share_a_name_on_any_file_system():
    lists = (["a", "b"], ["a+b"], ["A", "b"], ["a,b"], ["a=b"], [], [""], ["x."], ["a-0123456789abcdef"], "a+b")
    names = [name_of({"analyse.layers_tasks": value}) for value in lists]
    assert names[0] == "analyse.layers_tasks=a+b"
    assert len({name.lower() for name in names}) == len(names) and not any(name.endswith(".") for name in names)


def test_names_that_no_folder_may_have_are_replaced_and_stay_apart():
    names = [name_of({"analyse.layers_tasks": [task]}) for task in ("a/b", "a b", "ü", "x" * 300, "x" * 301, "..")]
    assert len(set(names)) == len(names)
    assert all("/" not in name and name.isascii() and 0 < len(name) < 120 for name in names)
