"""What models rest on: the same digest for the same settings, and a reason where two differ."""

import copy

import pytest

from mossa_jax.config import Config
from mossa_jax.run.basis import base_identity, basis_digest, control_basis, experimental_basis, why_different
from mossa_jax.tasks.controls import Control
from mossa_jax.tasks.suite import Task

RECORD = {
    "base": {"base": "m", "revision": "", "dtype": "float32"},
    "template": {"name": "none"},
    "tasks": {name: {"train": {"digest": name * 4}} for name in ("a", "b")},
}


def specialist(config=None, record=RECORD, seed=(0, 1), is_twin=False):
    task = Task("a", "c", read=lambda split: [])
    return control_basis(config or Config(), record, Control("a", task, is_twin), seed)


def test_a_number_is_the_same_from_a_file_and_from_a_flag():
    whole, point = Config(), Config()
    whole.tuning.control.epochs, point.tuning.control.epochs = 2, 2.0
    assert basis_digest(specialist(whole)) == basis_digest(specialist(point))
    point.tuning.control.epochs = 2.5
    assert basis_digest(specialist(whole)) != basis_digest(specialist(point))


def test_each_thing_that_a_specialist_rests_on_has_its_reason():
    before = specialist()
    assert basis_digest(before) == basis_digest(specialist())
    rank, rows = Config(), copy.deepcopy(RECORD)
    rank.tuning.rank, rows["tasks"]["a"]["train"]["digest"] = 16, "other"
    base = {**RECORD, "base": {**RECORD["base"], "dtype": "bfloat16"}}
    for other, reason in (
        (specialist(rank), "tuning.rank was 8, now 16"),
        (specialist(record=rows), "other rows of a"),
        (specialist(record=base), "base.dtype was 'float32', now 'bfloat16'"),
        (specialist(seed=(1, 1)), "seed was [0, 1], now [1, 1]"),
        (specialist(is_twin=True), "answers was 'own', now 'permuted'"),
    ):
        assert basis_digest(other) != basis_digest(before) and why_different(before, other) == reason
    # Rows of other tasks are nothing to a specialist.
    rows = copy.deepcopy(RECORD)
    rows["tasks"]["b"]["train"]["digest"] = "other"
    assert specialist(record=rows) == before
    assert why_different({}, before) == "it does not say what it rests on"


@pytest.mark.parametrize(
    ("mixture", "reason"),
    [({"a": 3}, "without b"), ({"a": 3, "b": 4, "c": 1}, "with c"), ({"a": 3, "b": 5}, "other rows of b"),
     ({"b": 4, "a": 3}, "the tasks' order changed")],
)  # fmt: skip
def test_e_rests_on_every_task_of_its_mixture_and_their_order(mixture, reason):
    record = copy.deepcopy(RECORD)
    record["tasks"]["c"] = {"train": {"digest": "cccc"}}
    before, now = (experimental_basis(Config(), record, each, (0, 1)) for each in ({"a": 3, "b": 4}, mixture))
    assert basis_digest(before) != basis_digest(now) and why_different(before, now) == reason


def test_a_local_base_is_told_by_its_config_and_the_sizes_of_its_files(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"12")
    before = base_identity(Config(base=str(tmp_path)))
    assert base_identity(Config(base=f"{tmp_path}/")) == before
    (tmp_path / "model.safetensors").write_bytes(b"123")
    assert base_identity(Config(base=str(tmp_path))) != before
    assert base_identity(Config(base="org/model", revision="v1")) != base_identity(Config(base="org/model"))
    small = Config()
    small.pretraining.steps = 1
    assert base_identity(small) != base_identity(Config())
