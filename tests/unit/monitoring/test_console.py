"""The console on a terminal, as its user sees it, and on what is none."""

import logging
import os
import pty
import re
import select
import time

import pytest

from mossa_jax import log as log_module
from mossa_jax.log import ON_BAR, Wait, console, log, log_to_console, waiting
from mossa_jax.monitoring.progress import Progress


class Terminal:
    """A terminal whose screen a test reads, and standard error on it."""

    def __init__(self):
        self._ours, theirs = pty.openpty()
        self.stream, self.text = os.fdopen(theirs, "w"), ""

    def read(self, until=""):
        """Returns everything written so far, once `until` is there."""
        deadline = time.monotonic() + 20
        while True:
            while select.select([self._ours], [], [], 0.05)[0]:
                self.text += os.read(self._ours, 65536).decode()
            if until in self.text:
                return self.text
            assert time.monotonic() < deadline, (until, self.text)

    def close(self):
        self.stream.close()
        os.close(self._ours)


@pytest.fixture
def on(monkeypatch):
    """Sends the log to a stream; the package's logger is as before afterwards."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    level, propagate = log.level, log.propagate

    def start(stream, level=logging.INFO):
        monkeypatch.setattr("sys.stderr", stream)
        return log_to_console(level)

    yield start
    console().hide()
    log.removeHandler(console())
    log_module._console = None
    log.setLevel(level)
    log.propagate = propagate


@pytest.fixture
def terminal():
    terminal = Terminal()
    yield terminal
    terminal.close()


def plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_terminal_has_a_bar_below_the_lines(terminal, on):
    on(terminal.stream)
    progress = Progress("controls", 160, unit="steps")
    progress.line(40, lambda: "3 of 24 models done, loss 0.320")
    text = plain(terminal.read("loss 0.320"))
    assert "controls ━━" in text and "40/160" in text and "left" in text
    log.info("a line of the log")
    log.info("how far it is", extra=ON_BAR)
    progress.line(80, lambda: "9 of 24 models done, loss 0.210")
    text = plain(terminal.read("loss 0.210"))
    # The line stands on a row of its own, with the time in front, and the bar is drawn again below it.
    assert re.search(r"\d\d:\d\d:\d\d a line of the log\s*\r?\n", text)
    assert text.index("a line of the log") < text.index("80/160")
    assert "how far it is" not in text  # the bar says that
    progress.line(160, lambda: "24 of 24 models done, loss 0.100")
    end = terminal.read("took")
    assert re.search(r"controls: 160 steps, 24 of 24 models done, loss 0.100; took 0:\d\d\s*$", plain(end))
    assert "\x1b[2K" in end  # the bar is wiped away
    # A killed process must not leave a terminal without cursor.
    assert end.rfind("\x1b[?25h") > end.rfind("\x1b[?25l")


def test_the_cursor_is_there_while_the_bar_is(terminal, on):
    on(terminal.stream)
    Progress("E", 10)
    text = terminal.read("0/10")
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")


def test_what_other_libraries_write_stands_above_the_bar(terminal, on):
    import sys

    on(terminal.stream)
    Progress("E", 10)
    terminal.read("0/10")
    print("a warning of another library", file=sys.stderr)
    assert re.search(r"a warning of another library\s*\r?\n", plain(terminal.read("another library")))


def test_the_bar_fits_a_narrow_terminal(terminal, on, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    on(terminal.stream)
    Progress("controls", 160).line(40, lambda: "3 of 24 models done, " + "long text " * 20)
    lines = plain(terminal.read("40/160")).replace("\r", "\n").split("\n")
    assert max(map(len, lines)) <= 40 and any("controls" in line and "40/160" in line for line in lines)


def test_no_colour_where_nobody_wants_one(terminal, on, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    on(terminal.stream)
    Progress("E", 10).line(5, lambda: "loss 1.000")
    assert not re.search(r"\x1b\[[0-9;]*(3[0-7]|38|9[0-7])[0-9;]*m", terminal.read("loss 1.000"))


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_terminal_that_cannot_move_its_cursor_has_lines_alone(terminal, on, monkeypatch, term):
    monkeypatch.setenv("TERM", term)
    on(terminal.stream)
    progress = Progress("E", 10, unit="steps")
    progress.line(5, lambda: "loss 1.000")
    progress.line(10, lambda: "loss 0.500")
    text = terminal.read("took")
    assert "\x1b" not in text and text.count("\n") == 1 and "E: 10 steps, loss 0.500; took 0:0" in text


def test_a_file_has_lines_alone_even_where_colours_are_forced(tmp_path, on, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with (tmp_path / "log").open("w") as file:
        on(file)
        Progress("E", 10, unit="steps").line(10, lambda: "loss 0.500")
        assert not console().is_live
    assert re.fullmatch(r"\d\d:\d\d:\d\d E: 10 steps, loss 0.500; took 0:\d\d\n", (tmp_path / "log").read_text())


@pytest.mark.parametrize(
    ("level", "words"),
    [
        (logging.DEBUG, ["detail", "word", "warning"]),
        (logging.INFO, ["word", "warning"]),
        (logging.WARNING, ["warning"]),
    ],
)
def test_the_console_says_what_its_level_asks_for_and_the_logger_keeps_all(tmp_path, on, level, words, caplog):
    with (tmp_path / "log").open("w") as file:
        on(file, level)
        log.addHandler(caplog.handler)
        log.debug("detail")
        log.info("word")
        log.warning("warning")
        log.removeHandler(caplog.handler)
    assert [line.split()[1] for line in (tmp_path / "log").read_text().splitlines()] == words
    assert caplog.messages == ["detail", "word", "warning"]


def test_a_quiet_terminal_and_one_of_a_further_process_have_no_bar(terminal, on):
    on(terminal.stream, logging.WARNING)
    Progress("E", 10).line(5, lambda: "loss 1.000")
    on(terminal.stream).quieten()
    Progress("E", 10).line(5, lambda: "loss 1.000")
    log.info("said by process 0 as well")
    log.warning("said by this process")
    assert re.fullmatch(r"\S+ said by this process\r\n", terminal.read("this process"))


def test_a_wait_is_said_when_it_is_long_and_while_it_lasts(tmp_path, on, monkeypatch):
    monkeypatch.setattr(log_module, "_LONG", 0.05)
    path = tmp_path / "log"
    with path.open("w") as file:
        on(file)
        with waiting("report", "drawing figures"):
            deadline = time.monotonic() + 20
            while "drawing" not in path.read_text():
                assert time.monotonic() < deadline
                time.sleep(0.01)
        monkeypatch.setattr(log_module, "_LONG", 20.0)
        Wait("E: compiling").end()  # a short one needs no word
        time.sleep(0.1)
    assert path.read_text().count("\n") == 1 and "report: drawing figures" in path.read_text()


def test_the_bar_says_at_once_what_is_waited_for(terminal, on):
    on(terminal.stream)
    Progress("E", 10)
    wait = Wait("E: compiling a program", "compiling")
    terminal.read("compiling")
    wait.end()
    with waiting("report", "drawing figures"):
        terminal.read("drawing figures")
