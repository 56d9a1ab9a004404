"""The time left by a clock that a test turns, and which lines are written."""

import logging

import jax
import pytest

from mossa_jax.files.run_folder import RunFolder
from mossa_jax.monitoring import goodput, progress
from mossa_jax.monitoring.goodput import Ledger
from mossa_jax.monitoring.progress import Progress


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    time = monotonic

    def work(self, seconds):
        self.now += seconds

    def compile(self, seconds):
        self.now += seconds
        jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", seconds)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(goodput, "time", clock)
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def said(caplog):
    """Returns the messages of a level since the last call."""
    caplog.set_level(logging.DEBUG, "mossa_jax")

    def messages(level="INFO"):
        found = [record.getMessage() for record in caplog.records if record.levelname == level]
        caplog.clear()
        return found

    return messages


def test_the_time_left_counts_neither_compiling_nor_set_up(tmp_path, clock, said):
    with Ledger(RunFolder(tmp_path)).stage("E"):
        clock.work(40)  # before the clock starts
        line = Progress("E", 100, unit="steps")
        clock.compile(300)
        clock.work(20)
        line.line(20)
        assert said() == ["E 20/100 steps, 1:20 left"]  # one second per step, and not 16
        clock.work(40)
        line.line(40)
        assert said("INFO") == []  # a fifth of the work is too little
        clock.work(20)
        line.line(50)
        assert said() == ["E 50/100 steps, 1:40 left"]  # two seconds per step since step 20
        clock.compile(1000)
        clock.work(50)
        line.line(75)
        assert said() == ["E 75/100 steps, 0:50 left"]


def test_a_single_first_unit_may_be_all_set_up_and_gives_no_time(clock, said):
    line = Progress("compare", 3)
    clock.work(70)
    line.line(1, "one")
    assert said() == ["compare 1/3 tasks, one"]
    clock.work(10)
    line.line(2, "two")
    assert said() == ["compare 2/3 tasks, two, 0:10 left"]


def test_units_of_an_earlier_attempt_do_not_count_for_the_pace(clock, said):
    line = Progress("E", 1000, done=900, unit="steps")
    clock.work(30)
    line.line(930)
    assert said() == ["E 930/1000 steps, 1:10 left"]


def test_lines_are_few_however_many_units_there_are(clock, said):
    fast = Progress("data", 1000)
    for number in range(1, 1000):
        clock.work(0.1)
        fast.line(number, f"task {number}")
    assert 2 <= len(said()) <= 3
    slow = Progress("E", 100_000, unit="steps")
    for number in range(1, 60):
        clock.work(11)
        slow.line(number)
    assert len(said()) == 59 // 11  # one every two minutes, although little of it is done


def test_every_unit_is_in_the_log_at_debug_level(clock, said):
    line = Progress("score", 3)
    for number in range(1, 4):
        line.line(number, f"task {number}")
    assert [text.split(",")[1].strip() for text in said("DEBUG")] == ["task 1", "task 2", "task 3"]


def test_the_end_is_said_once_with_all_units_and_the_time(clock, said):
    line = Progress("preview", 2)
    clock.work(65)
    line.line(2, "the last task")
    assert said() == ["preview: 2 tasks; took 1:05"]


def test_a_stage_says_in_one_line_what_it_did_how_long_it_took_and_what_of_it_was_compiling(tmp_path, clock, said):
    ledger = Ledger(RunFolder(tmp_path))
    with ledger.stage("controls"):
        line = Progress("controls", 160, unit="steps")
        with goodput.useful("controls", 159):
            clock.compile(12)
            clock.work(60)
        line.line(160, lambda: "24 of 24 models done, loss 0.320")
        clock.work(3)
    assert said() == ["controls: 160 steps, 24 of 24 models done, loss 0.320; took 1:15, 0:12 of it compiling"]


def test_a_stage_that_did_nothing_or_did_not_end_says_nothing(tmp_path, clock, said):
    ledger = Ledger(RunFolder(tmp_path))
    with ledger.stage("data"):
        with goodput.useful():
            clock.work(6)
        goodput.outcome("24 tasks")
    assert said() == ["data: 24 tasks; took 0:06"]
    with ledger.stage("data"):  # asked again, and nothing to do
        clock.work(7)
        goodput.outcome("24 tasks")
    with ledger.stage("map"), goodput.useful():  # too short for a line
        clock.work(2)
    with pytest.raises(RuntimeError), ledger.stage("E"), goodput.useful():
        clock.work(100)
        goodput.outcome("600 steps")
        raise RuntimeError
    assert said() == []


def test_what_stands_in_a_line_is_asked_for_only_when_the_line_is_written(clock, said):
    calls = []

    def describe():
        calls.append(clock.now)
        return "loss 1"

    line = Progress("E", 100, unit="steps")
    for number in range(1, 100):
        clock.work(1)
        line.line(number, describe)
    assert len(calls) == len(said()) == 3
