"""The cost of a token: time is divided by kinds of work as a trace and a program's text say, and nothing is lost."""

import dataclasses
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from mossa_jax.benchmarks import random_models, token_cost, traced_kinds
from mossa_jax.benchmarks.token_programs import PARTS, Programs, Workload
from mossa_jax.benchmarks.traced_kinds import KINDS, Occurrence, ProgramText, Trace
from mossa_jax.errors import Refusal
from mossa_jax.llama.architecture import read_architecture
from mossa_jax.tuning.flops import forward_flops, step_flops

MODEL = random_models.Workload(hidden=16, layers=2, heads=2, kv_heads=1, vocab=40)
WORK = Workload(
    row_length=64, rank=2, batch_rows=2, experimental_rows=2, models=2, shared=12, own=8, answer=4, answers=2,
    prompts=3, new_tokens=2, repeats=1,
)  # fmt: skip

_TEXT = """HloModule jit_step, is_scheduled=true, entry_computation_layout={()->f32[2,2]{1,0}}

FileNames
1 "file.py"

%region_1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b) @feed_forward/reduce_sum
}

%fused_product (p: f32[2,2], q: f32[2,2]) -> f32[2,2] {
  %p = f32[2,2]{1,0} parameter(0)
  %q = f32[2,2]{1,0} parameter(1)
  %dot.1 = f32[2,2]{1,0} dot(%p, %q) @transpose(jvp(attention))/bsi,oi->bso/dot_general
  ROOT %add.1 = f32[2,2]{1,0} add(%dot.1, %q) @optimizer/add
}

%fused_slice (p: f32[4,2,2], i: s32[]) -> f32[2,2] {
  %p.2 = f32[4,2,2]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %minimum.1 = s32[] minimum(%i, %i)
  ROOT %slice.1 = f32[2,2]{1,0} dynamic-slice(%p.2, %minimum.1) @while/body/dynamic_slice
}

%body (state: (s32[], f32[2,2])) -> (s32[], f32[2,2]) {
  %state = (s32[], /*index=1*/f32[2,2]{1,0}) parameter(0)
  %fusion.1 = f32[2,2]{1,0} fusion(%state), kind=kOutput, calls=%fused_product @optimizer/add
  %fusion.2 = f32[2,2]{1,0} fusion(%state), kind=kLoop, calls=%fused_slice @while/body/dynamic_slice
  %dot.2 = f32[2,2]{1,0} dot(%fusion.1, %fusion.2) @vmap(attention)/scores/bkqd,bktd->bkqt/dot_general
  %dot.3 = f32[2,2]{1,0} dot(%fusion.1, %fusion.2) @feed_forward/adapter/dot_general
  %dot.4 = f32[2,2]{1,0} dot(%fusion.1, %fusion.2) @jvp(head)/while/body/...d,vd->...v/dot_general
  %dot.5 = f32[2,2]{1,0} dot(%fusion.1, %fusion.2) @bps,bsd->bpd/dot_general
  %reduce.1 = f32[2]{0} reduce(%dot.2, %dot.3), dimensions={1}, to_apply=%region_1 @feed_forward/reduce_sum
  %reduce.2 = f32[2]{0} reduce(%state, %state), dimensions={1}, to_apply=%region_1
  %dot.6 = f32[2,2]{1,0} dot(%copy.1, %copy.1)
  %bitcast.6 = f32[2,2]{1,0} bitcast(%dot.6)
  %exp.1 = f32[2,2]{1,0} exponential(%bitcast.6) @attention/scores/exp
  %dot.7 = f32[2,2]{1,0} dot(%sqrt.1, %dot.3)
  %dot.8 = f32[2,2]{1,0} dot(%copy.1, %copy.1) @attention/(adapter/dot_general:bsi,oi->bso/dot_general)
  %all-gather.1 = f32[2,2]{1,0} all-gather(%dot.2) @attention/bsi,oi->bso/dot_general
  %copy.1 = f32[2,2]{1,0} copy(%dot.2)
  %sqrt.1 = f32[2,2]{1,0} sqrt(%dot.2) @optimizer/sqrt
  ROOT %tuple.1 = (s32[], f32[2,2]{1,0}) tuple(%copy.1, %dot.2)
}

%condition (state: (s32[], f32[2,2])) -> pred[] {
  ROOT %less.1 = pred[] compare(%state, %state), direction=LT
}

ENTRY %main (x: f32[2,2]) -> f32[2,2] {
  %x = f32[2,2]{1,0} parameter(0)
  %call.1 = f32[2,2]{1,0} call(%x), to_apply=%fused_product @while
  ROOT %while.1 = (s32[], f32[2,2]{1,0}) while(%x), condition=%condition, body=%body @while
}
"""
# A path behind @ stands for what XLA writes of an instruction.
TEXT = re.sub(r" @(.+)", r', metadata={op_name="jit(step)/\1" stack_frame_id=1}', _TEXT)


def test_the_kind_of_an_instruction_follows_from_what_it_does_and_where_it_was_written():
    text = ProgramText(TEXT)
    assert text.name == "jit_step"
    kinds = {
        "fusion.1": "projections",  # Its last instruction is the optimizer's, but its time is the product's.
        "fusion.2": "moves",  # The index is clamped, which is no work.
        "dot.2": "scores", "dot.3": "adapter", "dot.4": "head", "dot.5": "other",
        "reduce.1": "elementwise", "reduce.2": "other", "all-gather.1": "transfers", "copy.1": "moves",
        "dot.6": "scores",  # What reads it says so.
        "dot.7": "optimizer",  # Nothing reads it, and it reads this first.
        "dot.8": "projections",  # The compiler has put a narrow product and a wide one together.
        "sqrt.1": "optimizer", "call.1": "projections", "unknown.7": "other",
    }  # fmt: skip
    assert {name: text.kind(name) for name in kinds} == kinds and set(kinds.values()) < set(KINDS)
    assert text.is_backward("fusion.1") and not text.is_backward("dot.2") and not text.is_backward("unknown.7")
    assert text.is_loop("while.1") and text.is_call("call.1") and not text.is_loop("fusion.1")


def test_every_moment_of_a_device_counts_once():
    ranks = {"a": 0, "b": 0, "call": 1}
    # `a` lies in `call`, `a` and `b` overlap from 30 to 40, and `b` ends behind the window.
    occurrences = [
        Occurrence(0, 50, "loop"), Occurrence(5, 45, "call"), Occurrence(10, 40, "a"), Occurrence(30, 90, "b"),
        Occurrence(95, 99, "a"), Occurrence(60, 60, "a"),
    ]  # fmt: skip
    times = traced_kinds.time_by_name(occurrences, ranks, 0, 80)
    assert times == {"call": 5, "a": 20 + 5, "b": 5 + 40}
    assert traced_kinds.time_by_name([], ranks, 0, 80) == {}


def test_shares_are_those_of_all_devices_and_sum_to_one():
    text = ProgramText(TEXT)
    first = (Occurrence(0, 100, "while.1"), Occurrence(10, 50, "fusion.1"), Occurrence(50, 60, "copy.1"))
    second = (Occurrence(0, 80, "while.1"), Occurrence(0, 80, "dot.4"))
    trace = Trace(0, 100, (first, second))
    shares = traced_kinds.shares(text, trace)
    held = {"projections": 0.2, "moves": 0.05, "head": 0.4, "outside": 0.35, "backward": 0.2}
    assert shares == pytest.approx(dict.fromkeys([*KINDS, "backward"], 0.0) | held)
    paths = traced_kinds.longest(text, trace, 2)
    assert [(kind, share) for _, kind, share in paths] == [("head", 0.4), ("projections", 0.2)]
    assert "jvp(head)" in paths[0][0]


def test_a_trace_of_a_program_names_its_instructions_and_no_other_program(tmp_path):
    def multiply(x):
        return jnp.tanh(x @ x) @ x

    work, other = (jax.jit(f).lower(jnp.ones((64, 64))).compile() for f in (multiply, jnp.sin))
    text = ProgramText(work.as_text())
    with jax.profiler.trace(tmp_path), jax.profiler.TraceAnnotation(traced_kinds.ANNOTATION):
        jax.block_until_ready((work(jnp.ones((64, 64))), other(jnp.ones((64, 64)))))
    trace = traced_kinds.read_trace(tmp_path, text.name)
    names = [each.name for device in trace.devices for each in device]
    assert names and set(names) <= set(text.instructions)
    assert sum("dot" in {part.opcode for part in text._parts(name)} for name in names) == 2
    assert all(trace.start <= each.start <= each.end <= trace.end for device in trace.devices for each in device)
    assert traced_kinds.read_trace(tmp_path, "jit_nothing") is None


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return random_models.write_models(MODEL, str(tmp_path_factory.mktemp("models")), 1)[0]


@pytest.fixture(scope="module")
def record(base):
    return token_cost.measure(WORK, base, parts=("controls", "states"), peak=50.0)


def test_a_step_has_every_kind_and_a_program_without_a_head_has_none(record):
    step, states = (row["shares"] for row in record["rows"])
    for shares in (step, states):
        assert sum(shares[kind] for kind in KINDS) == pytest.approx(1, abs=1e-9)
        assert all(share >= 0 for share in shares.values())
    work = ["projections", "scores", "head", "adapter", "optimizer", "elementwise", "moves", "outside"]
    assert all(step[kind] > 0 for kind in work), step
    assert all(states[kind] > 0 for kind in work if kind not in ("head", "optimizer")), states
    assert states["head"] == states["optimizer"] == states["backward"] == 0 < step["backward"] < 1
    assert step["other"] < 0.1 and states["other"] < 0.1


def test_speed_and_share_of_the_peak_come_from_the_same_seconds(record, base):
    arch, devices = read_architecture(base), jax.device_count()
    step, states = record["rows"]
    assert step["positions"] == devices * 64
    assert states["positions"] == 2 * max(2, devices) * 64
    # The rest of a step's FLOPs is the head's, for a whole number of columns.
    sizes = {"rows": 1, "row_length": 64, "rank": 2, "targets": WORK.targets, "remat": False}
    none, one = (devices * step_flops(arch, answers=count, **sizes)["executed"] / 1e9 for count in (0, 1))
    answers = (step["gflop"] - none) / (one - none)
    assert answers == pytest.approx(round(answers), abs=1e-6) and 1 <= round(answers) < 64
    flops = 2 * forward_flops(arch, states["positions"] / 2, 64)
    assert states["gflop"] == pytest.approx(flops / 1e9)
    for row in record["rows"]:
        assert row["seconds"] > 0 and row["traced_seconds"] > 0
        assert row["positions_per_s"] == pytest.approx(row["positions"] / row["seconds"])
        assert row["share_of_peak"] == pytest.approx(row["gflop"] / row["seconds"] / 50)


def test_the_table_says_what_the_record_holds(record):
    assert json.loads(json.dumps(record, allow_nan=False)) == json.loads(json.dumps(record))
    lines = token_cost.table(record).splitlines()
    assert lines[1].split()[-len(KINDS) :] == list(KINDS)
    for line, row in zip(lines[2:4], record["rows"], strict=True):
        name, *words = line.replace(",", "").split()
        assert name == row["name"] and float(words[1]) == round(row["positions_per_s"])
        shown = [float(word.rstrip("%")) / 100 for word in words[2:]]
        assert shown == pytest.approx([row["share_of_peak"], *(row["shares"][kind] for kind in KINDS)], abs=6e-4)
    blind = dict(record, rows=[record["rows"][0] | {"shares": None}])
    assert token_cost.table(blind).splitlines()[2].count(" -") == len(KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("part", [part for part in PARTS if part not in ("controls", "states")])
def test_the_other_programs_have_their_kinds_too(base, part):
    (row,) = token_cost.measure(WORK, base, parts=[part], peak=50.0)["rows"]
    shares = row["shares"]
    assert sum(shares[kind] for kind in KINDS) == pytest.approx(1, abs=1e-9)
    assert all(shares[kind] > 0 for kind in ("projections", "scores", "adapter", "moves"))
    assert (shares["head"] > 0) == (part != "prompts") and (shares["optimizer"] > 0) == (part == "experimental")
    assert (shares["backward"] > 0) == (part == "experimental") and shares["other"] < 0.1


@pytest.mark.slow
def test_a_program_computes_what_its_size_says(base):
    programs = Programs(dataclasses.replace(WORK, new_tokens=3), base)
    answered = programs.compile("greedy")
    rows, width, columns = map(int, re.findall(r"(\d+) prompts of (\d+) behind (\d+)", answered.size)[0])
    assert answered.positions == 2 * rows * (width + 3) and width % 32 == columns % 32 == 0 and rows >= 3


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"own": 1}, "own is 1; give at least 2"),
        ({"models": 0}, "models is 0; give at least 1"),
        ({"row_length": 20}, "row_length is 20: 12 shared ids, up to 12 own ones and up to 6 of the answer are 30"),
    ],
)
def test_sizes_that_cannot_be_measured_are_refused(sizes, message):
    with pytest.raises(Refusal, match=re.escape(message)):
        token_cost.measure(dataclasses.replace(WORK, **sizes), parts=["states"], peak=1.0)


def test_unknown_parts_are_refused(root):
    with pytest.raises(Refusal, match="parts=nothing: give some of controls"):
        token_cost.measure(WORK, parts=["nothing"], peak=1.0)
    words = [sys.executable, "-m", "launch.bench_token", "--parts=nothing", "--cpu_devices=1"]
    run = subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=300)
    assert run.returncode == 2 and "--parts=nothing: must be among controls" in run.stderr.splitlines()[-1]
