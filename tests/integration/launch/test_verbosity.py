"""--verbosity, absl's own flag, reaches the console, in words and in numbers."""

import subprocess
import sys

from tests.support.processes import cpu

SCRIPT = """
import sys
import launch.flags
from mossa_jax.processes import life

class Process:
    def __init__(self, settings, prepare, facts):
        print(settings.verbosity)

    def run(self, main):
        return 0

life.Process = Process
for word in ["", "--verbosity=debug", "--verbosity=0", "-v=warning", "--verbosity=-1", "--verbosity=error", "-v=1",
             "--verbosity=chatty"]:
    sys.argv = ["command", *filter(None, [word])]
    try:
        launch.flags.run(lambda process: None)
    except SystemExit as end:
        print("ended with", end.code) if end.code else None
"""


def test_verbosity_is_a_word_or_absls_number_and_anything_else_is_refused(root):
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=root, env=cpu(root, 1), capture_output=True, text=True)
    assert done.stdout.split("\n") == ["0", "1", "0", "-1", "-1", "-2", "1", "ended with 2", ""], done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "verbosity" in line and "chatty" in line


def test_help_says_what_the_words_mean(root):
    command = [sys.executable, "-m", "launch.tasks", "--help"]
    done = subprocess.run(command, cwd=root, env=cpu(root, 1), capture_output=True, text=True)
    text = " ".join(done.stdout.split("--verbosity")[1].split())
    assert "1 or debug everything" in text and "-1 or warning only what is wrong" in text
