"""The comparison with PEFT compares like with like, and its table and its record say the same."""

import importlib.util
import json

import pytest

from mossa_jax.benchmarks import tuning as benchmark
from mossa_jax.benchmarks.tuning_data import Shape, Workload
from mossa_jax.config import Schedule
from mossa_jax.errors import Refusal

SHAPE = Shape(hidden=16, feed_forward=24, layers=2, heads=2, kv_heads=1, vocab=64, tied=False)
WORK = Workload(
    repeats=2, rest=0, threads=1, models=2, steps=1, rows=3, length=96, longest=56, examples=1_000, prompt=40,
    dense_steps=3, dense_rows=2, dense_length=12, dense=SHAPE, schedule=Schedule(learning_rate=3e-2),
)  # fmt: skip


@pytest.fixture(scope="module")
def record(tasks_folder):
    for name in ("torch", "peft"):
        pytest.importorskip(name)
    return benchmark.measure(WORK, str(tasks_folder))


@pytest.mark.slow
def test_both_sides_see_the_same_tokens_and_reach_the_same_losses(record):
    names = [row["name"] for row in record["rows"]]
    assert names == [
        "dense batches, 1 adapter",
        "dense batches, 2 adapters",
        "2 tasks, nothing shared",
        "2 tasks, leading ids once a row",
        "2 tasks behind 40 ids, once a row",
    ]
    for row in record["rows"]:
        assert row["ours_tokens"] == row["peft_tokens"] > 0, row
        # Dense batches take three steps at a high rate; the tasks take a single step on all examples at once.
        assert row["ours_loss"] == pytest.approx(row["peft_loss"], abs=1e-4), row
    one, two, packed, own, behind = record["rows"]
    assert one["ours_tokens"] == one["peft_tokens"] == 3 * 2 * 11 and two["ours_tokens"] == 2 * one["ours_tokens"]
    assert one["ours_positions"] == one["peft_positions"] == 3 * 2 * 12
    for row in (packed, own, behind):
        assert row["ours_positions"] == 2 * 3 * 96
    # Sharing makes room: more examples fit in the same positions, although each has 40 more ids.
    assert own["ours_tokens"] > packed["ours_tokens"]
    assert behind["peft_positions"] > packed["peft_positions"]
    assert behind["ours_loss"] != pytest.approx(packed["ours_loss"], abs=1e-3)


@pytest.mark.slow
def test_speeds_and_ratios_come_from_the_same_seconds(record):
    for row in record["rows"]:
        ours, theirs = row["ours_seconds"], row["peft_seconds"]
        assert len(ours) == len(theirs) == 2 and min(*ours, *theirs) > 0
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        assert row["ratio"] == pytest.approx(sum(ratios) / 2, abs=1e-2)
        assert (row["ratio_lowest"], row["ratio_highest"]) == pytest.approx((min(ratios), max(ratios)), abs=1e-2)
        assert row["ours_tokens_per_s"] == pytest.approx(row["ours_tokens"] / (sum(ours) / 2), rel=1e-2)


@pytest.mark.slow
def test_the_table_says_what_the_record_holds(record):
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    lines = benchmark.table(record).splitlines()
    assert len({len(line) for line in lines[-len(record["rows"]) - 1 :]}) == 1  # Columns are aligned.
    for line, row in zip(lines[-len(record["rows"]) :], record["rows"], strict=True):
        assert line.startswith(row["name"] + " ")
        words = line[len(row["name"]) :].replace(",", "").split()
        speeds, ratios = (words[0], words[1]), (words[2], words[3], words[5])
        assert speeds == tuple(f"{row[f'{side}_tokens_per_s']:.0f}" for side in ("ours", "peft"))
        assert ratios == tuple(f"{row[name]:.2f}" for name in ("ratio", "ratio_lowest", "ratio_highest"))
        assert (words[6], words[8]) == tuple(str(row[f"{side}_positions"]) for side in ("ours", "peft"))
        assert (words[9], words[11]) == tuple(f"{row[f'{side}_loss']:.4f}" for side in ("ours", "peft"))


def test_without_peft_it_says_what_to_install(monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else there(name, *rest))
    with pytest.raises(Refusal, match=r"needs peft.*\[bench\]") as caught:
        benchmark.measure(WORK)
    assert caught.value.code == 2
