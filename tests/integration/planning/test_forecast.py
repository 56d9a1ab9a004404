"""A whole run on hardware that is not at hand: counts, formulas, sums, what does not fit, and suggestions."""

import dataclasses
import importlib.util
import json
import os
import runpy
import subprocess
import sys
from dataclasses import replace

import jax
import pytest

from mossa_jax.config import Compare, Config, Mesh, Schedule, Tasks, Tokens, Tuning
from mossa_jax.errors import Refusal
from mossa_jax.llama.architecture import architecture_from_config
from mossa_jax.llama.published import PUBLISHED, published_shape
from mossa_jax.planning import programs
from mossa_jax.planning.forecast import plan_run
from mossa_jax.planning.hardware import Hardware, find_hardware
from mossa_jax.planning.plan_table import format_plan
from mossa_jax.planning.stages import STAGES, PlannedRun
from mossa_jax.planning.suggest import suggest
from mossa_jax.planning.workload import Workload, count_work
from mossa_jax.tasks.flan_names import CLUSTERS
from mossa_jax.tuning.flops import step_flops

LIBTPU = importlib.util.find_spec("libtpu") is not None
needs_libtpu = pytest.mark.skipif(not LIBTPU, reason="needs the package libtpu")
LLAMA = architecture_from_config(PUBLISHED["llama2-7b"], "llama2-7b")
FLAN = Config(
    name="flan",
    base="meta-llama/Llama-2-7b-hf",
    dtype="bfloat16",
    tasks=Tasks(suite="flan2021", only=CLUSTERS),
    tokens=Tokens(template="llama2"),
    # One control a task.
    tuning=Tuning(slots=4, control=Schedule(batch_rows=4), experimental=Schedule(batch_rows=4), seeded=(), twins=()),
    mesh=Mesh(-1, 1, 4),
)


def launch_plan(root, *flags, before=""):
    """Runs launch.plan in a process of its own, after the statements `before`."""
    code = f"import jax, launch.flags as f, launch.plan as p\n{before}\nf.run(p.main)"
    command = ["-c", code] if before else ["-m", "launch.plan"]
    return subprocess.run(
        [sys.executable, *command, *flags], cwd=root, env=os.environ, capture_output=True, text=True, timeout=900
    )


def count_flan(config, prompts=0):
    """Counts the work of a run on a base model of which only the shape is at hand."""
    return count_work(config, example_ids=122, prompts=prompts, has_tokenizer=False)


def planned_run(topology="h100:8", config=FLAN, **changes):
    work = count_flan(config)
    arguments = {"hardware": find_hardware(topology), "answers": 512, "use": 0.4} | changes
    return PlannedRun(config, LLAMA, config.base, work, **arguments)


def test_work_is_counted_from_names_alone():
    work = count_flan(FLAN)
    assert len(work.controls) == work.tasks == 60 and sum(work.controls) == 1_316_740 and max(work.controls) == 30_000
    assert work.mixture == 529_650 and work.prompts == 10_000 and work.template_ids == 133
    unseen = replace(FLAN, tasks=Tasks(suite="flan2021"), tuning=replace(FLAN.tuning, seeds=2, control_seeds=3))
    unseen.tuning.seeded = ("all",)
    counts = count_flan(unseen, prompts=50)
    assert counts.tasks == 67 and len(counts.controls) == 3 * 67
    assert counts.mixture == 529_650  # Misc. is held out.
    assert sum(counts.controls) == 3 * (1_316_740 + 113_980)
    assert counts.experimental_models == 2 and counts.prompts == 50
    # Each data set is one task; both names of MNLI have the same training rows.
    joined = replace(FLAN, tasks=Tasks(suite="flan2021", selection="flan62", max_train=10**9))
    assert sum(count_flan(joined).controls) == sum(task.rows for task in _names("flan62"))
    with pytest.raises(Refusal, match="needs a tokenizer"):
        count_flan(replace(FLAN, tokens=Tokens(template="chat")))


def test_seeds_and_twins_of_a_task_of_each_cluster_are_planned():
    config = replace(FLAN, tuning=Tuning(slots=4, control=Schedule(batch_rows=4), experimental=Schedule(batch_rows=4)))
    counts, plain = count_flan(config), count_flan(FLAN)
    assert len(counts.controls) == 60 + 11 + 11 and counts.repeated == 11 and plain.repeated == 0
    # Training: the examples of one task of each cluster come twice more.
    more = sum(counts.controls) - sum(plain.controls)
    assert 0 < more == 2 * round(more / 2) and counts.mixture == plain.mixture
    # Comparing: 11 tasks have six models, the others four; memory is planned for six.
    for engine in ("kept", "moments"):
        plans = [
            {row["stage"]: row for row in plan_run(planned_run(config=each), ("states",), 0, False)["rows"]}["states"]
            for each in (replace(each, compare=Compare(engine=engine)) for each in (config, FLAN))
        ]
        work, before = (row["flops"] * row["runs"] for row in plans)
        assert [row["models"] for row in plans] == [6, 4]
        if engine == "kept":
            assert work / before == pytest.approx((11 * 6 + 49 * 4) / (60 * 4))
        else:  # sums of moments are work for each model and each pair: 10 pairs and 5
            assert (11 * 6 + 49 * 4) / (60 * 4) < work / before < (11 * 10 + 49 * 5) / (60 * 5)
    similar = [plan_run(planned_run(config=each), ("similarity",), 0, False)["rows"][0] for each in (config, FLAN)]
    assert 1 < similar[0]["flops"] / similar[1]["flops"] < 1.5 and similar[0]["models"] == 6


def _names(selection):
    from mossa_jax.tasks.flan_names import select

    extra = ("text_formatting",)
    return [t for t in select("all69") if t.cluster not in extra and t.name != "mnli_mismatched"]


def test_rows_of_a_folder_are_counted(tasks_folder, tiny):
    config = Config(base=str(tiny.folder), tasks=Tasks(suite="folder", folder=str(tasks_folder), max_train=20))
    # Three tasks, and a second seed and a twin for one of each of the two clusters.
    assert count_work(config, example_ids=10, prompts=0, has_tokenizer=True).controls == (20,) * 7


def test_ids_of_a_template_are_counted_once_per_row_or_once_per_example(tiny):
    work = Workload((30,), 30, 1, 1, 10, example_ids=100.0, template_ids=133)
    assert work.shared_ids(FLAN, LLAMA) == 133
    assert work.positions(30, 1024, 133) == pytest.approx(30 * 100 * 1024 / 891)
    assert work.positions(30, 1024, 0) == 30 * 233
    apart = replace(FLAN, tokens=Tokens(template="llama2", share_prefix=False))
    assert work.shared_ids(apart, LLAMA) == 0
    assert work.shared_ids(FLAN, dataclasses.replace(LLAMA, window=2, windowed=(1,))) == 0
    # Long examples are not worth sharing for: 133 ids of 888 are 15 %.
    assert replace(work, example_ids=755.0).shared_ids(FLAN, LLAMA) == 0
    assert replace(work, example_ids=753.0).shared_ids(FLAN, LLAMA) == 133
    assert work.steps(30, Schedule(epochs=3, batch_rows=2), 1024, 0) == -(-3 * 30 * 233 // 2048)
    assert work.steps(30, Schedule(epochs=3, batch_rows=2, max_steps=4), 1024, 0) == 4
    from transformers.models.llama.tokenization_llama import DEFAULT_SYSTEM_PROMPT

    tokenizer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tiny.folder)
    head = "[INST] <<SYS>>\n" + DEFAULT_SYSTEM_PROMPT + "\n<</SYS>>\n\n"
    config = replace(FLAN, base=str(tiny.folder))
    counted = count_work(config, example_ids=1, prompts=0, has_tokenizer=True).template_ids
    assert abs(counted - 1 - len(tokenizer(head, add_special_tokens=False).input_ids)) <= 1


def test_hardware_is_known_by_name():
    h100 = find_hardware("h100:8x2")
    assert (h100.chips, h100.node, h100.peak) == (16, 8, 989e12)
    assert find_hardware("a100:4").chips == 4 and find_hardware("h200:8").memory > h100.memory
    assert find_hardware("a100-40:8").memory < find_hardware("a100:8").memory < find_hardware("b200:8").memory
    for name in ("v9:4x4", "h100", "h100:0", "h100:8x2x2", "h100:8x", ""):
        with pytest.raises(Refusal, match="unknown") as caught:
            find_hardware(name)
        assert caught.value.code == 2


def test_a_transfer_between_nodes_goes_through_the_adapters_of_its_group():
    h100 = Hardware("h100:8x2", 16, 0, 1.0, 1.0, 450e9, 50e9, 8)
    grid = {"adapter": 2, "fsdp": 2, "tensor": 4}
    for axes in (("tensor",), ("fsdp",), ("fsdp", "tensor")):
        assert h100.receive_rate(grid, axes) == 450e9
    # Each group has one chip per node; then two; then all eight, whose adapters together are slower than their links.
    assert h100.receive_rate(grid, ("adapter",)) == 50e9
    assert h100.receive_rate(grid, ("adapter", "fsdp")) == 100e9
    assert h100.receive_rate(grid, ("adapter", "fsdp", "tensor")) == 400e9


def test_hours_follow_from_flops_use_and_slots():
    """Controls train in four slots on 2 x 4 GPUs; E has only four rows for all eight of them."""
    run = planned_run(config=replace(FLAN, mesh=Mesh(2, 4, 1)))
    plan = plan_run(run, ("E", "controls"), price=2.5, compile_programs=False)
    alone, controls = plan["rows"]
    sizes = {"rows": 4, "row_length": 1024, "rank": 8, "targets": ("q_proj", "v_proj"), "answers": 512}
    flops = step_flops(LLAMA, **sizes)["model"]
    # 3 x 1,316,740 examples of 122 ids in rows with 891 columns of their own; each control's last step is not full.
    whole = 3 * 1_316_740 * 122 * 1024 / 891 / 4096
    work = controls["flops"] * controls["runs"]
    assert work == pytest.approx(flops * whole, rel=1e-3) and work > flops * whole
    assert controls["hours"] == pytest.approx(work / controls["used"] / (0.4 * 8 * 989e12) / 3600)
    assert controls["used"] > 0.99 and controls["models"] == 4
    assert alone["runs"] == pytest.approx(3 * 529_650 * 122 * 1024 / 891 / 4096, abs=1) and alone["flops"] == flops
    assert alone["used"] == 1 / 8 and alone["seconds"] == pytest.approx(flops * 8 / (0.4 * 8 * 989e12))
    assert plan["chip_hours"] == pytest.approx(8 * (controls["hours"] + alone["hours"]))
    assert plan["price"] == pytest.approx(2.5 * plan["chip_hours"])
    # Two slots on four places, then a place for each control: idle places cost as much as busy ones.
    two = replace(FLAN, mesh=Mesh(4, 2, 1), tuning=replace(FLAN.tuning, slots=2))
    (row,) = plan_run(planned_run(config=two), ("controls",), 0, compile_programs=False)["rows"]
    assert row["used"] == pytest.approx(0.5, rel=1e-3) and row["hours"] == pytest.approx(
        2 * controls["hours"], rel=0.01
    )
    crowded = replace(FLAN, mesh=Mesh(4, 2, 1), tuning=replace(FLAN.tuning, slots=64))
    (row,) = plan_run(planned_run(config=crowded), ("controls",), 0, compile_programs=False)["rows"]
    assert row["models"] == 60 and row["used"] == pytest.approx(1_316_740 / 60 / 30_000, rel=0.01)


def test_transfers_set_the_time_if_they_take_longer():
    """Gathers the base on one mesh, within one node and over two: the network takes longer."""
    config = replace(FLAN, mesh=Mesh(1, 8, 1), tuning=replace(FLAN.tuning, experimental=Schedule(batch_rows=8)))
    inside, across = (
        plan_run(planned_run(topology, config), ("E",), 0, compile_programs=False)["rows"][0]
        for topology in ("h100:8", "h100:4x2")
    )
    assert inside["products_seconds"] == across["products_seconds"] == inside["seconds"]
    # Two nodes of four adapters with 50 GB/s each, instead of a link with 450 GB/s.
    assert across["transfer_seconds"] == pytest.approx(450 / 200 * inside["transfer_seconds"])
    assert across["seconds"] == max(across["transfer_seconds"], across["products_seconds"])
    # Blocks are gathered forward and backward, the head once, in two bytes per number.
    matrices = 2 * 6_476_005_376 + 32_000 * 4_096
    assert inside["received"] == pytest.approx(2 * matrices * 7 / 8, rel=0.01)
    assert inside["gathered"] == {"fsdp": pytest.approx(2 * matrices * 7 / 8)}


def test_a_gpu_cluster_without_a_compiler_is_planned_by_formula_and_says_so():
    run = planned_run()
    run = replace(run, hardware=replace(run.hardware, devices=(), no_compiler="no compiler; pip install it"))
    plan = plan_run(run, STAGES, price=0)
    assert [row["stage"] for row in plan["rows"]] == list(STAGES) and plan["price"] is None
    assert not any(row["compiled"] for row in plan["rows"])
    text = format_plan(plan)
    assert "BY FORMULA, not compiled: no compiler; pip install it" in text and text.count("transfers by formula") == 6
    assert "122 ids per example, and 133 of its template" in text
    by_name = {row["stage"]: row for row in plan["rows"]}
    assert by_name["E"]["base"] == pytest.approx(2 * 6_738_415_616 / 8, rel=0.01)
    assert by_name["controls"]["base"] == pytest.approx(2 * 6_738_415_616 / 4, rel=0.01)
    assert by_name["scores"]["attention"] == by_name["states"]["attention"] == "cudnn"
    assert by_name["similarity"]["beside"] == by_name["E"]["base"]
    # The forward pass sums moments itself; scores can be left out.
    streamed = replace(FLAN, compare=Compare(engine="moments"), tuning=replace(FLAN.tuning, score_prompts=0))
    assert [stage.name for stage in planned_run(config=streamed).stages()] == ["E", "controls", "states"]
    with pytest.raises(Refusal, match="only 'lora' can be planned"):
        planned_run(config=replace(FLAN, tuning=Tuning(control=Schedule(method="full"))))


def test_auto_recomputes_only_if_memory_is_too_small(monkeypatch):
    sizes = {False: 1_000, True: 100}

    def compile_program(program):
        return {"shards": 1, "arguments": 1, "temporary": 1, "beside": 0, "total": sizes[program.remat]} | more

    monkeypatch.setattr(programs, "compile_program", compile_program)
    tuning_program = programs.tuning_program
    monkeypatch.setattr(
        programs,
        "tuning_program",
        lambda *sizes, remat, **more: _Marked(tuning_program(*sizes, remat=remat, **more), remat),
    )
    devices = tuple(jax.devices()[:1])
    for room, more, remat in ((1_112, {}, False), (1_110, {}, True), (2_000, {"room": 1_110}, True)):
        more |= {"compile_seconds": 1, "collectives": None}
        hardware = Hardware("here", 1, room, 1e12, 1e11, 1e10, 0, 1, devices)
        config = replace(FLAN, dtype="float32", mesh=Mesh(1, 1, 1))
        (row,) = plan_run(planned_run(config=config, hardware=hardware), ("E",), 0)["rows"]
        assert row["remat"] is remat and row["fits"] and (row["recomputed"] > 0) is remat
        # Both were compiled, as a run does.
        assert row["programs"] == 1 + remat


def test_compilation_is_in_the_hours_once(monkeypatch):
    figures = {"shards": 1, "arguments": 1, "temporary": 1, "beside": 0, "total": 1, "collectives": []}
    monkeypatch.setattr(programs, "compile_program", lambda program: figures | {"compile_seconds": 40})
    hardware = Hardware("here", 1, 2**40, 1e15, 1e11, 1e10, 0, 1, tuple(jax.devices()[:1]))
    config = replace(FLAN, dtype="float32", mesh=Mesh(1, 1, 1), tuning=replace(FLAN.tuning, remat="off"))
    plan = plan_run(planned_run(config=config, hardware=hardware), STAGES, 0)
    # A step each for E and the controls, two programs for the other stages, one more for the ids that prompts
    # share.
    assert [row["programs"] for row in plan["rows"]] == [1, 1, 2, 2, 3, 2]
    assert plan["compilation"] == {"programs": 11, "seconds": 11 * 40}
    assert plan["hours"] == pytest.approx(sum(row["hours"] for row in plan["rows"]) + 11 * 40 / 3600)
    assert plan["chip_hours"] == pytest.approx(plan["hours"])
    text = format_plan(plan)
    assert "at most 11 programs" in text and "takes 440 s" in text
    # It does not grow with the tasks, unlike the stages.
    fewer = replace(config, tasks=replace(config.tasks, only=("summarization",)))
    half = plan_run(planned_run(config=fewer, hardware=hardware), STAGES, 0)
    assert half["compilation"] == plan["compilation"] and half["work"]["tasks"] < plan["work"]["tasks"]
    by_formula = plan_run(planned_run(config=config, hardware=hardware), STAGES, 0, compile_programs=False)
    assert by_formula["compilation"] == {"programs": 11, "seconds": None}
    assert "not known without a compiler" in format_plan(by_formula)


class _Marked:
    def __init__(self, program, remat):
        self._program, self.remat = program, remat

    def __getattr__(self, name):
        return getattr(self._program, name)


@pytest.mark.slow
def test_suggestions_fit_and_take_the_fewest_hours():
    bad = replace(FLAN, mesh=Mesh(8, 1, 1), tuning=replace(FLAN.tuning, slots=64))
    run = planned_run(config=bad)
    suggested, text = suggest(run, STAGES)
    before, after = (plan_run(each, STAGES, 0) for each in (run, suggested))
    assert after["fits"] and after["hours"] < 0.6 * before["hours"]
    mesh = suggested.config.mesh
    for axis in ("adapter", "fsdp", "tensor"):
        assert f"--config.mesh.{axis}={getattr(mesh, axis)}" in text.splitlines()[0]
    assert mesh.adapter * mesh.fsdp * mesh.tensor == 8
    assert f"--config.tuning.slots={suggested.config.tuning.slots}" in text.splitlines()[0]
    controls = next(row for row in after["rows"] if row["stage"] == "controls")
    assert controls["used"] > 0.96  # 64 slots would leave a third of them empty.
    # Nothing that a model learns from is changed.
    for kind in ("control", "experimental"):
        assert getattr(suggested.config.tuning, kind).batch_rows == 4
    with pytest.raises(Refusal, match="no mesh, slots and parts fit") as caught:
        suggest(replace(run, hardware=replace(run.hardware, memory=2**30)), STAGES)
    assert caught.value.code == 3


def test_suggestions_are_compiled_until_one_fits(monkeypatch):
    """Given devices, the best by formula are compiled in turn; here the first two are too large when compiled."""
    compiled = []

    def compiled_plan(each, stages, price, compile_programs=True):
        if not compile_programs:
            return plan_run(each, stages, price, False)
        compiled.append(each.config)
        return {"fits": len(compiled) > 2}

    from mossa_jax.planning import suggest as module

    monkeypatch.setattr(module, "plan_run", compiled_plan)
    monkeypatch.setattr(programs, "grid_for", _without_devices(programs.grid_for))
    run = planned_run()
    run = replace(run, hardware=replace(run.hardware, devices=tuple(jax.devices())))
    suggested, text = suggest(run, ("E", "controls"))
    assert suggested.config == compiled[2] and text.count("does not fit") == 2


def _without_devices(grid_for):
    return lambda hardware, *rest, **more: grid_for(replace(hardware, devices=()), *rest, **more)


def test_the_hub_ids_in_configs_have_a_known_shape(root):
    for file in sorted(root.glob("configs/llama*.py")):
        base = runpy.run_path(str(file))["get_config"]().base
        assert published_shape(base) in PUBLISHED, base
    assert published_shape("NousResearch/Llama-2-7b-hf") == "llama2-7b" and published_shape("some/model") is None


def test_an_unknown_topology_is_refused_in_one_line(root):
    done = launch_plan(root, "--config=configs/llama2_7b_flan2021.py", "--topology=h100:8,v9:4x4")
    assert done.returncode == 2 and "v9:4x4" in done.stderr and "Traceback" not in done.stderr and not done.stdout


def test_a_run_that_does_not_fit_exits_with_code_3_after_its_table(root, tmp_path):
    out = tmp_path / "plan.json"
    flags = (
        "--config=configs/llama2_7b_flan2021.py",
        "--topology=a100-40:1",
        "--price_per_chip_hour=2",
        f"--out={out}",
    )
    done = launch_plan(root, *flags, "--config.tuning.control.parts=1", "--config.mesh.adapter=1", "--use=0.5")
    assert done.returncode == 3, done.stderr
    (plan,) = json.loads(out.read_text())
    missing = [row for row in plan["rows"] if not row["fits"]]
    assert missing and [row["stage"] for row in plan["rows"]] == list(STAGES) and plan["use"] == 0.5
    assert f"{missing[0]['total'] - missing[0]['room']} bytes per chip are missing" in done.stderr
    assert f"{missing[0]['stage']} on a100-40:1" in done.stderr and "Traceback" not in done.stderr
    assert "MISSING" in done.stdout and f"money: {plan['price']:,.2f}" in done.stdout
    assert plan["price"] == pytest.approx(2 * plan["chip_hours"])


@pytest.mark.slow
def test_a_tiny_run_is_compiled_stage_by_stage_with_its_own_sizes(root, tiny, tiny_config, tmp_path):
    """Plans a config with tasks from a folder for this machine's CPU instead of a slice; flags override the config."""
    fake = (
        "from mossa_jax.planning.hardware import Hardware\n"
        "l.find_hardware = lambda name: Hardware(name, 1, 10_000, 1e12, 1e11, 1e10, 0, 1, tuple(jax.devices()[:1]))"
    )
    flags = (f"--config={tiny_config}", "--answers=4", "--template=llama2", "--row_length=512", "--remat=on")
    done = launch_plan(root, *flags, "--slots=2", f"--out={tmp_path / 'plan.json'}", before=fake)
    assert done.returncode == 3 and "bytes per chip are missing" in done.stderr, done.stderr
    (plan,) = json.loads((tmp_path / "plan.json").read_text())
    rows = {row["stage"]: row for row in plan["rows"]}
    config = runpy.run_path(str(tiny_config))["get_config"]()
    assert plan["model"] == str(tiny.folder) and list(rows) == [name for name in STAGES if name in rows]
    assert rows["controls"]["models"] == 2 and rows["controls"]["rows"] == config.tuning.control.batch_rows
    assert rows["E"]["rows"] == config.tuning.experimental.batch_rows and rows["E"]["remat"] is True
    for row in rows.values():
        assert row["compiled"] and not row["fits"] and row["shards"] == pytest.approx(row["arguments"], rel=0.01)
    parameters = sum(parameter.numel() for parameter in tiny.torch_model.parameters())
    assert rows["E"]["base"] == 4 * parameters


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(("name", "topology"), [("llama2_7b_flan2021", "v5e:4x4"), ("llama3_8b_flan2021", "v6e:4x4")])
def test_a_config_compiles_for_its_slice_as_its_formulas_say(root, name, topology, tmp_path):
    out = tmp_path / "plan.json"
    done = launch_plan(root, f"--config=configs/{name}.py", f"--topology={topology}", f"--out={out}")
    assert done.returncode == 0, done.stderr[-2000:]
    (plan,) = json.loads(out.read_text())
    assert plan["chips"] == 16 and [row["stage"] for row in plan["rows"]] == list(STAGES)
    config = runpy.run_path(str(root / f"configs/{name}.py"))["get_config"]()
    arch = architecture_from_config(PUBLISHED[published_shape(config.base)], name)
    work = count_flan(config)
    formula = PlannedRun(config, arch, config.base, work, find_hardware(topology), 512, 0.4)
    for row, stage in zip(plan["rows"], formula.stages(), strict=True):
        assert row["compiled"] and row["fits"] and row["shards"] == pytest.approx(row["arguments"], rel=0.01)
        said = stage.temporary_bytes(row["remat"])
        assert 0.5 < said / row["temporary"] < 2, (row["stage"], said, row["temporary"])
    shared = config.tokens.template == "llama2"
    assert plan["rows"][0]["attention"] == ("xla" if shared else "splash")


@pytest.mark.slow
@needs_libtpu
def test_a_slice_that_is_too_small_exits_with_code_3(root):
    flags = ("--config=configs/llama2_70b_flan2021.py", "--topology=v5e:2x4", "--stage=tune")
    done = launch_plan(root, *flags)
    assert done.returncode == 3 and "bytes per chip are missing" in done.stderr and "MISSING" in done.stdout


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("shape", ["llama2-7b", "llama3-8b", "llama2-70b"])
def test_the_forward_pass_compiles_and_fits(root, shape, tmp_path):
    topologies = "v5e:4x4,v5p:2x2x4,v6e:4x4"
    done = launch_plan(root, f"--shape={shape}", f"--topology={topologies}", f"--out={tmp_path / 'plan.json'}")
    assert done.returncode == 0, done.stderr[-2000:]
    plans = json.loads((tmp_path / "plan.json").read_text())
    assert [plan["topology"] for plan in plans] == topologies.split(",")
    for plan in plans:
        (row,) = plan["rows"]
        assert row["fits"] and plan["chips"] == 16 and row["attention"] == "splash"
        parameters = {"llama2-7b": 6_738_415_616, "llama3-8b": 8_030_261_248, "llama2-70b": 68_976_648_192}[shape]
        assert row["base"] == pytest.approx(2 * parameters / 16, rel=0.01)  # Nothing large is kept twice.
        assert row["shards"] == pytest.approx(row["arguments"], rel=0.01)


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(("topology", "slots", "fsdp"), [("v5e:4x4", 16, 4), ("v5p:2x2x4", 60, 1)])
def test_the_training_step_of_llama_2_7b_compiles_and_fits(root, topology, slots, fsdp, tmp_path):
    flags = (f"--topology={topology}", f"--slots={slots}", f"--fsdp={fsdp}", f"--out={tmp_path / 'plan.json'}")
    done = launch_plan(root, "--shape=llama2-7b", "--stage=tune", "--remat=on", *flags)
    assert done.returncode == 0, done.stderr[-2000:]
    (plan,) = json.loads((tmp_path / "plan.json").read_text())
    alone, row = plan["rows"]
    assert row["fits"] and row["attention"] == "splash" and row["models"] == slots
    assert alone["fits"] and alone["attention"] == "splash" and alone["models"] == 1
    assert alone["mesh"] == {"adapter": 1, "fsdp": 16, "tensor": 1} and alone["used"] == 1
    assert alone["base"] == pytest.approx(2 * 6_738_415_616 / 16, rel=0.01)
    assert row["base"] == pytest.approx(2 * 6_738_415_616 / fsdp, rel=0.01)
    if row["collectives"] is not None and fsdp > 1:
        # The blocks' matrices are gathered twice, the head once.
        gathers = [part for part in row["collectives"] if (part["kind"], part["axes"]) == ("all-gather", "fsdp")]
        expected = 2 * (2 * 6_476_005_376 + 32_000 * 4_096) * (fsdp - 1) / fsdp
        assert sum(part["bytes"] for part in gathers) == pytest.approx(expected, rel=0.05)
