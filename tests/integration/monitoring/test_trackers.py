"""Mirrors of metrics.jsonl: what they are given, and that none of them can stop a run."""

import json
import logging
import sys

import jax
import pytest

from mossa_jax import config as config_lib
from mossa_jax.config import Config
from mossa_jax.errors import Refusal
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.monitoring import trackers as tracking
from mossa_jax.run import pipeline

RECORDS = [
    {"model": "tuned", "step": 1, "loss": 4.25},
    {"model": "nli/rte 1", "step": 1, "loss": 3.5, "skipped": 2},
    {"model": "nli/rte 1", "step": 2, "loss": None, "skipped": 3},
    {"model": "tuned", "step": 2, "loss": 3.125},
    {"model": "tuned", "step": 7, "loss": 2.0},
]
TIMES = {
    "stage": "E", "attempt": 1.5, "time": 9.5, "label": "E", "step": 4, "devices": 1, "wall": 8.0, "useful": 6.5,
    "lost": {"compile": 1.5},
}  # fmt: skip

FAKE = """
import json
def say(**what):
    with open({said!r}, "a") as file:
        file.write(json.dumps(what) + "\\n")
class Run:
    def define_metric(self, name, step_metric): say(metric=name, step=step_metric)
    def log(self, figures): {log}
    def finish(self): say(finished=True)
def init(**options):
    {init}
    say(**options)
    return Run()
"""


@pytest.fixture
def fake_wandb(tmp_path, monkeypatch):
    """Writes a package `wandb` whose calls land in a file; returns what they were."""

    def write(log="say(figures=figures)", init="pass"):
        said = str(tmp_path / "said.jsonl")  # its own: a thread of a test before may still be talking
        (tmp_path / "packages").mkdir()
        (tmp_path / "packages/wandb.py").write_text(FAKE.format(log=log, init=init, said=said))
        monkeypatch.syspath_prepend(tmp_path / "packages")
        monkeypatch.delitem(sys.modules, "wandb", raising=False)

    write.said = lambda: [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    return write


def run(folder, *names, records=RECORDS, **changes):
    """A run that logs these records and ends."""
    run_folder = pipeline.open_run(Config(name="title", track=names, **changes), str(folder))
    for record in records:
        run_folder.append_metrics(record)
    run_folder.close()
    return run_folder


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_tensorboard_reads_back_every_figure(tmp_path, caplog):
    pytest.importorskip("tensorboardX")
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run_folder = run(tmp_path / "run", "tensorboard", records=RECORDS[:3])
    assert run_folder.metrics() == RECORDS[:3] and not warnings(caplog)
    # Gone on with: one more file in the same place.
    run(tmp_path / "run", "tensorboard", records=[*RECORDS[3:], TIMES])
    found = reader.EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    scalars = {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    assert scalars == {
        "loss/tuned": [(1, 4.25), (2, 3.125), (7, 2.0)],
        "loss/nli/rte 1": [(1, 3.5)],
        "skipped/nli/rte 1": [(1, 2), (2, 3)],
        "devices/stage E": [(4, 1)],
        "wall/stage E": [(4, 8.0)],
        "useful/stage E": [(4, 6.5)],
        "lost compile/stage E": [(4, 1.5)],
    }


def test_wandb_is_told_each_models_own_steps_and_the_same_run_again(tmp_path, fake_wandb, caplog):
    fake_wandb()
    run(tmp_path / "run", "wandb", records=RECORDS[:3])
    run(tmp_path / "run", "wandb", records=RECORDS[3:])
    run(tmp_path / "other", "wandb", records=[TIMES])
    said = fake_wandb.said()
    first, second, third = (one for one in said if "project" in one)
    assert first["project"] == "mossa_jax" and first["name"] == "title" and first["resume"] == "allow"
    assert first["id"] == second["id"] != third["id"] and first["dir"] == str(tmp_path / "run")
    assert first["config"]["tuning"]["rank"] == 8
    assert [one["figures"] for one in said if "figures" in one] == [
        {"step/tuned": 1, "loss/tuned": 4.25},
        {"step/nli/rte 1": 1, "loss/nli/rte 1": 3.5, "skipped/nli/rte 1": 2},
        {"step/nli/rte 1": 2, "skipped/nli/rte 1": 3},
        {"step/tuned": 2, "loss/tuned": 3.125},
        {"step/tuned": 7, "loss/tuned": 2.0},
        {
            "step/stage E": 4, "devices/stage E": 1, "wall/stage E": 8.0, "useful/stage E": 6.5,
            "lost compile/stage E": 1.5,
        },
    ]  # fmt: skip
    axes = [(one["metric"], one["step"]) for one in said[: said.index({"finished": True})] if "metric" in one]
    assert sorted(axes) == [
        ("loss/nli/rte 1", "step/nli/rte 1"), ("loss/tuned", "step/tuned"), ("skipped/nli/rte 1", "step/nli/rte 1"),
    ]  # fmt: skip
    assert sum("finished" in one for one in said) == 3 and not warnings(caplog)


@pytest.mark.parametrize(
    ("slip", "words"),
    [
        ({"log": "raise ConnectionError('no\\n net')"}, "ConnectionError: no net"),
        ({"init": "raise SystemExit('no key')"}, "SystemExit: no key"),
        ({"init": "import threading; threading.Event().wait()"}, "did not finish"),
        ({"log": "import threading; threading.Event().wait()"}, "does not keep up"),
    ],
)
def test_a_tracker_that_fails_or_hangs_costs_one_warning(tmp_path, fake_wandb, caplog, monkeypatch, slip, words):
    caplog.set_level(logging.INFO, "mossa_jax")
    monkeypatch.setattr(tracking, "_PATIENCE", 0.2)
    monkeypatch.setattr(tracking, "_QUEUED", 3 if "keep up" in words else 100)
    fake_wandb(**slip)
    many = [{"model": "tuned", "step": step, "loss": 1.0} for step in range(1, 31)]
    run_folder = run(tmp_path / "run", "wandb", records=many)
    assert run_folder.metrics() == many
    (warning,) = warnings(caplog)
    assert "tracker wandb" in warning and words in warning and "\n" not in warning


def test_a_missing_package_is_refused_at_the_door(tmp_path, monkeypatch):
    monkeypatch.setitem(tracking._PACKAGES, "wandb", "no_such_package")
    with pytest.raises(Refusal, match=r"config.track='wandb' .* pip install no_such_package") as caught:
        run(tmp_path / "run", "wandb")
    assert caught.value.code == 2 and not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused():
    with pytest.raises(Refusal, match=r"config.track=\('tensorbord',\): must be some of tensorboard, wandb") as caught:
        config_lib.check(Config(track=("tensorbord",)))
    assert caught.value.code == 2


def test_only_process_zero_tracks(tmp_path, fake_wandb, monkeypatch):
    fake_wandb()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    run(tmp_path / "run", "wandb")
    assert not (tmp_path / "said.jsonl").exists()
    silent, heard = RunFolder(tmp_path / "run", writer=False), []
    silent.trackers = heard.append
    silent.append_metrics(RECORDS[0])
    assert not heard


def test_another_tracker_is_no_other_run(tmp_path, fake_wandb):
    fake_wandb()
    run(tmp_path / "run", records=RECORDS[:1])
    run(tmp_path / "run", "wandb", records=RECORDS[1:2])
    assert [one["figures"]["step/nli/rte 1"] for one in fake_wandb.said() if "figures" in one] == [1]
    with pytest.raises(Refusal, match="seed was 0, now 1"):
        run(tmp_path / "run", seed=1)
