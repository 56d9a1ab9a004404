"""Where time is booked: causes, devices that work meanwhile, compiling, attempts; what the stages of a run leave."""

import contextlib
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from mossa_jax.errors import Refusal
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.monitoring import goodput
from mossa_jax.monitoring import profiles as profiling
from mossa_jax.monitoring.goodput import CAUSES, Ledger
from mossa_jax.monitoring.profiles import Profile
from mossa_jax.monitoring.progress import Progress
from mossa_jax.processes.stop import Stop
from mossa_jax.run import pipeline
from mossa_jax.tuning import loop
from mossa_jax.tuning.checkpoints import Checkpoints
from mossa_jax.tuning.members import RowLength


class Clock:
    """Time that passes when a test says so."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    time = monotonic

    def work(self, seconds):
        self.now += seconds

    def compile(self, seconds, event="/jax/core/compile/backend_compile_duration"):
        self.now += seconds
        jax.monitoring.record_event_duration_secs(event, seconds)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(goodput, "time", clock)
    return clock


def opened(path):
    path.mkdir(exist_ok=True)
    return RunFolder(path)


def last(run_folder, stage):
    """The last record of a stage, whose parts must be its whole."""
    found = [one for one in run_folder.metrics() if one.get("stage") == stage]
    assert found, f"no record of {stage}"
    for one in found:
        assert set(one["lost"]) <= set(CAUSES) and min([one["useful"], *one["lost"].values()]) >= 0
        assert one["useful"] + sum(one["lost"].values()) == pytest.approx(one["wall"], abs=0.01)
    return found[-1]


def test_every_second_is_booked_once(tmp_path, clock):
    run_folder = opened(tmp_path)
    with Ledger(run_folder).stage("E"):
        clock.work(1)  # other
        with goodput.lost("load"):
            clock.work(2)
            with goodput.lost("input"), goodput.useful():  # inside of a loss: to that one
                clock.work(4)
            clock.compile(8)
        with goodput.useful("E", 0):
            clock.work(16)
            with goodput.lost("input"):
                clock.work(32)
            with goodput.useful():
                clock.work(64)
            clock.compile(128)
    record = last(run_folder, "E")
    assert record["wall"] == 255 and record["useful"] == 80
    assert record["lost"] == {"compile": 128, "load": 14, "input": 32, "other": 1}
    assert (record["label"], record["step"], record["devices"]) == ("E", 1, jax.device_count())


def test_compilations_inside_of_compilations_count_once(tmp_path, clock):
    run_folder, trace = opened(tmp_path), "/jax/core/compile/jaxpr_trace_duration"
    with Ledger(run_folder).stage("E"), goodput.useful("E", 0):
        clock.work(1)
        begin = clock.now  # tracing a function that calls two others, one of which calls a third
        clock.work(2)
        for inner in (4, 8):
            clock.compile(inner, trace)
        jax.monitoring.record_event_duration_secs(trace, 12)  # around both
        clock.work(16)
        jax.monitoring.record_event_duration_secs(trace, clock.now - begin)
        clock.compile(32)
        jax.monitoring.record_event_duration_secs("/jax/some/other_duration", 7)
        clock.work(1)
    record = last(run_folder, "E")
    assert record["lost"] == {"compile": 2 + 4 + 8 + 16 + 32} and record["useful"] == 2


def test_other_threads_and_time_outside_of_stages_count_nothing(tmp_path, clock):
    run_folder = opened(tmp_path)

    def elsewhere():
        with goodput.lost("checkpoint"):
            clock.compile(3)

    elsewhere()
    goodput.running(jnp.zeros(3))
    goodput.record()
    with Ledger(run_folder).stage("E"), goodput.useful("E", 0):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert last(run_folder, "E")["lost"] == {} and last(run_folder, "E")["useful"] == 3
    assert len(run_folder.metrics()) == 1


class Work:
    """What devices are busy with until it is said to be done."""

    def __init__(self):
        self.done = threading.Event()

    def block_until_ready(self):
        assert self.done.wait(60)
        return self


def until_idle(ledger):
    deadline = time.monotonic() + 60
    while ledger._stages["E"]._devices.free_at() == float("inf"):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_what_happens_behind_a_running_step_costs_nothing(tmp_path, clock):
    run_folder = opened(tmp_path)
    ledger, first, second = Ledger(run_folder), Work(), Work()
    with ledger.stage("E"):
        with goodput.useful("E", 0):
            clock.work(1)
        goodput.running({"loss": first})
        with goodput.lost("input"):
            clock.work(2)  # hidden
        with goodput.useful("E", 1):
            clock.work(4)
        goodput.running(second)
        first.done.set()  # the second still runs
        with goodput.lost("checkpoint"):
            clock.work(8)  # hidden
            second.done.set()
            until_idle(ledger)
            clock.work(16)  # the devices wait
        with goodput.lost("input"):
            clock.work(32)
    record = last(run_folder, "E")
    assert record["lost"] == {"input": 32, "checkpoint": 16}
    assert record["useful"] == 1 + 2 + 4 + 8


def test_work_that_breaks_down_is_no_longer_waited_for(tmp_path, clock):
    class Broken:
        def block_until_ready(self):
            raise RuntimeError("a peer is gone")

    ledger = Ledger(opened(tmp_path))
    with ledger.stage("E"):
        goodput.running(Broken())
        until_idle(ledger)


def test_a_stage_inside_of_another_stops_its_clock(tmp_path, clock):
    run_folder, ledger = opened(tmp_path), Ledger(opened(tmp_path))
    with ledger.stage("compare"), goodput.useful("compare", 0):
        clock.work(1)
        with ledger.stage("pretraining"), goodput.useful("pre-training", 0):
            clock.work(2)
        clock.work(4)
    assert last(run_folder, "pretraining")["wall"] == 2
    assert last(run_folder, "compare")["wall"] == last(run_folder, "compare")["useful"] == 5


def units(clock, label, numbers, total=9):
    """Sets up in 3 s, then 2 s a unit, with a progress line behind each."""
    clock.work(3)
    progress = Progress(label, total)
    for number in numbers:
        with goodput.useful(label, number):
            clock.work(2)
        progress.line(number + 1)


def test_what_an_interruption_costs_is_lost_to_restart(tmp_path, clock):
    run_folder = opened(tmp_path)
    with Ledger(run_folder).stage("E"):
        units(clock, "E", range(5))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines[:5]) + "\n")  # killed: only progress lines left records
    clock.work(100)
    with Ledger(run_folder).stage("E"):  # from a checkpoint of step 3
        units(clock, "E", range(3, 7))
    record = last(run_folder, "E")
    assert record["wall"] == 11 and record["lost"] == {"restart": 3 + 2 * 2} and record["useful"] == 2 * 2
    clock.work(50)
    with Ledger(run_folder).stage("E"):  # another sequence of the same stage has been nowhere yet
        units(clock, "E again", range(2))
    assert last(run_folder, "E")["lost"] == {"restart": 3}
    table = goodput.times([{"model": "tuned", "step": 1, "loss": 1.0}, *run_folder.metrics()])
    (row,) = table.to_dict("records")
    assert (row["stage"], row["attempts"], row["wall"], row["useful"]) == ("E", 3, 13 + 11 + 7, 10 + 4 + 4)
    assert row["restart"] == 10 and row["other"] == 3
    assert row["useful"] + sum(row[cause] for cause in CAUSES) == pytest.approx(row["wall"])
    assert row["device_wall"] == row["wall"] * jax.device_count()
    assert table.attrs["outside"] == 150


def test_a_stage_goes_on_counting_in_one_attempt_and_nothing_to_do_leaves_nothing(tmp_path, clock):
    run_folder = opened(tmp_path)
    ledger = Ledger(run_folder)
    for _ in range(2):
        with ledger.stage("data"):
            units(clock, "data", range(2))
        with ledger.stage("score"):
            clock.work(1)
    record = last(run_folder, "data")
    assert record["wall"] == 14 and record["useful"] == 8 and "restart" not in record["lost"]
    assert {one["stage"] for one in run_folder.metrics()} == {"data"}


def test_a_breakdown_is_recorded_to_its_moment(tmp_path, clock):
    run_folder = opened(tmp_path)
    with pytest.raises(RuntimeError), Ledger(run_folder).stage("E"):
        with goodput.useful("E", 0):
            clock.work(1)
        with goodput.useful("E", 1), goodput.lost("input"):
            clock.work(2)
            raise RuntimeError
    record = last(run_folder, "E")
    assert record["wall"] == 3 and record["lost"] == {"input": 2} and record["step"] == 1


def test_processes_that_do_not_write_leave_nothing(tmp_path, clock):
    run_folder = RunFolder(tmp_path, writer=False)
    with Ledger(run_folder).stage("E"):
        units(clock, "E", range(2))
    assert not list(tmp_path.iterdir())


class SlowCheckpoints(Checkpoints):
    def save(self, step, state):
        time.sleep(0.1)
        super().save(step, state)


def train(folder, total, slow_input=0.0, kind=Checkpoints, until=None, profile=None):
    """Some steps of a toy state in a stage, each a little slow on the device; breaks down before step `until`."""

    def slow(x):
        time.sleep(0.02)
        return x

    @jax.jit
    def update(state):
        new = jax.pure_callback(slow, jax.ShapeDtypeStruct((), jnp.float32), state["x"]) + 1
        return {"x": new}, {"loss": new}

    def step(state, number):
        if number == until:
            raise RuntimeError("power cut")
        with goodput.lost("input"):
            time.sleep(slow_input)
        return update(state)

    run_folder = opened(folder)
    with Ledger(run_folder, profile).stage("E"):
        state = loop.train(
            "E", total, {"x": jnp.float32(0)}, step, lambda done, metrics: float(metrics["loss"]), lambda: "",
            checkpoints=kind(folder / "checkpoints"), checkpoint_every=4, log_every=1, stop=Stop(),
        )  # fmt: skip
        assert float(state["x"]) == total
    return last(run_folder, "E")


def test_slow_input_and_slow_checkpoints_show_by_name(tmp_path):
    plain = train(tmp_path / "plain", 12)
    assert plain["useful"] > 12 * 0.02 and plain["lost"]["compile"] > 0
    slow = train(tmp_path / "input", 12, slow_input=0.2)
    # Twelve times 0.2 s, less what of it lay behind a step; in the loop all else is small against that.
    assert slow["lost"]["input"] > 12 * 0.1 > 5 * plain["lost"].get("input", 0)
    slow = train(tmp_path / "checkpoint", 12, kind=SlowCheckpoints)
    assert slow["lost"]["checkpoint"] > plain["lost"]["checkpoint"]
    assert slow["lost"]["checkpoint"] > 0.25 and slow["lost"].get("input", 0) < 0.25


def test_training_that_broke_down_goes_on_with_a_restart(tmp_path):
    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path, 12, until=7)
    broken = last(RunFolder(tmp_path), "E")
    assert broken["step"] == 7 and "restart" not in broken["lost"]
    resumed = train(tmp_path, 12)
    assert resumed["step"] == 12 and resumed["attempt"] > broken["attempt"]
    assert resumed["lost"]["restart"] > 3 * 0.02  # steps 4 to 6 once more
    assert resumed["useful"] > 4 * 0.02
    table = goodput.times(RunFolder(tmp_path).metrics())
    assert table.attempts.tolist() == [2] and table.restart.tolist() == [resumed["lost"]["restart"]]


STAGES = ["data", "E", "controls", "score", "compare", "report"]


def test_each_stage_of_a_run_has_its_time_in_the_file_and_on_the_page(tiny_run):
    _, workdir = tiny_run
    run_folder = RunFolder(workdir)
    table = goodput.times(run_folder.metrics())
    assert table.stage.tolist() == STAGES and set(table.attempts) == {1}
    for stage in STAGES:
        assert last(run_folder, stage)["useful"] > 0
    found = table.set_index("stage")
    assert (found.loc[["E", "controls", "score", "compare"], "compile"] > 0).all()
    assert found.loc["E", "load"] > 0 and (found.loc[["E", "controls"], ["export", "checkpoint"]] > 0).all().all()
    assert not found["restart"].any() and not found["profile"].any()
    section = (workdir / "report.html").read_text().split('<section id="section-time">')[1].split("</section>")[0]
    for stage in [*STAGES, "all"]:
        assert f'<th scope="row">{stage}</th>' in section
    assert "compile: tracing" in section and "restart" not in section


def test_a_control_that_is_trained_once_more_waits_for_its_rows(tiny_run, tmp_path, monkeypatch):
    """The loop of a real run, with a batch that takes long: through the stage to the page's figures."""
    config, workdir = tiny_run
    folder = shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(folder / "adapters/last_word")
    stack, steps = RowLength.stack, []

    def slow(*arguments):
        steps.append(time.sleep(0.1))
        return stack(*arguments)

    monkeypatch.setattr(RowLength, "stack", slow)
    run_folder = pipeline.open_run(config, str(folder))
    before = len(run_folder.metrics())
    try:
        pipeline.tune(pipeline.Run(config, run_folder, Stop()))
    finally:
        run_folder.close()
    record = last(run_folder, "controls")
    assert record["label"] == "controls 2" and record["step"] == len(steps) > 0
    assert record["lost"]["restart"] > 0 and record["lost"]["input"] > 0.05 * len(steps)
    new = run_folder.metrics()[before:]
    data = [one for one in new if one.get("stage") == "data"][-1]
    assert data["lost"].keys() == {"restart"}  # read once more
    assert not [one for one in new if one.get("stage") in ("E", "score")]  # done already


@pytest.mark.parametrize("text", ["x", "0", "-1", "5:", ":5", "5:0", "0:5", "1:2:3", "2.5"])
def test_a_profile_that_means_nothing_is_refused(text):
    with pytest.raises(Refusal, match=f"--profile={text}: .* FIRST:COUNT") as caught:
        Profile.parse(text)
    assert caught.value.code == 2


def test_which_steps_a_profile_means(monkeypatch, tmp_path):
    libraries = {}
    monkeypatch.setattr(profiling.importlib.util, "find_spec", libraries.get)
    assert Profile.parse("") is None
    assert Profile.parse("3") == Profile(10, 3) and Profile.parse("25:4") == Profile(25, 4)
    assert [Profile(2, 3).of(stage, tmp_path) is not None for stage in STAGES] == [0, 1, 1, 0, 1, 0]
    libraries["libtpu"] = True
    with jax_platforms("cpu"):
        assert Profile.parse("3")
    with jax_platforms(None), pytest.raises(Refusal, match=r"--profile=3: libtpu .* set JAX_PLATFORMS=cpu") as caught:
        Profile.parse("3")
    assert caught.value.code == 2


@contextlib.contextmanager
def jax_platforms(value):
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", value)
    try:
        yield
    finally:
        jax.config.update("jax_platforms", before)


STEPS = """
import pathlib, sys
from mossa_jax.monitoring.profiles import Profile
from tests.integration.monitoring.test_goodput import train
print(train(pathlib.Path(sys.argv[1]), 9, profile=Profile.parse("3:2"))["lost"]["profile"] > 0)
"""


def traced_steps(folder):
    """Numbers of the steps in each trace, the first one first."""
    found = []
    for path in sorted(folder.rglob("perfetto_trace.json.gz")):
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        found.append(sorted({int(event["args"]["step_num"]) for event in events if event.get("name") == "step"}))
    return found


def traced(root):
    """The environment of a process that may trace: without libtpu, which has no tracer on this machine."""
    return os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{root}:{root / 'tests'}"}


def test_a_trace_holds_the_steps_asked_for(root, tmp_path):
    command = [sys.executable, "-c", STEPS, str(tmp_path / "run")]
    done = subprocess.run(command, cwd=root, env=traced(root), capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "True", done.stderr[-2000:]
    folder = tmp_path / "run/profile/E/0"
    assert traced_steps(folder) == [[3, 4]]
    (path,) = folder.rglob("*.xplane.pb")
    assert path.stat().st_size > 0


def test_a_trace_that_cannot_be_made_is_one_warning(tmp_path, monkeypatch, caplog):
    def broken(*arguments, **options):
        raise RuntimeError("no\n tracer")

    monkeypatch.setattr(jax.profiler, "start_trace", broken)
    train(tmp_path / "broken", 6, profile=Profile(2, 1))
    train(tmp_path / "short", 2, profile=Profile(2 + 1, 1))
    first, second = (one.getMessage() for one in caplog.records if one.levelname == "WARNING")
    assert first == "E: no trace: RuntimeError: no tracer"
    assert second == "E: no trace: --profile begins after step 3, but this attempt took 2 steps"


@pytest.mark.slow
def test_a_run_that_is_killed_says_what_that_cost(root, tiny_config, tmp_path):
    """Killed among the controls; the same command goes on, with a trace of the controls and of a comparison."""
    workdir = tmp_path / "run"
    command = [
        sys.executable, "-m", "launch.run", f"--config={tiny_config}", f"--workdir={workdir}", "--profile=3:2",
        "--config.tuning.control.epochs=60", "--config.tuning.checkpoint_every=20",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=root, env=traced(root), stderr=subprocess.DEVNULL)
    try:
        run_folder, deadline = RunFolder(workdir), time.monotonic() + 300
        while not [one for one in run_folder.metrics() if one.get("stage") == "controls" and one["step"] >= 50]:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    killed = last(run_folder, "controls")
    done = subprocess.run(command, cwd=root, env=traced(root), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    resumed = last(run_folder, "controls")
    assert resumed["attempt"] > killed["attempt"] and resumed["step"] > killed["step"] >= 50
    # Loading, compiling and restoring once more are of the restart, too.
    assert resumed["lost"]["restart"] > 0 and not {"load", "compile", "input"} & {
        cause for cause, seconds in resumed["lost"].items() if seconds > resumed["lost"]["restart"]
    }
    table = goodput.times(run_folder.metrics()).set_index("stage")
    assert table.attempts.to_dict() == {"data": 2, "E": 1, "controls": 2, "score": 1, "compare": 1, "report": 1}
    assert table.loc["controls", "restart"] == resumed["lost"]["restart"]
    section = (workdir / "report.html").read_text().split('<section id="section-time">')[1].split("</section>")[0]
    assert "restart: set-up" in section and "profile: writing traces" in section
    before, (first, second) = traced_steps(workdir / "profile/controls/0")
    assert before == [3, 4] and second == first + 1 and first % 20 == 3  # counted since it went on
    assert list((workdir / "profile/compare/0").rglob("*.xplane.pb"))
    assert "E: no trace" not in done.stderr
