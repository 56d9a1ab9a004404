"""The polite stop after --max_hours."""

import threading
import time

import pytest

from mossa_jax.errors import STOPPED, Refusal
from mossa_jax.processes import stop as stop_lib
from mossa_jax.processes.stop import Stop, process_age

OVER = 1e-9  # hours that are over when the clock starts


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_the_limit_asks_and_is_the_reason():
    stop, passed = Stop(2), []
    stop.pass_on = lambda: passed.append(stop.is_out_of_time)
    stop._max_hours = OVER
    with stop.in_time(lambda: True):
        assert wait_for(lambda: passed)
    stop._max_hours = 2
    assert stop.asked and passed == [True]
    with pytest.raises(Refusal) as caught:
        stop.leave_if_asked()
    assert caught.value.code == STOPPED
    assert str(caught.value) == "--max_hours=2 reached, state saved; run the same command again to continue"


def test_a_request_before_the_limit_is_told_as_such():
    stop = Stop(2)
    stop.ask()
    with pytest.raises(Refusal, match=r"^stopped on request, state saved"):
        stop.leave()


def test_a_clock_that_does_not_count_asks_nothing():
    """The clock of process 0 decides for the others."""
    stop, asked = Stop(OVER), []
    with stop.in_time(lambda: asked.append(True)):  # `append` returns None
        assert wait_for(lambda: asked)
    assert not stop.asked and not stop.is_out_of_time


@pytest.mark.parametrize("hours", [0, 100])
def test_no_clock_is_left_behind(hours):
    threads = threading.active_count()
    with Stop(hours).in_time(lambda: True):
        assert threading.active_count() == threads + (hours > 0)
    assert wait_for(lambda: threading.active_count() == threads)


def test_hours_count_from_the_start_of_the_process(monkeypatch):
    monkeypatch.setattr(stop_lib, "process_age", lambda: 3600.0)
    stop = Stop(0.99)
    with stop.in_time(lambda: True):
        assert wait_for(lambda: stop.is_out_of_time)


def test_the_age_of_a_process_grows_and_holds_its_imports():
    first = process_age()
    assert first >= time.monotonic() - stop_lib._IMPORTED - 0.1
    time.sleep(0.05)
    assert process_age() >= first + 0.03
