"""What processes of a run compare before they begin."""

import json
from dataclasses import asdict

import pytest

from mossa_jax.config import Config
from mossa_jax.config.kinds import flat_fields
from mossa_jax.processes import facts

OWN = {"program": {"jax": "1"}, "command": {"command": "run"}, "config": {"seed": 0}, "files": {"base/a": "1 bytes"}}
FIELDS = dict(flat_fields(json.loads(json.dumps(asdict(Config())))))


def changed(group, name, value):
    return {**OWN, group: {**OWN[group], name: value}}


@pytest.mark.parametrize(
    ("other", "code", "words"),
    [
        (changed("program", "jax", "2"), 2, 'process 1 on h has jax="2", process 0 has "1"; install'),
        (changed("command", "command", "tune"), 2, 'command="tune", process 0 has "run"; start all'),
        (changed("config", "seed", 7), 2, "config.seed=7, process 0 has 0; give all processes the same configuration"),
        (changed("files", "base/a", "2 bytes"), 3, 'base/a="2 bytes", process 0 has "1 bytes"; give all hosts'),
        (changed("files", "base/b", "2 bytes"), 3, 'base/b="2 bytes", process 0 has nothing'),
        ({}, 2, 'jax=nothing, process 0 has "1"'),
        ({**OWN, "config": [1]}, 2, "seed=nothing"),
    ],
)
def test_the_first_difference_is_named_with_both_values_and_the_way_out(other, code, words):
    own = {**OWN, "config": {f"config.{name}": value for name, value in OWN["config"].items()}}
    if isinstance(other.get("config"), dict):
        other = {**other, "config": {f"config.{name}": value for name, value in other["config"].items()}}
    refusal = facts.difference("process 1 on h", own, other)
    assert refusal.code == code and words in str(refusal)


def test_the_same_facts_are_no_difference():
    assert facts.difference("process 1", OWN, json.loads(json.dumps(OWN))) is None
    assert facts.first_difference("process 1", {"epochs": 2, "only": ("a",)}, {"only": ["a"], "epochs": 2.0}) == ""


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_of_a_configuration_counts(field):
    other = {**FIELDS, field: "something else"}
    assert facts.first_difference("process 1", FIELDS, other).startswith(f'process 1 has {field}="something else"')


def test_several_differences_are_counted_and_long_values_are_told_by_a_digest():
    reason = facts.first_difference("process 1", dict.fromkeys("abcdef", 0), dict.fromkeys("abcdef", 1))
    assert reason.endswith("(and 5 more: b, c, d, ...)")
    one, two = facts.first_difference("p", {"a": ["x" * 999]}, {"a": ["x" * 998 + "y"]}).split(", process 0 has ")
    assert len(one) < 250 and one.removeprefix("p has a=") != two


def test_every_byte_of_a_small_file_and_the_ends_of_a_large_one_count(tmp_path, monkeypatch):
    monkeypatch.setattr(facts, "_WHOLE", 1000)
    monkeypatch.setattr(facts, "_SAMPLE", 16)
    path = tmp_path / "model.bin"

    def told(data):
        path.write_bytes(data)
        return facts.file_facts("config.base", str(tmp_path))

    small, large = bytes(1000), bytes(100_000)
    assert list(told(small)) == ["config.base/model.bin"]
    assert told(small)["config.base/model.bin"].startswith("1,000 bytes (")
    ends = [told(large), *(told(large[:at] + b"x" + large[at + 1 :]) for at in (0, 99_999))]
    others = [told(small), told(small[:500] + b"x" + small[501:]), told(large + b"x"), *ends]
    assert len({json.dumps(each) for each in others}) == len(others)


def test_whatever_lies_in_a_folder_is_told(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/rows.jsonl").write_text("{}")
    (tmp_path / ".hidden").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    told = facts.file_facts("f", str(tmp_path))
    assert sorted(told) == ["f/loop", "f/sub/rows.jsonl"] and "bytes" not in told["f/loop"]
    assert facts.file_facts("f", str(tmp_path / "nowhere")) == {}
    assert list(facts.file_facts("f", str(tmp_path / "sub/rows.jsonl"))) == ["f"]


def test_the_source_is_told_by_its_content(tmp_path):
    (tmp_path / "a.py").write_text("1")
    first = facts.source_digest(tmp_path)
    (tmp_path / "a.py").write_text("2")
    assert len({first, facts.source_digest(tmp_path), facts.source_digest()}) == 3
    assert facts.program_facts()["the source of mossa_jax"] == facts.source_digest()
