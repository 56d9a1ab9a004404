"""Programs for TPU slices that are not here, and the arithmetic around them."""

import dataclasses
import importlib.util
import json
import os
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import cpu

from mossa_jax.collectives import collectives
from mossa_jax.config import Config, Mesh, Schedule, Tokens, Tuning
from mossa_jax.llama.adapters import initial_adapter, scales, stack, trainable
from mossa_jax.llama.architecture import architecture_from_config
from mossa_jax.llama.published import PUBLISHED
from mossa_jax.mesh import make_mesh, place
from mossa_jax.plan import check_fits, leading_ids, paper_rows, plan_hours, plan_tuning, tuning_shapes
from mossa_jax.rundir import Refusal
from mossa_jax.tokens.packing import TrainingRows
from mossa_jax.tuning import population
from mossa_jax.tuning.flops import step_flops

LIBTPU = importlib.util.find_spec("libtpu") is not None
needs_libtpu = pytest.mark.skipif(not LIBTPU, reason="needs the package libtpu")
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def plan(root, *flags, before=""):
    """launch.plan in a process of its own; behind some statements, where there are any."""
    code = f"import jax, launch.main as m, launch.plan as l\n{before}\nm.run(l.main)"
    command = ["-c", code] if before else ["-m", "launch.plan"]
    return subprocess.run(
        [sys.executable, *command, *flags], cwd=root, env=os.environ, capture_output=True, text=True, timeout=500
    )


def architecture(**changes):
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = PUBLISHED["llama2-7b"] | {"vocab_size": 16, "num_key_value_heads": 1} | sizes
    return architecture_from_config(config | changes, "small")


def test_what_cannot_be_planned_is_one_line(root):
    for flags, words in (
        (("--shape=llama2-7b", "--topology=v9:4x4"), "v9:4x4"),
        ((), "--shape"),
        (("--base=/no",), "/no"),
    ):
        done = plan(root, *flags)
        assert done.returncode in (2, 3) and words in done.stderr and "Traceback" not in done.stderr


def test_flops_of_a_step_equal_a_count_by_hand():
    sizes = {"rows": 3, "row_length": 4, "rank": 2, "targets": ("q_proj", "v_proj"), "answers": 2}
    # A block: q and o 8 x 8, k and v 8 x 4, three of 8 x 12: 480. An adapter: 2 layers x 2 x (8 + 8 + 8 + 4) = 112.
    # Queries of a row of four see 1, 2, 3, 4 keys: 2.5. Twelve tokens, six answer columns.
    wanted = {
        "blocks": 4 * 960 * 12,
        "attention": 12 * 2 * 8 * 2.5 * 12,
        "adapters": 6 * 112 * 12,
        "head": 4 * 16 * 8 * 6,
        "model": 46_080 + 5_760 + 8_064 + 3_072,
        "recomputed": (2 * (960 - 2 * 96 + 112) + 4 * 2 * 8 * 2.5) * 12,
        "executed": 62_976 + 23_040,
    }
    assert step_flops(architecture(), **sizes) == wanted
    without = step_flops(architecture(), **sizes, remat=False)
    assert without == wanted | {"recomputed": 0, "executed": 62_976}
    # One block with a window of two: 1, 2, 2, 2 keys. With an adapter on down_proj, its 12 -> 2 is needed again, 2 -> 8
    # is not.
    windowed = dataclasses.replace(architecture(), window=2, windowed=(1,))
    assert step_flops(windowed, **sizes)["attention"] == 12 * 8 * (2.5 + 1.75) * 12
    found = step_flops(architecture(), **sizes | {"targets": ("down_proj",)})
    assert found["recomputed"] == (2 * (960 - 2 * 96 + 2 * 2 * 12) + 160) * 12
    # Llama-2-7B: 6,738,415,616 parameters less embedding, head and 65 norms.
    arch = architecture_from_config(PUBLISHED["llama2-7b"], "llama2-7b")
    blocks = step_flops(arch, **sizes | {"rows": 1, "row_length": 1})["blocks"]
    assert blocks == 4 * (6_738_415_616 - 2 * 32_000 * 4_096 - 65 * 4_096)


@pytest.mark.parametrize(("remat", "targets"), [(True, ("q_proj", "v_proj")), (False, ALL)])
def test_flops_agree_with_xlas_own_count_within_two_percent(remat, targets):
    changes = {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 4, "num_key_value_heads": 2}
    arch = architecture(**changes, vocab_size=512)
    sizes = {"rows": 2, "row_length": 128, "rank": 4, "targets": targets, "answers": 32}
    mesh = make_mesh(Mesh(1, 1, 1), devices=jax.devices()[:1])
    step = population.make_step(arch, population.optimizer_for(Tuning(), Schedule()), mesh, remat)
    compiled = step.lower(*tuning_shapes(arch, mesh, dtype="float32", slots=3, **sizes)).compile()
    # XLA counts the body of a loop once: one of the two blocks, and the only chunk of the head.
    ours = step_flops(dataclasses.replace(arch, layers=1), **sizes, remat=remat)
    # The CPU's attention computes the whole square of 128, not the half that a causal row needs.
    square = (128 / 64.5 - 1) * ours["attention"] * (4 / 3 if remat else 1)
    assert ours["executed"] + square == pytest.approx(compiled.cost_analysis()["flops"] / 3, rel=0.02)


def test_hours_follow_from_flops_use_and_slots():
    rows, mixture = paper_rows()
    assert len(rows) == 60 and sum(rows) == 1_316_740 and max(rows) == 30_000 and mixture == 529_650
    # 2 x 3.6e6 tokens of 197e9 FLOPs on half of four chips of 197e12, half of the slots empty: two hours.
    asked = {"slots": 16, "batch": 4096, "tokens": 3.6e6, "epochs": 2, "use": 0.5}
    found = plan_hours(197e9, "v5e:2x2", 4, **asked, slot_use=0.5)
    assert found["controls"] == pytest.approx(
        {"tokens": 7.2e6, "flops": 7.2e6 * 197e9, "slot_use": 0.5, "chip_hours": 8.0, "hours": 2.0}
    )
    share = 529_650 / 1_316_740
    assert found["tuned"] == pytest.approx(
        {
            "tokens": 7.2e6 * share,
            "flops": 7.2e6 * 197e9 * share,
            "slot_use": 1,
            "chip_hours": 4 * share,
            "hours": share,
        }
    )
    assert found["together"]["hours"] == pytest.approx(2 + share)
    assert found["together"]["chip_hours"] == pytest.approx(8 + 4 * share)
    # The longest controls, 30,000 rows, keep all slots waiting where every control has one.
    asked |= {"tokens": 160e6}
    assert plan_hours(197e9, "v5p:2x2x1", 4, **asked | {"slots": 1})["controls"]["slot_use"] == 1
    lonely = plan_hours(197e9, "v5p:2x2x1", 4, **asked | {"slots": 60})["controls"]["slot_use"]
    assert lonely == pytest.approx(1_316_740 / 60 / 30_000, rel=0.01)
    # Four more places that no control ever takes; E's rows on half of the chips.
    found = plan_hours(197e9, "v5p:2x2x1", 4, **asked | {"slots": 60}, places=64, tuned_use=0.5)
    assert found["controls"]["slot_use"] == pytest.approx(lonely * 60 / 64)
    whole = plan_hours(197e9, "v5p:2x2x1", 4, **asked | {"slots": 60})
    assert found["tuned"]["hours"] == pytest.approx(2 * whole["tuned"]["hours"])


def test_ids_of_a_template_are_counted_once_a_row_or_once_an_example(tiny):
    arch, rows = architecture(), 1_316_740

    def ids(template, tokens=1e8, shape_alone=True, arch=arch, **changes):
        changes = {"template": template, "row_length": 1024} | changes
        return leading_ids(Config(base=str(tiny.folder), tokens=Tokens(**changes)), arch, shape_alone, tokens)

    assert ids("none") == (1e8, 0)
    assert ids("llama2") == (pytest.approx(1e8 * 1024 / 891), 133)
    assert ids("llama2", share_prefix=False) == (1e8 + 133 * rows, 0)
    assert ids("llama2", arch=dataclasses.replace(arch, window=2, windowed=(1,))) == (1e8 + 133 * rows, 0)
    # Examples so long that sharing is not worth it: 133 ids of 887 are 15 %.
    assert ids("llama2", tokens=755 * rows) == (888 * rows, 0) and ids("llama2", tokens=753 * rows)[1] == 133
    with pytest.raises(Refusal, match="needs a tokenizer"):
        ids("chat")
    from transformers.models.llama.tokenization_llama import DEFAULT_SYSTEM_PROMPT

    tokenizer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tiny.folder)
    head = "[INST] <<SYS>>\n" + DEFAULT_SYSTEM_PROMPT + "\n<</SYS>>\n\n"
    counted = ids("llama2", shape_alone=False)[1]
    assert abs(counted - 1 - len(tokenizer(head, add_special_tokens=False).input_ids)) <= 1


def test_what_is_compiled_is_what_a_run_places(tiny):
    arch = architecture_from_config(json.loads((tiny.folder / "config.json").read_text()), "tiny")
    mesh = make_mesh(Mesh(1, 1, 1), devices=jax.devices()[:1])
    optimizer = population.optimizer_for(Tuning(), Schedule())
    starts = [initial_adapter(arch, ("q_proj", "down_proj"), 2, 16, 0, (seed,)) for seed in range(3)]
    stacked = stack(arch, starts)
    state = population.start(trainable(stacked), optimizer, mesh)
    widths = {"tokens": 24, "segments": 24, "positions": 24, "predict": 5, "labels": 5}
    batch = TrainingRows(**{name: np.zeros((3, 4, width), np.int32) for name, width in widths.items()})
    scale = {target: place(mesh, leaf, ("adapter", "layers")) for target, leaf in scales(stacked).items()}
    placed = scale, place(mesh, np.zeros(3, np.int32), ("adapter",)), state, population.place_batch(mesh, batch)
    _, *planned, active = tuning_shapes(
        arch, mesh, dtype="float32", slots=3, rows=4, row_length=24, rank=2, targets=("q_proj", "down_proj"), answers=5
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


def test_transfers_are_counted_by_kind_axes_and_turns_of_their_loops():
    axes = {"adapter": 2, "fsdp": 4, "tensor": 1}
    assert collectives(TEXT, axes) == [
        {"kind": "all-gather", "axes": "adapter+fsdp", "count": 1, "bytes": 24 * 4 * 7 // 8},
        {"kind": "all-gather", "axes": "fsdp", "count": 12, "bytes": 12 * 10 * 16 * 2 * 3 // 4},
        {"kind": "all-reduce", "axes": "adapter", "count": 12, "bytes": 12 * (6 * 4 + 4 * 2)},
        {"kind": "reduce-scatter", "axes": "adapter", "count": 1, "bytes": 5 * 4},
    ]


_ON_EIGHT = """
import json
from functools import partial
import jax, jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from mossa_jax.config import Mesh
from mossa_jax.mesh import make_mesh
from mossa_jax.collectives import collectives

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
    part = 8 * 100 * 4  # of one device
    wanted = {
        ("all-gather", "fsdp"): (5, 5 * 4 * part * 3 // 4),
        ("all-reduce", "adapter+fsdp"): (5, 5 * 2 * part * 7 // 8),
        ("reduce-scatter", "adapter"): (5, 5 * 2 * part),
        ("collective-permute", "fsdp"): (1, part),
    }
    assert {(f["kind"], f["axes"]): (f["count"], f["bytes"]) for f in json.loads(done.stdout)} == wanted


def small_plan(**changes):
    arguments = {"name": "small", "dtype": "float32", "slots": 2, "rows": 2, "row_length": 8, "rank": 2}
    arguments |= {"targets": ("q_proj",), "answers": 2} | changes
    return plan_tuning(architecture(), jax.devices()[:1], Mesh(1, 1, 1), **arguments)


def test_rows_that_cannot_be_spread_are_refused():
    with pytest.raises(Refusal, match=r"rows=3 .* multiple of 2") as caught:
        small_plan(rows=3, parts=2)
    assert caught.value.code == 2


@pytest.mark.parametrize(("body", "lead", "refused"), [("splash", 0, True), ("splash", 3, False), ("xla", 0, False)])
def test_only_splash_needs_rows_that_divide_over_devices(body, lead, refused):
    """A model of its own over four devices: rows that do not divide stand on each of them, but not for a kernel."""
    grid = jax.sharding.AbstractMesh((1, 4, 1), ("adapter", "fsdp", "tensor"))
    found = "xla" if lead else body  # rows with shared ids never go to the kernel
    for rows in (4, 8):
        population.check_rows("small, E", rows, 1, grid, found)
    if not refused:
        population.check_rows("small, E", 6, 2, grid, found)
        return
    with pytest.raises(Refusal, match=r"small, E: batch_rows=6 .* 4 devices .* multiple of 8") as caught:
        population.check_rows("small, E", 6, 2, grid, found)
    assert caught.value.code == 2


def test_the_form_with_shared_ids_is_what_is_compiled(monkeypatch):
    asked = []
    make = population.make_step
    monkeypatch.setattr(population, "make_step", lambda *arguments: asked.append(arguments[3:]) or make(*arguments))
    monkeypatch.setenv("MOSSA_ATTENTION", "splash")  # which could not be compiled here
    found = small_plan(lead=3, reach=5, parts=2)
    assert asked == [(True, 2, 3, 5)] and found["lead"] == 3 and found["attention"] == "xla"


def test_auto_recomputes_only_where_the_room_is_too_small():
    ample, tight = small_plan(remat="auto", room=2**40), small_plan(remat="auto", room=1_000)
    assert ample["remat"] is False and ample["flops"]["recomputed"] == 0
    assert tight["remat"] is True and tight["flops"]["recomputed"] > 0
    edge = int(ample["total"] / 0.9)
    assert small_plan(remat="auto", room=edge + 10)["remat"] is False
    assert small_plan(remat="auto", room=edge - 10)["remat"] is True


@pytest.mark.parametrize(
    ("said", "total"),
    [
        ("the total memory required for HLO temporaries (48.50G) exceeds available HBM (15.75G).", int(48.5 * 2**30)),
        ("Used 15.90G of 15.75G hbm. Exceeded hbm capacity by 153.60M.", int(15.9 * 2**30)),
        ("something else", None),
    ],
)
def test_a_program_that_the_compiler_finds_too_large_has_its_figures(monkeypatch, said, total):
    class Lowered:
        def lower(self, *_):
            return self

        def compile(self):
            raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: Ran out of memory: {said}")

    recomputed = []
    monkeypatch.setattr(population, "make_step", lambda *arguments: recomputed.append(arguments[3]) or Lowered())
    if total is None:
        with pytest.raises(jax.errors.JaxRuntimeError):
            small_plan()
        return
    found = small_plan()
    total += found["arguments"] if "temporaries" in said else 0
    assert found["total"] == total and found["room"] == 15.75 * 2**30 and found["collectives"] is None
    assert found["temporary"] == found["total"] - found["arguments"] and found["arguments"] > found["base"] > 0
    assert recomputed == [True]
    small_plan(remat="auto", room=2**40)  # what the compiler says of its chip counts, too
    assert recomputed == [True, False, True]


def test_missing_bytes_are_named():
    with pytest.raises(Refusal, match="small does not fit: 7 bytes a chip are missing") as caught:
        check_fits("small", 1_007, 1_000, "less")
    assert caught.value.code == 3
    check_fits("small", 1_000, 1_000, "less")


@pytest.mark.parametrize("stage", ["forward", "tune"])
def test_a_program_that_does_not_fit_ends_in_code_3_behind_its_table(root, tiny, stage, tmp_path):
    fake = "l.topology_devices = lambda name: jax.devices()[:1]; l.chip_bytes = lambda name: 10_000"
    flags = (f"--base={tiny.folder}", f"--stage={stage}", "--dtype=float32", "--row_length=16", "--rows=2")
    flags += ("--prompts=8", "--slots=2", "--answers=4", "--remat=on", f"--out={tmp_path / 'plan.json'}")
    done = plan(root, *flags, before=fake)
    assert done.returncode == 3, done.stderr
    (found,) = json.loads((tmp_path / "plan.json").read_text())
    assert f" {stage} on v5e:4x4" in done.stdout and "DOES NOT FIT" in done.stdout and found["fits"] is False
    assert f"{found['total'] - 10_000} bytes a chip are missing" in done.stderr and "Traceback" not in done.stderr
    assert found["temporary"] > 0 and found["base"] == jnp.dtype("float32").itemsize * sum(
        parameter.numel() for parameter in tiny.torch_model.parameters()
    )
    assert ("together:" in done.stdout) == (stage == "tune")
    if stage == "tune":  # E by itself, next to the controls
        assert found["tuned"]["slots"] == 1 and found["tuned"]["fits"] is False and found["slots"] == 2
        assert found["tuned"]["total"] < found["total"] and found["tuned"]["attention"] == found["attention"] == "xla"
        assert " tune, E, on v5e:4x4 (1 chips" in done.stdout


def test_sizes_come_from_a_config_and_flags_go_first(root, tiny, tiny_config, tmp_path):
    fake = "l.topology_devices = lambda name: jax.devices()[:1]"
    flags = (f"--config={tiny_config}", "--stage=tune", "--answers=4", f"--out={tmp_path / 'plan.json'}")
    done = plan(root, *flags, "--slots=2", "--template=llama2", "--row_length=512", before=fake)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads((tmp_path / "plan.json").read_text())
    config = runpy.run_path(str(tiny_config))["get_config"]()
    assert found["model"] == str(tiny.folder) and found["slots"] == 2
    assert found["rows"] == config.tuning.control.batch_rows
    assert found["tuned"]["rows"] == config.tuning.experimental.batch_rows
    assert found["lead"] == found["tuned"]["lead"] > 100 and f"xla, {found['lead']} ids once a row" in done.stdout
    assert found["remat"] is False


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("shape", ["llama2-7b", "llama3-8b", "llama2-70b"])
def test_the_forward_pass_compiles_and_fits(root, shape, tmp_path):
    topologies = "v5e:4x4,v5p:2x2x4,v6e:4x4"
    done = plan(root, f"--shape={shape}", f"--topology={topologies}", f"--out={tmp_path / 'plan.json'}")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "plan.json").read_text())
    assert [row["topology"] for row in found] == topologies.split(",")
    for row in found:
        assert row["fits"] and row["chips"] == 16 and row["attention"] == "splash"
        parameters = {"llama2-7b": 6_738_415_616, "llama3-8b": 8_030_261_248, "llama2-70b": 68_976_648_192}[shape]
        assert row["base"] == pytest.approx(2 * parameters / 16, rel=0.01)  # nothing of size is kept twice


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(("topology", "slots", "fsdp"), [("v5e:4x4", 16, 4), ("v5e:8x8", 64, 4), ("v5p:2x2x4", 64, 1)])
def test_the_training_step_of_llama_2_7b_compiles_and_fits(root, topology, slots, fsdp, tmp_path):
    flags = (f"--topology={topology}", f"--slots={slots}", f"--fsdp={fsdp}", f"--out={tmp_path / 'plan.json'}")
    done = plan(root, "--shape=llama2-7b", "--stage=tune", "--remat=on", *flags)
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = json.loads((tmp_path / "plan.json").read_text())
    assert row["fits"] and row["attention"] == "splash" and row["slots"] == min(slots, 60) and row["places"] == slots
    tuned = row["tuned"]
    assert tuned["fits"] and tuned["attention"] == "splash" and tuned["slots"] == 1
    assert tuned["mesh"] == {"adapter": 1, "fsdp": row["chips"], "tensor": 1}
    assert tuned["rows"] == tuned["spread"] == row["chips"]
    assert tuned["base"] == pytest.approx(2 * 6_738_415_616 / row["chips"], rel=0.01)
    assert row["base"] == pytest.approx(2 * 6_738_415_616 / fsdp, rel=0.01)
    if (
        row["collectives"] is not None
    ):  # over fsdp the blocks' matrices are gathered twice, forward and back, the head once
        gathers = [found for found in row["collectives"] if (found["kind"], found["axes"]) == ("all-gather", "fsdp")]
        wanted = 2 * (2 * 6_476_005_376 + 32_000 * 4_096) * (fsdp - 1) / fsdp
        assert sum(found["bytes"] for found in gathers) == pytest.approx(wanted, rel=0.05)


@pytest.mark.slow
@needs_libtpu
def test_the_papers_config_compiles_in_the_form_that_a_run_takes(root, tmp_path):
    """Template llama2: rows with shared ids, the xla body. E's four rows divide over no sixteen chips."""
    flags = ("--config=configs/llama2_7b_flan2021.py", "--shape=llama2-7b", "--stage=tune", "--slots=16", "--fsdp=4")
    done = plan(root, *flags, f"--out={tmp_path / 'plan.json'}")
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = json.loads((tmp_path / "plan.json").read_text())
    for part in (row, row["tuned"]):
        assert part["fits"] and part["lead"] == 133 and part["attention"] == "xla" and part["rows"] == 4
    assert row["spread"] == 4 and row["tuned"]["spread"] == 1


@needs_libtpu
def test_rows_that_splash_cannot_take_are_refused_before_anything_is_compiled(root):
    """The paper's config without shared ids: E's four rows over sixteen chips."""
    flags = ("--config=configs/llama2_7b_flan2021.py", "--config.tokens.share_prefix=false", "--shape=llama2-7b")
    done = plan(root, *flags, "--stage=tune", "--fsdp=4", "--slots=16")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and "Traceback" not in done.stderr and "compiled in" not in done.stdout
    assert "E: batch_rows=4" in line and "splash" in line and "multiple of 16" in line
