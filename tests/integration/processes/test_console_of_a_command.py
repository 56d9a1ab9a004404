"""What a command shows: at a terminal, in a pipe, when it is stopped, and without PyTorch."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

from tests.support.processes import cpu

WORK = """
import sys, time
from mossa_jax.log import log
from mossa_jax.monitoring.progress import Progress
from mossa_jax.processes.life import Process, Settings

def work(process):
    line = Progress("E", 1000, unit="steps")
    for number in range(1, 1001):
        line.line(number, lambda: "loss 0.500")
        log.info("a line behind step %d", number) if number % 20 == 0 else None
        time.sleep(0.02)
        process.stop.leave_if_asked()

sys.exit(Process(Settings(stops_on_request=True, verbosity=int(sys.argv[1]))).run(work))
"""


def plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def at_a_terminal(root, verbosity, until):
    """Starts the work at a terminal, sends Ctrl-C once it shows `until`; returns its exit code and what it showed."""
    ours, theirs = pty.openpty()
    environment = cpu(root, 1) | {"TERM": "xterm-256color", "COLUMNS": "100"}
    command = [sys.executable, "-c", WORK, str(verbosity)]
    process = subprocess.Popen(command, cwd=root, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    text, deadline, is_asked = "", time.monotonic() + 120, False
    try:
        while time.monotonic() < deadline:
            if not is_asked and re.search(until, plain(text)):
                process.send_signal(signal.SIGINT)
                is_asked = True
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    text += os.read(ours, 65536).decode()
                except OSError:  # the terminal has no user any more
                    break
        return process.wait(timeout=60), text
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_a_terminal_sees_the_bar_and_after_ctrl_c_one_line_and_a_cursor(root):
    code, text = at_a_terminal(root, 0, r"E ━+.* \d+/1,000 loss 0\.500, \d:\d\d left[\s\S]*behind step 40")
    assert code == 75
    lines = plain(text).replace("\r", "\n").split("\n")
    assert any(re.match(r"\S+ a line behind step 40 *$", line) for line in lines)
    assert [line for line in lines if line.strip()][-1].startswith("stopped: stopped on request, state saved")
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")  # the cursor is shown
    assert "Traceback" not in text


IMPORT = """
import importlib.util, logging, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
from mossa_jax.tokens.tokenizer import load_tokenizer
from mossa_jax.tasks.miniature import TOKENIZER
load_tokenizer(TOKENIZER, "none", bos=1, eos=(2,))
import transformers
print(transformers.is_torch_available(), logging.getLogger("transformers").filters)
transformers.logging.get_logger("transformers").warning("a warning of theirs")
"""


def test_nobody_is_told_to_install_pytorch_and_other_warnings_of_transformers_stay(root):
    done = subprocess.run([sys.executable, "-c", IMPORT], cwd=root, env=cpu(root, 1), capture_output=True, text=True)
    assert done.stdout == "False []\n", done.stderr
    assert "PyTorch" not in done.stderr and "a warning of theirs" in done.stderr
