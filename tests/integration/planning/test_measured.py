"""A plan from the measured times of a pilot: closed forms on a made-up pilot, and what is refused."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import pytest

from mossa_jax.config import check
from mossa_jax.errors import Refusal
from mossa_jax.llama.architecture import architecture_from_config
from mossa_jax.llama.published import PUBLISHED, published_shape
from mossa_jax.planning.extrapolate import MARGIN, OTHER_CHIP, extrapolate
from mossa_jax.planning.forecast import plan_run
from mossa_jax.planning.hardware import find_hardware, hardware_by_formula
from mossa_jax.planning.measured import GROUPS, MIN_STEPS, read_measured
from mossa_jax.planning.measured_table import format_brief, format_forecast
from mossa_jax.planning.prices import PRICES, list_price, price_lines
from mossa_jax.planning.stages import STAGES, PlannedRun
from mossa_jax.planning.workload import count_work
from tests.conftest import load_config

ANSWERS, USE, STEPS = 8, 0.4, 40
# How many times as long as by formula the stages of the pilot took.
FACTORS = {"E": 2.0, "controls": 3.0, "score": 5.0, "compare": 0.5}
LOST = {"compile": 30.0, "load": 2.0, "export": 1.0, "checkpoint": 3.0, "input": 4.0, "other": 6.0}


@pytest.fixture(scope="module")
def pilot(tiny_config, tmp_path_factory):
    """A pilot of the tiny run on a v5e chip that took `FACTORS` times as long as by formula: its run folder."""
    folder = tmp_path_factory.mktemp("pilot") / "run"
    config = load_config(tiny_config)
    tasks = {f"task{index}": {"train": {"rows": 24}, "test": {"rows": 12, "distinct": 12}} for index in range(3)}
    write(folder / "config.json", dataclasses.asdict(config) | {"results_format": 3})
    write(folder / "environment.json", {"platform": "tpu", "device": "TPU v5 lite", "devices": 1, "processes": 1})
    write(folder / "data.json", {"tasks": tasks})
    models = {"tuned": 72} | dict.fromkeys(tasks, 24) | {"task0.seed1": 24, "task0.twin": 24}
    for name, rows in models.items():
        record = {"model": name, "rows": rows, "packed_rows": rows, "steps": STEPS, "tasks": list(tasks)}
        write(folder / f"adapters/{name}/mossa.json", record)
    # The formula's seconds are read from the pilot itself, with all times one second; then they are written in.
    times = dict.fromkeys(GROUPS, 1.0)
    write_metrics(folder, config, times)
    rows = {name: stage.formula_seconds for name, stage in read_measured(str(folder), ANSWERS, USE).stages.items()}
    write_metrics(folder, config, {name: FACTORS[name] * seconds for name, seconds in rows.items()})
    return folder


def write(path, record):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def write_metrics(folder, config, useful, devices=1):
    slots = min(config.tuning.slots, 5)
    units = {"E": STEPS, "controls": STEPS * -(-5 // slots), "score": 3, "compare": 3}
    records = []
    for stage, seconds in useful.items():
        for part in (0.5, 1.0):
            done = int(units[stage] * part)
            lost = {cause: part * spent / len(useful) for cause, spent in LOST.items()}
            wall = part * seconds + sum(lost.values())
            records.append(
                {"stage": stage, "attempt": 1.0, "time": 2.0, "label": stage, "step": done, "devices": devices}
                | {"wall": wall, "useful": part * seconds, "lost": lost}
            )
    for stage, seconds in (("data", 3.0), ("map", 7.0), ("report", 9.0)):
        records.append(
            {"stage": stage, "attempt": 1.0, "time": 2.0, "label": "", "step": 0, "devices": devices}
            | {"wall": seconds, "useful": seconds, "lost": {}}
        )
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(record) for record in records))


def forecast(pilot, changes=None, topology="v5e:1x1", price=2.0):
    """The forecast of the pilot's own run, or of one that differs in fields of the plan."""
    measured = read_measured(str(pilot), ANSWERS, USE)
    run = dataclasses.replace(measured.planned, hardware=hardware_by_formula(topology), **(changes or {}))
    plan = plan_run(run, STAGES, price, compile_programs=False)
    plan["measured"] = extrapolate(measured, run, plan, price)
    return plan


def by_stage(plan):
    return {row["stage"]: row for row in plan["measured"]["rows"]}


def test_a_run_like_the_pilot_takes_as_long(pilot):
    plan = forecast(pilot)
    rows = by_stage(plan)
    for name, factor in FACTORS.items():
        assert rows[name]["factor"] == pytest.approx(factor)
        assert rows[name]["hours"] == pytest.approx(factor * rows[name]["formula_hours"])
        assert rows[name]["hours"] == pytest.approx(rows[name]["seconds"] / 3600)
        assert rows[name]["low"] == pytest.approx(rows[name]["hours"] * (1 - MARGIN))
        assert rows[name]["high"] == pytest.approx(rows[name]["hours"] * (1 + MARGIN))
    kept = {"compiling": 30, "loading": 2, "saving": 4, "data": 7, "analyses": 7, "report": 9}
    for name, seconds in kept.items():
        assert rows[name]["hours"] == pytest.approx(seconds / 3600), name
    total = plan["measured"]
    assert total["hours"] == pytest.approx(sum(row["hours"] for row in rows.values()))
    assert total["price"] == pytest.approx([2 * total[name] for name in ("hours", "low", "high")])


def test_the_share_of_the_peak_is_what_the_factor_says(pilot):
    """A plan by formula takes USE of the peak, so a stage that takes twice as long has half of it."""
    stages = read_measured(str(pilot), ANSWERS, USE).stages
    assert stages["E"].share == pytest.approx(USE / 2) and stages["controls"].share <= USE / 3 * 1.001


def test_twice_the_steps_and_tasks_take_twice_as_long_and_programs_stay(pilot):
    work = read_measured(str(pilot), ANSWERS, USE).planned.work
    more = dataclasses.replace(
        work, tasks=2 * work.tasks, controls=2 * work.controls, repeated=2 * work.repeated, mixture=2 * work.mixture,
        steps_taken={"E": (2 * STEPS,), "controls": work.steps_taken["controls"]},
    )  # fmt: skip
    once, twice = (by_stage(forecast(pilot, changes)) for changes in (None, {"work": more}))
    ratios = {name: twice[name]["hours"] / once[name]["hours"] for name in once}
    for name in ("E", "score", "compare", "data", "analyses", "report"):
        assert ratios[name] == pytest.approx(2), name
    for name in ("controls", "compiling", "loading", "the rest"):
        assert ratios[name] == pytest.approx(1), name
    assert ratios["saving"] == pytest.approx((2 * 5 + 1) / 6)


def test_another_chip_of_the_same_kind_is_scaled_by_its_peak_and_warned_of(pilot):
    here, there = by_stage(forecast(pilot)), forecast(pilot, topology="v5p:1x1x1")
    rows = by_stage(there)
    assert here["E"]["hours"] / rows["E"]["hours"] == pytest.approx(459 / 197)
    assert rows["E"]["high"] == pytest.approx(rows["E"]["hours"] * OTHER_CHIP * (1 + MARGIN))
    (warning,) = there["measured"]["warnings"]
    assert "measured on v5e:1x1, planned for v5p:1x1x1" in warning and warning in format_forecast(there)


def test_a_larger_model_may_fill_the_chip_better(pilot):
    """The lower end then rests on the share that formulas assume, where the pilot reached less."""
    arch = read_measured(str(pilot), ANSWERS, USE).planned.arch
    rows = by_stage(forecast(pilot, {"arch": dataclasses.replace(arch, layers=2 * arch.layers)}))
    assert rows["E"]["low"] == pytest.approx(rows["E"]["formula_hours"] * (1 - MARGIN))
    assert rows["compare"]["low"] == pytest.approx(rows["compare"]["hours"] * (1 - MARGIN))  # it reached more


def test_the_table_shows_both_and_says_what_it_rests_on(pilot):
    plan = forecast(pilot)
    plan["config"] = "big"
    text = format_forecast(plan)
    assert "AS MEASURED by" in text and "hours by formula" in text and "hours as measured" in text
    assert "It is an assumption, not an interval." in text and "money: " in text
    assert all(f"| {name} " in text for name in (*FACTORS, "compiling", "together"))
    assert "as measured" in format_brief(plan) and format_brief(plan).count("\n") == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"environment.json": {"platform": "tpu", "device": "TPU v3", "devices": 1}},
            "'TPU v3', which plans do not know",
        ),
        ({"environment.json": None}, "it has no environment.json"),
        ({"data.json": None}, "it has no data.json"),
        ({"config.json": "{"}, "config.json is not the JSON of a run"),
        ({"data.json": {"tasks": {"another": {"test": {"distinct": 1}}}}}, "not all its models are tuned"),
        ({"metrics.jsonl": ""}, "stage E has done 0 of 40 steps"),
        ({"adapters/tuned/mossa.json": 80}, "stage E has done 40 of 80 steps"),
        ({"adapters/tuned/mossa.json": 19}, "E took 19 steps, too few"),
    ],
)
def test_what_is_no_finished_pilot_is_refused_in_a_line(pilot, tmp_path, change, words):
    folder = shutil.copytree(pilot, tmp_path / "run")
    for name, value in change.items():
        if value is None:
            (folder / name).unlink()
        elif isinstance(value, int):
            write(folder / name, json.loads((folder / name).read_text()) | {"steps": value})
        elif isinstance(value, str):
            (folder / name).write_text(value)
        else:
            write(folder / name, value)
    with pytest.raises(Refusal, match=words) as caught:
        read_measured(str(folder), ANSWERS, USE)
    assert caught.value.code == 3 and "--measured=" in str(caught.value)


def test_attempts_on_different_numbers_of_devices_are_refused(pilot, tiny_config, tmp_path):
    folder = shutil.copytree(pilot, tmp_path / "run")
    more = (
        (folder / "metrics.jsonl").read_text()
        + "\n"
        + (folder / "metrics.jsonl")
        .read_text()
        .replace('"attempt": 1.0', '"attempt": 3.0')
        .replace('"devices": 1', '"devices": 4')
    )
    (folder / "metrics.jsonl").write_text(more)
    with pytest.raises(Refusal, match="its attempts had 1, 4 devices"):
        read_measured(str(folder), ANSWERS, USE)


@pytest.mark.parametrize("topology", ["h100:1", "cpu:1"])
def test_another_kind_of_device_is_refused(pilot, topology):
    with pytest.raises(Refusal, match="says nothing about") as caught:
        forecast(pilot, topology=topology)
    assert caught.value.code == 3


def test_hardware_by_formula_needs_no_compiler_and_equals_the_compiled_one():
    slice_, type_ = hardware_by_formula("v5e:4x4"), hardware_by_formula("v5litepod-16")
    assert slice_ == type_ and slice_.chips == 16 and not slice_.devices and slice_.is_tpu
    assert hardware_by_formula("v5p-32").name == "v5p:2x2x4" and hardware_by_formula("v6e-1").chips == 1
    cluster = hardware_by_formula("h100:8x2")
    compiled = find_hardware("h100:8x2")
    assert (cluster.chips, cluster.node, cluster.peak, cluster.memory) == (16, 8, compiled.peak, compiled.memory)
    for name in ("v5e", "v5e:4", "v9:4x4", "h100:8x2x2", "cpu:2x2", "v5p-3", "v5litepod-7", "cpu:0", ""):
        with pytest.raises(Refusal, match="unknown"):
            hardware_by_formula(name)


def test_prices_are_a_table_that_scripts_read():
    assert [line.split()[:2] for line in price_lines().splitlines()] == [[k, f"{v:.2f}"] for k, v in PRICES.items()]
    assert list_price("v5e:4x4") == PRICES["v5e"] and list_price("h100:8") == 0


# Imports once, then runs every command line in a forked child.
HARNESS = """
import json, os, sys
import launch.flags, launch.plan, mossa_jax.planning.suggest, mossa_jax.planning.extrapolate
for number, words in enumerate(json.loads(sys.argv[1])):
    child = os.fork()
    if not child:
        for stream in (1, 2):
            os.dup2(os.open(f"{sys.argv[2]}/{number}.{stream}", os.O_WRONLY | os.O_CREAT), stream)
        sys.argv = ["launch.plan", *words]
        try:
            launch.flags.run(launch.plan.main)
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code or 0)
        os._exit(99)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_wrong_uses_of_the_flags_are_one_line(root, pilot, tiny_config, tmp_path):
    config, measured = f"--config={tiny_config}", f"--measured={pilot}"
    cases = [
        ([config, f"--measured={tmp_path}/none"], 2, "no such folder"),
        ([config, f"--measured={tmp_path}"], 2, "it has no config.json"),
        ([config, f"--measured={tiny_config}"], 2, "no such folder"),
        ([config, "--measured="], 2, "not a path"),
        ([config, "--measured=nope://a/b"], 2, "--measured=nope://a/b"),
        ([measured], 2, "give --config"),
        ([config, measured, "--stage=tune"], 2, "leave --stage=tune out"),
        ([config, measured, "--topology=h100:1", "--nocompile"], 3, "says nothing about h100:1"),
        ([config, "--topology=cpu:1"], 2, "how fast a CPU is only --measured=RUN says"),
        ([config, measured, "--topology=v9:1", "--nocompile"], 2, "--topology=v9:1 is unknown"),
        ([config, "--topology=v5e:4", "--nocompile"], 2, "--topology=v5e:4 is unknown"),
        ([config, "--price_per_chip_hour=-1"], 2, "price_per_chip_hour"),
        ([config, "--compile=perhaps"], 2, "compile"),
        ([config, "--brief=2"], 2, "brief"),
        (["--prices=dear"], 2, "prices"),
    ]
    command = [sys.executable, "-c", HARNESS, json.dumps([words for words, _, _ in cases]), str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    for number, (code, (words, wanted, said)) in enumerate(zip(done.stdout.split(), cases, strict=True)):
        lines = (tmp_path / f"{number}.2").read_text().splitlines(keepends=True)
        error = "".join(line for line in lines if not re.match(r"\d\d:\d\d:\d\d ", line))  # progress till then
        assert int(code) == wanted and error.startswith("error: ") and error.count("\n") == 1, (words, error)
        assert said in error, (words, error)
        assert not (tmp_path / f"{number}.1").read_text()


def test_the_plan_of_a_measured_run_has_the_forecast_in_words_and_in_json(root, pilot, tiny_config, tmp_path):
    """Through the command, and as one line."""
    flags = [f"--config={tiny_config}", f"--measured={pilot}", "--topology=v5e:1x1", "--nocompile", "--brief"]
    command = [sys.executable, "-m", "launch.plan", *flags, "--answers=8", f"--out={tmp_path}/plan.json"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and "as measured" in done.stdout and "in money" in done.stdout
    (plan,) = json.loads((tmp_path / "plan.json").read_text())
    assert plan["measured"]["pilot"]["hardware"] == "v5e:1x1" and plan["price"] > 0
    assert {row["stage"] for row in plan["measured"]["rows"]} >= set(GROUPS)


def test_a_finished_run_on_a_cpu_measures_a_plan_on_it(tiny_run):
    """The real files of a run; its steps are too few, which is the only thing that is refused."""
    with pytest.raises(Refusal, match=r"E took \d+ steps, too few for a speed"):
        read_measured(str(tiny_run[1]), ANSWERS, USE)


def test_the_pilot_fits_one_chip_and_costs_less_than_its_limit(root):
    """As launch/README.md promises: eight tasks of four clusters, steps enough for a speed, a part of a dollar."""
    config = load_config(root / "configs/pilot.py")
    check(config)
    shape = published_shape(config.base)
    arch = architecture_from_config(PUBLISHED[shape], shape)
    work = count_work(config, example_ids=122, prompts=0, has_tokenizer=False)
    run = PlannedRun(config, arch, config.base, work, hardware_by_formula("v5litepod-1"), 512, 0.4)
    plan = plan_run(run, STAGES, list_price("v5e"), compile_programs=False)
    assert plan["fits"] and plan["price"] < 0.2 and work.tasks == 8 and work.repeated == 4
    assert all(row["runs"] >= 10 * MIN_STEPS for row in plan["rows"] if row["stage"] in ("E", "controls"))
    # Half an hour of compiling, reading and analyses comes on top.
    assert plan["price"] + 0.5 * list_price("v5e") < 1
