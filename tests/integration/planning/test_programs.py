"""Programs for hardware that is not at hand, their figures, and the formulas behind a plan."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from mossa_jax.config import Mesh, Schedule, Tuning
from mossa_jax.devices.mesh import make_mesh, place
from mossa_jax.errors import Refusal
from mossa_jax.llama.adapters import initial_adapter, matrices, scales, stack
from mossa_jax.llama.architecture import architecture_from_config
from mossa_jax.llama.published import PUBLISHED
from mossa_jax.planning import programs
from mossa_jax.planning.collectives import collectives
from mossa_jax.planning.hardware import Hardware
from mossa_jax.planning.programs import check_fits, compile_program, grid_for, tuning_program
from mossa_jax.planning.sizes import AdapterSize, Base, BatchSize, PrefixSize
from mossa_jax.tokens.rows import TrainingRows
from mossa_jax.tuning import population
from mossa_jax.tuning.batch import place_batch
from mossa_jax.tuning.flops import step_flops
from tests.support.processes import cpu

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def architecture(**changes):
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = PUBLISHED["llama2-7b"] | {"vocab_size": 16, "num_key_value_heads": 1} | sizes
    return architecture_from_config(config | changes, "small")


def test_flops_of_a_step_equal_a_count_by_hand():
    sizes = {"rows": 3, "row_length": 4, "rank": 2, "targets": ("q_proj", "v_proj"), "answers": 2}
    # A block has q and o of 8 x 8, k and v of 8 x 4, and three matrices of 8 x 12: 480 parameters.
    # An adapter has 2 layers x 2 x (8 + 8 + 8 + 4) = 112.
    # The queries in a row of four see 1, 2, 3 and 4 keys: 2.5 on average. There are 12 tokens and 6 answer columns.
    expected = {
        "blocks": 4 * 960 * 12,
        "attention": 12 * 2 * 8 * 2.5 * 12,
        "adapters": 6 * 112 * 12,
        "head": 4 * 16 * 8 * 6,
        "model": 46_080 + 5_760 + 8_064 + 3_072,
        "recomputed": (2 * (960 - 2 * 96 + 112) + 4 * 2 * 8 * 2.5) * 12,
        "executed": 62_976 + 23_040,
    }
    assert step_flops(architecture(), **sizes) == expected
    without = step_flops(architecture(), **sizes, remat=False)
    assert without == expected | {"recomputed": 0, "executed": 62_976}
    # In a block with a window of two, queries see 1, 2, 2 and 2 keys. Of an adapter on down_proj, recomputation needs
    # 12 -> 2 but not 2 -> 8.
    windowed = dataclasses.replace(architecture(), window=2, windowed=(1,))
    assert step_flops(windowed, **sizes)["attention"] == 12 * 8 * (2.5 + 1.75) * 12
    figures = step_flops(architecture(), **sizes | {"targets": ("down_proj",)})
    assert figures["recomputed"] == (2 * (960 - 2 * 96 + 2 * 2 * 12) + 160) * 12
    # The blocks of Llama-2-7B have its 6,738,415,616 parameters less embedding, head and 65 norms.
    arch = architecture_from_config(PUBLISHED["llama2-7b"], "llama2-7b")
    blocks = step_flops(arch, **sizes | {"rows": 1, "row_length": 1})["blocks"]
    assert blocks == 4 * (6_738_415_616 - 2 * 32_000 * 4_096 - 65 * 4_096)


@pytest.mark.parametrize(
    ("remat", "targets"), [(True, ("q_proj", "v_proj")), pytest.param(False, ALL, marks=pytest.mark.slow)]
)
def test_flops_agree_with_xlas_own_count_within_two_percent(remat, targets):
    changes = {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 4, "num_key_value_heads": 2}
    arch = architecture(**changes, vocab_size=512)
    sizes = {"rows": 2, "row_length": 128, "rank": 4, "targets": targets, "answers": 32}
    mesh = make_mesh(Mesh(1, 1, 1), devices=jax.devices()[:1])
    optimizer = population.optimizer_for(Tuning(), Schedule())
    step = population.make_step(population.StepSpec(arch, optimizer, mesh, remat))
    compiled = step.lower(
        *population.abstract_arguments(arch, optimizer, mesh, dtype="float32", slots=3, **sizes)
    ).compile()
    # XLA counts the body of a loop once: one of three models, one of two blocks, and the only chunk of the head.
    ours = step_flops(dataclasses.replace(arch, layers=1), **sizes, remat=remat)
    # Attention on a CPU computes the whole square of 128, not only the half that a causal row needs.
    square = (128 / 64.5 - 1) * ours["attention"] * (4 / 3 if remat else 1)
    assert ours["executed"] + square == pytest.approx(compiled.cost_analysis()["flops"], rel=0.02)


def test_abstract_arguments_are_those_that_a_run_places(tiny):
    arch = architecture_from_config(json.loads((tiny.folder / "config.json").read_text()), "tiny")
    mesh = make_mesh(Mesh(1, 1, 1), devices=jax.devices()[:1])
    optimizer = population.optimizer_for(Tuning(), Schedule())
    starts = [initial_adapter(arch, ("q_proj", "down_proj"), 2, 16, 0, (seed,)) for seed in range(3)]
    stacked = stack(arch, starts)
    state = population.initial_state(matrices(stacked), optimizer, mesh)
    widths = {"tokens": 24, "segments": 24, "positions": 24, "predict": 5, "labels": 5}
    batch = TrainingRows(**{name: np.zeros((3, 4, width), np.int32) for name, width in widths.items()})
    scale = {target: place(mesh, leaf, ("adapter", "layers")) for target, leaf in scales(stacked).items()}
    placed = scale, place(mesh, np.zeros(3, np.int32), ("adapter",)), state, place_batch(mesh, batch)
    _, *planned, active = population.abstract_arguments(
        arch,
        optimizer,
        mesh,
        dtype="float32",
        slots=3,
        rows=4,
        row_length=24,
        rank=2,
        targets=("q_proj", "down_proj"),
        answers=5,
    )
    described = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding.spec), tree)  # noqa: E731
    assert described(tuple(planned)) == described(placed)
    assert active.shape == (3,) and active.dtype == bool


TEXT = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%start (p: bf16[10,4]) -> (bf16[10,4], bf16[10,16]) {
  %all-gather.1 = bf16[10,16]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=7, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={1}
  ROOT %custom-call.1 = (bf16[10,4]{1,0}, bf16[10,16]{1,0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%done (p: bf16[10,4]) -> bf16[10,16] {
  ROOT %all-gather.2 = bf16[10,16]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=7, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={1}
}

%condition (p: (s32[], bf16[10,4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%body (p: (s32[], bf16[10,4])) -> (s32[], bf16[10,4]) {
  %fusion.1 = (bf16[10,4]{1,0}, bf16[10,16]{1,0}) fusion(%x), kind=kCustom, calls=%start
  %fusion.2 = bf16[10,16]{1,0} fusion(%fusion.1), kind=kCustom, calls=%done
  %all-reduce.1 = (f32[6]{0}, bf16[2,2]{1,0}) all-reduce(%y, %z), channel_id=8, replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
}

%unknown (p: (s32[], s32[])) -> pred[] {
  ROOT %lt.1 = pred[] compare(%i, %n), direction=LT
}

%once (p: (s32[], s32[])) -> (s32[], s32[]) {
  %reduce-scatter.1 = f32[5]{0} reduce-scatter(%q), channel_id=9, replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}, to_apply=%add
}

ENTRY %main (p: bf16[10,4]) -> bf16[10,4] {
  %while.1 = (s32[], bf16[10,4]{1,0}) while(%tuple), condition=%condition, body=%body
  %while.2 = (s32[], s32[]) while(%tuple.1), condition=%unknown, body=%once
  %all-gather-start.1 = (f32[3]{0}, f32[24]{0}) all-gather-start(%r), channel_id=10, replica_groups=[1,8]<=[8], dimensions={0}
  %all-gather-done.1 = f32[24]{0} all-gather-done(%all-gather-start.1)
  %alone = f32[9]{0} all-reduce(%s), channel_id=11, replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
}
"""  # noqa: E501


def test_transfers_are_counted_by_kind_axes_and_iterations():
    axes = {"adapter": 2, "fsdp": 4, "tensor": 1}
    open_loop = collectives(TEXT, axes, open_iterations=10)[-1]
    assert (open_loop["kind"], open_loop["count"], open_loop["bytes"]) == ("reduce-scatter", 10, 200)
    assert collectives(TEXT, axes) == [
        {"kind": "all-gather", "axes": "adapter+fsdp", "count": 1, "bytes": 24 * 4 * 7 // 8},
        {"kind": "all-gather", "axes": "fsdp", "count": 12, "bytes": 12 * 10 * 16 * 2 * 3 // 4},
        {"kind": "all-reduce", "axes": "adapter", "count": 12, "bytes": 12 * (6 * 4 + 4 * 2)},
        {"kind": "reduce-scatter", "axes": "adapter", "count": 1, "bytes": 5 * 4},
    ]


GPU_TEXT = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

%condition (p: (s32[], bf16[4,8])) -> pred[] {
  ROOT %lt = pred[] fusion(%p), kind=kLoop, calls=%compare
}

%body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %all-gather-start = ((bf16[4,8]{1,0}, bf16[4,2]{1,0}), (bf16[8,8]{1,0}, bf16[8,2]{1,0})) all-gather-start(%a, %b), channel_id=1, replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}, use_global_device_ids=true
  %all-gather-done = (bf16[8,8]{1,0}, bf16[8,2]{1,0}) all-gather-done(%all-gather-start)
  %all-reduce-start = bf16[2,8]{1,0} all-reduce-start(%c), channel_id=2, replica_groups={{0,1,2,3},{4,5,6,7}}, use_global_device_ids=true, to_apply=%add
  %all-reduce-done = bf16[2,8]{1,0} all-reduce-done(%all-reduce-start)
}

%wrapped (p: f32[8,6]) -> f32[4,6] {
  ROOT %reduce-scatter.1 = f32[4,6]{1,0} reduce-scatter(%p), channel_id=6, replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}, to_apply=%add
}

ENTRY %main (p: bf16[4,8]) -> bf16[4,8] {
  %while = (s32[], bf16[4,8]{1,0}) while(%tuple), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"32"}}
  %all-reduce-start.1 = f32[6]{0} all-reduce-start(%d), channel_id=3, replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_0'}, use_global_device_ids=true, to_apply=%add
  %reduce-scatter-start = ((f32[4,8]{1,0}, f32[4,2]{1,0}), (f32[2,8]{1,0}, f32[2,2]{1,0})) reduce-scatter-start(%e, %f), channel_id=4, replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}, to_apply=%add
  %all-to-all-start = ((bf16[2,16]{1,0}), bf16[2,16]{1,0}) all-to-all-start(%g), channel_id=5, replica_groups=[4,2]<=[2,4]T(1,0), dimensions={1}
  %async-start = ((f32[8,6]{1,0}), f32[4,6]{1,0}) async-start(%h), calls=%wrapped
  %async-done = f32[4,6]{1,0} async-done(%async-start)
  %collective-permute-start = (f32[5]{0}, f32[5]{0}, u32[], u32[]) collective-permute-start(%i), channel_id=7, source_target_pairs={{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}
}
"""  # noqa: E501


def test_transfers_of_a_program_for_gpus_are_read_from_asynchronous_halves():
    assert collectives(GPU_TEXT, {"adapter": 1, "fsdp": 2, "tensor": 4}) == [
        {"kind": "all-gather", "axes": "fsdp", "count": 32, "bytes": 32 * 2 * (8 * 8 + 8 * 2) // 2},
        {"kind": "all-reduce", "axes": "tensor", "count": 33, "bytes": (32 * 2 * 2 * 8 + 4 * 6) * 2 * 3 // 4},
        {"kind": "all-to-all", "axes": "fsdp", "count": 1, "bytes": 2 * 2 * 16 // 2},
        {"kind": "collective-permute", "axes": "tensor", "count": 1, "bytes": 4 * 5},
        {"kind": "reduce-scatter", "axes": "fsdp", "count": 2, "bytes": 4 * (2 * 8 + 2 * 2) + 4 * 4 * 6},
    ]


_ON_EIGHT = """
import json
from functools import partial
import jax, jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from mossa_jax.config import Mesh
from mossa_jax.devices.mesh import make_mesh
from mossa_jax.planning.collectives import collectives

mesh = make_mesh(Mesh(2, 4, 1))

@jax.jit
@partial(jax.shard_map, mesh=mesh, in_specs=P(("adapter", "fsdp")), out_specs=P(("adapter", "fsdp")), check_vma=False)
def program(x):
    def turn(x, _):
        whole = jax.lax.all_gather(x, "fsdp", tiled=True)
        part = jax.lax.psum_scatter(jnp.sin(whole), "adapter", tiled=True)
        return jnp.tanh(part[:x.shape[0]]) + jax.lax.psum(x, ("adapter", "fsdp")), None
    return jax.lax.ppermute(jax.lax.scan(turn, x, None, length=5)[0], "fsdp", [(0, 1), (1, 2), (2, 3), (3, 0)])

text = program.lower(jax.ShapeDtypeStruct((64, 100), jnp.float32)).compile().as_text()
print(json.dumps(collectives(text, dict(mesh.shape))))
"""


def test_transfers_of_a_program_for_eight_devices(root):
    done = subprocess.run([sys.executable, "-c", _ON_EIGHT], env=cpu(root, 8), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    # Bytes of one device's part.
    part = 8 * 100 * 4
    expected = {
        ("all-gather", "fsdp"): (5, 5 * 4 * part * 3 // 4),
        ("all-reduce", "adapter+fsdp"): (5, 5 * 2 * part * 7 // 8),
        ("reduce-scatter", "adapter"): (5, 5 * 2 * part),
        ("collective-permute", "fsdp"): (1, part),
    }
    assert {(f["kind"], f["axes"]): (f["count"], f["bytes"]) for f in json.loads(done.stdout)} == expected


def small_program(devices=1, memory=2**40, **changes):
    """Returns the training step of a small model on this machine's CPU."""
    hardware = Hardware("here", devices, memory, 1e12, 1e11, 1e10, 0, devices, tuple(jax.devices()[:devices]))
    arch = architecture()
    base = Base(arch, "float32", grid_for(hardware, Mesh(1, 1, 1), arch, "small"))
    return tuning_program(base, AdapterSize(2, 2, ("q_proj",)), BatchSize(2, 8), answers=2, remat=True, **changes)


def test_rows_that_do_not_divide_into_micro_batches_are_refused():
    population.check_rows("small, E", 6, 2)
    with pytest.raises(Refusal, match=r"small, E: batch_rows=6 .* parts=4.* multiple of 4") as caught:
        population.check_rows("small, E", 6, 4)
    assert caught.value.code == 2


def test_the_step_with_a_shared_prefix_is_the_one_compiled(monkeypatch):
    specs = []
    make_step = population.make_step
    monkeypatch.setattr(population, "make_step", lambda spec: specs.append(spec) or make_step(spec))
    program = small_program(prefix=PrefixSize(3, 5), parts=2)
    program.lower()
    (spec,) = specs
    assert (spec.remat, spec.micro_batches, spec.prefix, spec.max_own) == (True, 2, 3, 5)
    assert program.attention == "xla"


def test_the_same_program_is_compiled_once_and_another_one_again(monkeypatch):
    calls = []
    compile_lowered = programs._compile
    monkeypatch.setattr(programs, "_compile", lambda *arguments: calls.append(1) or compile_lowered(*arguments))

    def program_of(size):
        shape = jax.ShapeDtypeStruct((size,), np.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
        lower = lambda: jax.jit(lambda x: x + os.getpid()).lower(shape)  # noqa: E731
        return dataclasses.replace(small_program(), arguments=(shape,), lower=lower)

    first = compile_program(program_of(10))
    assert first["arguments"] == first["shards"] == 40
    assert compile_program(program_of(10)) == first and len(calls) == 1
    assert compile_program(program_of(12))["arguments"] == 48 and len(calls) == 2


@pytest.mark.parametrize(
    ("message", "total"),
    [
        ("the total memory required for HLO temporaries (48.50G) exceeds available HBM (15.75G).", int(48.5 * 2**30)),
        ("Used 15.90G of 15.75G hbm. Exceeded hbm capacity by 153.60M.", int(15.9 * 2**30)),
        ("something else", None),
    ],
)
def test_a_program_that_the_compiler_finds_too_large_has_the_figures_of_its_message(message, total):
    class Lowered:
        def as_text(self):
            return f"{message} {os.getpid()}"

        def compile(self):
            raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: Ran out of memory: {message}")

    program = dataclasses.replace(small_program(), lower=Lowered, resident=(jax.device_put(np.zeros(10, np.float32)),))
    if total is None:
        with pytest.raises(jax.errors.JaxRuntimeError):
            compile_program(program)
        return
    figures = compile_program(program)
    total += figures["arguments"] if "temporaries" in message else 0
    assert figures["total"] == total + 40 and figures["room"] == 15.75 * 2**30 and figures["collectives"] is None
    assert figures["temporary"] == total - figures["arguments"] and figures["arguments"] == figures["shards"] > 0
    assert figures["beside"] == 40


def test_missing_bytes_are_named():
    with pytest.raises(Refusal, match="small does not fit: 7 bytes per chip are missing") as caught:
        check_fits("small", 1_007, 1_000, "less")
    assert caught.value.code == 3
    check_fits("small", 1_000, 1_000, "less")


_PROGRAMS = """
import json, sys, jax
from mossa_jax.planning import programs
from mossa_jax.planning.sizes import AdapterSize, Base, BatchSize, PrefixSize
from mossa_jax.config import Mesh
from mossa_jax.planning.hardware import Hardware
from mossa_jax.llama.architecture import architecture_from_config
from mossa_jax.llama.placement import abstract_base
from mossa_jax.llama.published import PUBLISHED
from mossa_jax.devices.memory import bytes_on_device

sizes = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
arch = architecture_from_config(PUBLISHED["llama2-7b"] | sizes | dict(vocab_size=256), "small")
hardware = Hardware("here", 8, 2**34, 1e12, 1e11, 1e10, 0, 8, tuple(jax.devices()))
grid = lambda adapters: programs.grid_for(hardware, Mesh(2, 2, 2), arch, "small", adapters)
population, alone = Base(arch, "float32", grid(True)), Base(arch, "float32", grid(False))
adapters = lambda models: AdapterSize(models, 4, ("q_proj", "v_proj"))
batch, pairs = BatchSize(4, 32), ((0, 2), (1, 2), (0, 1))
builders = {
    "controls": lambda: programs.tuning_program(population, adapters(4), batch, 8, remat=True),
    "E": lambda: programs.tuning_program(alone, adapters(1), batch, 8, remat=False, prefix=PrefixSize(4, 28)),
    "scores": lambda: programs.score_program(alone, adapters(3), BatchSize(8, 32), 4),
    "likelihoods": lambda: programs.likelihood_program(alone, adapters(3), batch, 8, prefix=PrefixSize(4, 28)),
    "states": lambda: programs.states_program(alone, adapters(3), batch, 128, prefix=PrefixSize(32)),
    "moments": lambda: programs.states_program(alone, adapters(3), batch, 128, pool="all", pairs=pairs),
    "similarity": lambda: programs.similarity_program(alone, 3, 128, pairs, 2),
}
base = bytes_on_device(abstract_base(arch, alone.grid, "float32"))
print(json.dumps({name: programs.compile_program(builders[name]()) | {"base": base} for name in sys.argv[1:]}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [("controls", "states", "similarity"), ("E", "scores", "moments", "likelihoods")],
    ids=" ".join,
)
def test_arguments_are_the_sum_of_their_shards_within_one_percent(root, names):
    """Compares the bytes of a program's shapes and shardings on 2 x 2 x 2 devices with its compiler's figure."""
    done = subprocess.run([sys.executable, "-c", _PROGRAMS, *names], env=cpu(root, 8), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    # The forward pass of a comparison does not read the head, and the similarities do not read the base. Both stay on
    # the devices meanwhile.
    head, sums = 256 * 64 * 4 // 8, 3 * 4 * 64 * 4
    beside = {"states": head + sums, "moments": head}
    for name, figures in json.loads(done.stdout).items():
        assert figures["shards"] == pytest.approx(figures["arguments"], rel=0.01), name
        assert figures["beside"] == (figures["base"] if name == "similarity" else beside.get(name, 0)), name
        assert figures["total"] >= figures["arguments"] + figures["temporary"] + figures["beside"], name
        if name == "controls":
            transfers = {(transfer["kind"], transfer["axes"]) for transfer in figures["collectives"]}
            assert {("all-gather", "fsdp"), ("all-reduce", "tensor")} <= transfers
