"""The benchmark for one GPU or TPU, on this CPU at tiny sizes: its checks, its table, and what a wrong program does."""

import dataclasses
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from mossa_jax.benchmarks import device, device_checks, device_programs
from mossa_jax.benchmarks.device_inputs import SHAPES, TINY, TINY_SIZES, random_model
from mossa_jax.benchmarks.device_timing import Clock, shrink, time_calls
from mossa_jax.errors import Refusal

FEW = ("states kept, last, shared prefix", "similarity of kept states")


def visit(parts, out=None, minutes=9):
    """The record of a visit, and the lines that it said."""
    said = []
    return device.measure(device.Plan(TINY, TINY_SIZES, minutes, parts, out), said.append), said


def run_few_programs(monkeypatch):
    """Lets the checks run the programs of `FEW` only."""
    monkeypatch.setattr(device_programs, "PROGRAMS", {name: device_programs.PROGRAMS[name] for name in FEW})
    monkeypatch.setattr(device_programs, "WITH_ATTENTION", {})


def test_right_programs_pass_and_a_wrong_one_is_said_first(monkeypatch, tmp_path):
    right = device_programs.compare_states

    def wrong(*arguments, **options):
        return dataclasses.replace(right(*arguments, **options), value=1.01 * right(*arguments, **options).value)

    run_few_programs(monkeypatch)
    monkeypatch.setattr(device_programs, "compare_states", wrong)
    out = tmp_path / "record.json"
    record, _ = visit(("checks", "forward"), str(out))
    checks = {check["program"]: check for check in record["checks"]}
    assert checks["states kept, last, shared prefix"]["passed"]
    assert checks["states kept, last, shared prefix"]["error"] < 1e-5
    assert not checks["similarity of kept states"]["passed"]
    assert checks["similarity of kept states"]["error"] == pytest.approx(0.01, abs=0.009)
    # All other figures were taken and written all the same.
    assert json.loads(out.read_text()) == json.loads(json.dumps(record))
    names = [row["name"] for row in record["rows"]]
    assert names[-1] == "forward" and len(names) == 4
    for row in record["rows"]:
        assert row["seconds"] > 0 and (row["rate"] or row["share"]), row
    forward = record["rows"][-1]
    assert forward["programs"] >= 1 and forward["compile_seconds"] > 0 and forward["program_bytes"] > 0
    assert forward["rate"] == pytest.approx(TINY_SIZES.rows * TINY_SIZES.row_length / forward["seconds"])
    table = device.table(record)
    assert table.startswith("FAILED: ") and "similarity of kept states" in table.splitlines()[0]
    with pytest.raises(Refusal, match=r"1 failures on this device, the first: .*similarity") as caught:
        device.require_success(record)
    assert caught.value.code == 1


def test_a_program_that_raises_fails_its_check_and_no_other(monkeypatch):
    def broken(cases):
        raise TypeError("cannot reshape")

    run_few_programs(monkeypatch)
    programs = {"broken": broken, "similarity": device_programs.PROGRAMS["similarity of kept states"]}
    monkeypatch.setattr(device_programs, "PROGRAMS", programs)
    model = random_model(TINY, SHAPES[TINY], "float32")
    monkeypatch.setattr(device_checks, "Cases", lambda dtype: SimpleNamespace(model=model))
    (group,) = device_checks.run_checks()
    checks = {check.program: check for check in group}
    assert list(checks) == list(programs)
    assert [name for name, check in checks.items() if not check.passed] == ["broken"]
    assert "TypeError: cannot reshape" in str(checks["broken"])


def test_wrong_steps_and_answers_are_noticed(monkeypatch):
    """Each is a fault that a kernel could have: sequences that see each other, scaled gradients, shifted tokens."""
    cases = device_programs.Cases("float32")
    step = device_programs.WITH_ATTENTION["E's step"]
    assert step(cases)["gradients"] < 1e-5
    gradients = device_programs.inputs.gradients_in
    monkeypatch.setattr(
        device_programs.inputs, "gradients_in", lambda *a: jax.tree.map(lambda g: 1.01 * g, gradients(*a))
    )
    assert step(cases)["gradients"] > 1e-3
    monkeypatch.undo()
    pack = device_programs.pack_examples

    def merged(*arguments, **options):
        (packed,) = pack(*arguments, **options)
        take = packed.take

        def take_merged(*index):
            rows = take(*index)
            return dataclasses.replace(rows, segments=np.minimum(rows.segments, 1))

        object.__setattr__(packed, "take", take_merged)
        return (packed,)

    monkeypatch.setattr(device_programs, "pack_examples", merged)
    assert step(cases)["loss"] > 1e-4
    monkeypatch.undo()
    greedy = device_programs.greedy
    monkeypatch.setattr(device_programs, "greedy", lambda *a, **k: (np.asarray(greedy(*a, **k)) + 1) % cases.arch.vocab)
    assert device_programs.WITH_ATTENTION["answers"](cases)["gap to the likeliest token"] > 1e-2


def test_an_error_that_is_no_number_fails():
    check = device_checks.Check("step", "loss", "float32", "xla", float("nan"), 1.0)
    assert not check.passed and "FAILED" in str(check)


def test_a_kernel_is_held_against_the_other_body():
    make = device_checks._checks_of
    (good,) = make("step", {"gradients": 0.03}, "bfloat16", "cudnn", {"gradients": 0.02})
    (bad,) = make("step", {"gradients": 0.05}, "bfloat16", "cudnn", {"gradients": 0.02})
    assert good.passed and not bad.passed


def test_a_kernel_that_fails_is_not_measured(monkeypatch):
    make = device_checks._checks_of
    groups = [
        make("step", {"gradients": 0.02}, "bfloat16", "xla", {}),
        make("step", "RuntimeError: no kernel", "bfloat16", "cudnn", {}),
    ]
    monkeypatch.setattr(device, "run_checks", lambda: iter(groups))
    monkeypatch.setenv("MOSSA_ATTENTION", "")
    record, said = visit(("checks",))
    assert os.environ["MOSSA_ATTENTION"] == "xla"
    assert record["failures"] == [str(groups[1][0])] and "RuntimeError: no kernel" in record["failures"][0]
    assert any("measured with MOSSA_ATTENTION=xla: cudnn failed its checks" in text for text in said)


def test_what_no_longer_fits_is_skipped_and_said(monkeypatch):
    run_few_programs(monkeypatch)
    record, said = visit(("checks", "forward"), minutes=0)
    assert record["skipped"] == ["every program against float64", "peaks", "forward pass"]
    assert record["rows"] == record["checks"] == []
    assert any("forward pass: skipped" in text for text in said)
    assert "skipped, no time left: every program" in device.table(record)


def test_sizes_shrink_until_they_fit():
    tried = []

    def attempt(size):
        tried.append(size)
        if size > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")
        return "fits"

    assert shrink(8, attempt, "step") == "fits" and tried == [8, 4, 2]
    with pytest.raises(Refusal, match="no room for the smallest size"):
        shrink(8, lambda size: attempt(4), "step")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):

        def fail(size):
            raise jax.errors.JaxRuntimeError("INTERNAL: another error")

        shrink(8, fail, "step")


def test_the_time_of_compiling_is_apart():
    program = jax.jit(lambda x: x @ x + 3)
    timing = time_calls(lambda: program(np.ones((50, 50), np.float32)), 3, Clock(1))
    assert timing.programs == 1 and timing.compile_seconds > 0 and len(timing.all_seconds) == 3
    assert timing.program_bytes >= 2 * 50 * 50 * 4
    again = time_calls(lambda: program(np.ones((50, 50), np.float32)), 3, Clock(1))
    assert again.programs == 0 and again.compile_seconds == 0


@pytest.mark.slow
def test_the_command_measures_everything_at_a_tiny_shape(root, tmp_path):
    out = tmp_path / "record.json"
    done = subprocess.run(
        [sys.executable, "-m", "launch.bench_device", f"--out={out}", "--minutes=30"],
        cwd=root, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    record = json.loads(out.read_text())
    assert record["failures"] == record["skipped"] == []
    assert all(check["passed"] for check in record["checks"])
    assert {check["program"] for check in record["checks"]} == set(device_programs.PROGRAMS)
    assert {check["dtype"] for check in record["checks"]} == {"float32", "bfloat16"}
    rows = {row["name"]: row for row in record["rows"]}
    expected = {"forward", "LoRA step, 1 adapter", "LoRA step, 2 adapters", "CKA alone", "CKA alone, 8 permutations"}
    expected |= {f"passes {way}, {pool}" for way in ("alone", "compared") for pool in ("last", "mean", "all")}
    expected |= {"states, shared ids once", "states, shared ids in every prompt", "prompts read, one token answered"}
    assert expected <= set(rows)
    if "torch: forward" in rows:
        for ours, theirs in (("forward", "torch: forward"), ("CKA alone", "torch: CKA alone")):
            assert rows[ours]["of_torch"] == pytest.approx(rows[ours]["rate"] / rows[theirs]["rate"])
            assert rows[theirs]["share"] > 0
    for name in expected - {"CKA alone, 8 permutations"}:
        assert rows[name]["share"] > 0, name
        assert name in done.stdout
    assert "by arithmetic: CKA of 128 kept prompts" in done.stdout


def test_mistakes_in_the_plan_are_refused(tmp_path):
    for change, said in (
        ({"parts": ("nothing",)}, "parts=nothing"),
        ({"parts": ()}, "parts="),
        ({"sizes": dataclasses.replace(TINY_SIZES, row_length=100)}, "row_length=100: give a multiple of 32"),
        ({"sizes": dataclasses.replace(TINY_SIZES, repeats=0)}, "repeats=0"),
    ):
        with pytest.raises(Refusal, match=said) as caught:
            dataclasses.replace(device.Plan(TINY, TINY_SIZES), **change).check()
        assert caught.value.code == 2
