"""The thread that compiles ahead: in order, out of the way of the stage itself, and never a reason to fail."""

import threading
import time

import jax
import pytest

from mossa_jax.run import ahead
from mossa_jax.run.ahead import Ahead


@pytest.fixture(autouse=True)
def on_a_tpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")


def wait_until(holds):
    until = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_programs_are_compiled_stage_by_stage_in_another_thread():
    thread, done = Ahead(), []
    gate = threading.Event()
    thread.add("E", lambda: [gate.wait, lambda: done.append(threading.current_thread().name)])
    thread.add("score", lambda: [lambda: done.append("score 1"), lambda: done.append("score 2")])
    assert done == []
    gate.set()
    wait_until(lambda: len(done) == 3)
    assert done == ["ahead", "score 1", "score 2"]
    thread.close()


def test_a_stage_that_begins_waits_for_its_own_program_and_drops_what_is_not_begun():
    thread, done = Ahead(), []
    begun, gate = threading.Event(), threading.Event()
    thread.add("E", lambda: [begun.set, gate.wait, lambda: done.append("E")])
    thread.add("controls", lambda: [lambda: done.append("controls")])
    begun.wait()
    thread.take_over("controls")  # at once
    threading.Timer(0.1, gate.set).start()
    thread.take_over("E")
    assert done == ["E"] and not thread.is_working
    thread.add("score", lambda: [lambda: done.append("score")])
    wait_until(lambda: done == ["E", "score"])
    thread.close()


def test_a_program_that_fails_ends_its_stage_and_no_other():
    def fails():
        raise RuntimeError("out of memory")

    def fails_at_once():
        raise ValueError("no shapes")

    thread, done = Ahead(), []
    thread.add("E", lambda: [fails, lambda: done.append("E")])
    thread.add("controls", fails_at_once)
    thread.add("score", lambda: [lambda: done.append("score")])
    wait_until(lambda: done)
    assert done == ["score"]
    thread.take_over("E")
    thread.close()


def test_after_its_end_nothing_more_is_compiled():
    thread, done = Ahead(), []
    begun, gate = threading.Event(), threading.Event()
    thread.add("E", lambda: [begun.set, gate.wait, lambda: done.append("E")])
    begun.wait()
    assert thread.is_working
    thread.close()
    gate.set()
    wait_until(lambda: not thread.is_working)
    thread.add("score", lambda: [lambda: done.append("score")])
    time.sleep(0.05)
    assert done == [] and thread._thread.daemon
    thread._thread.join(20)
    assert not thread._thread.is_alive()


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        (jax, "process_count", lambda: 2),
        (jax, "default_backend", lambda: "gpu"),
        (ahead, "is_kept", lambda: False),
        (jax, "default_backend", lambda: "cpu"),
    ],
)
def test_it_stays_away_where_it_would_disturb_or_be_of_no_use(monkeypatch, where, name, value):
    assert ahead.can_compile_ahead()
    monkeypatch.setattr(where, name, value, raising=False)
    assert not ahead.can_compile_ahead()
    thread = Ahead()
    thread.add("E", lambda: [lambda: pytest.fail("compiled")])
    assert thread._thread is None
    thread.take_over("E")
    thread.close()
