"""A run from Python: `mossa.run` starts it, continues it, stops it politely, and returns it opened."""

import dataclasses
import logging
import os
import shutil
import signal
import threading
import types

import pytest

import mossa_jax as mossa
from mossa_jax.errors import Refusal
from mossa_jax.existing import start
from mossa_jax.log import log
from mossa_jax.run import pipeline


@pytest.fixture
def finished(tiny_run, tmp_path):
    """The configuration of the finished tiny run, and a copy of its folder."""
    folder = shutil.copytree(tiny_run[1], tmp_path / "run", ignore=shutil.ignore_patterns(".lock", ".holder"))
    return tiny_run[0], folder


def test_the_room_is_a_function_too():
    assert isinstance(mossa.run, types.ModuleType) and mossa.run.pipeline is pipeline
    with pytest.raises(Refusal, match="stale"):
        mossa.run("demo", "nowhere", stale="no")


def test_a_finished_run_is_opened_and_nothing_is_tuned(finished, capsys):
    config, folder = finished
    adapters = {path: path.stat().st_mtime_ns for path in folder.glob("adapters/*/adapter_model.safetensors")}
    (folder / "report.html").unlink()
    run = mossa.run(config, folder)
    assert isinstance(run, mossa.Run) and run.folder == folder and run.variant_name == "" and run.page.exists()
    assert {path: path.stat().st_mtime_ns for path in adapters} == adapters
    assert "report" in capsys.readouterr().err
    # What was set for the time of the run is as before.
    assert not log.handlers and log.propagate and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_configurations_of_any_kind_with_overrides_on_top(finished, tiny_config, monkeypatch):
    config, folder = finished
    monkeypatch.setattr(pipeline, "run_all", lambda run: None)
    for given in (config, str(tiny_config), tiny_config, dataclasses.asdict(config)):
        assert mossa.run(given, folder).variant_name == ""
    assert mossa.run(config, folder, **{"compare.draws": 60}).variant_name == "compare.draws=60"
    run = mossa.run(config, folder, compare={"draws": 60})
    assert run.config.compare.draws == 60 and run.variant_name == "compare.draws=60"
    assert config.compare.draws == 50  # the caller's own stays as it is


@pytest.mark.parametrize(
    ("config", "more", "code", "words"),
    [
        ("nowhere", {}, 2, "nowhere"),
        (3, {}, 2, "of type int"),
        ({"tuning": {"rang": 2}}, {}, 2, "tuning.rang"),
        (None, {"rank": 4}, 2, "rank"),
        (None, {"tuning": {"rank": "four"}}, 2, "tuning.rank"),
        (None, {"tuning.rank": 0}, 2, "config.tuning.rank=0: must be at least 1"),
        (None, {"seed": 1.5}, 2, "seed"),
        (None, {"tuning": 4}, 2, "tuning"),
        (None, {"stale": "ask"}, 2, "refuse, retrain, keep"),
        (None, {"take_from": "nowhere"}, 2, "nowhere"),
    ],
)
def test_wrong_uses_are_refused_in_one_line(tiny_run, tmp_path, config, more, code, words):
    with pytest.raises(Refusal, match=words) as caught:
        mossa.run(tiny_run[0] if config is None else config, tmp_path / "w", **more)
    assert caught.value.code == code and "\n" not in str(caught.value)
    assert not (tmp_path / "w").exists()


def test_an_interrupt_stops_politely(finished, monkeypatch):
    config, folder = finished

    def interrupted(run):
        os.kill(os.getpid(), signal.SIGINT)
        assert run.stop.asked  # and no KeyboardInterrupt in the middle of the work
        run.stop.leave_if_asked()

    monkeypatch.setattr(pipeline, "run_all", interrupted)
    with pytest.raises(Refusal, match=r"state saved; call mossa\.run") as caught:
        mossa.run(config, folder)
    assert caught.value.code == 75 and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.setattr(pipeline, "run_all", lambda run: None)
    assert mossa.run(config, folder).folder == folder  # the folder is free


def test_in_another_thread_an_interrupt_releases_the_folder(finished, monkeypatch):
    config, folder = finished
    outcome = []

    def interrupted(run):
        raise KeyboardInterrupt  # as a notebook raises it in the thread of a cell

    def cell():
        try:
            start.run(config, folder)
        except Refusal as refusal:
            outcome.append((refusal.code, str(refusal)))

    monkeypatch.setattr(pipeline, "run_all", interrupted)
    thread = threading.Thread(target=cell)
    thread.start()
    thread.join()
    assert outcome == [(75, "interrupted; what was finished is kept; " + start._AGAIN)]
    monkeypatch.setattr(pipeline, "run_all", lambda run: None)
    assert mossa.run(config, folder).folder == folder


def test_a_log_that_goes_somewhere_already_is_left_alone(finished, monkeypatch, capsys):
    config, folder = finished
    monkeypatch.setattr(pipeline, "run_all", lambda run: log.info("words of the run"))
    handler = logging.NullHandler()
    log.addHandler(handler)
    try:
        mossa.run(config, folder)
    finally:
        log.removeHandler(handler)
    assert "words of the run" not in capsys.readouterr().err
    mossa.run(config, folder)
    assert "words of the run" in capsys.readouterr().err
