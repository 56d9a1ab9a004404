"""The end of a process while a thread of it is in native code that nothing can stop."""

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, sys
from mossa_jax.errors import Refusal
from mossa_jax.processes.life import Process, Settings

atexit.register(print, "the interpreter ended")
process = Process(Settings(platform="cpu"))
process.runs_native_code.append(lambda: sys.argv[1] == "compiles")

def work(process):
    print("worked", flush=True)
    if sys.argv[2] != "0":
        raise Refusal(int(sys.argv[2]), "as asked")

sys.exit(process.run(work))
"""


@pytest.mark.parametrize("code", [0, 75])
@pytest.mark.parametrize("state", ["compiles", "rests"])
def test_it_ends_with_its_exit_code_and_without_the_interpreters_end_if_a_thread_compiles(root, state, code):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, state, str(code)], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert "worked" in done.stdout and ("the interpreter ended" in done.stdout) == (state == "rests")
    assert done.stderr.count("as asked") == (code != 0)
