"""Standard output and error whose reader has left, that are closed, or that lead to a full disk."""

import subprocess
import sys

import pytest

from tests.support.processes import cpu

WORK = """
import sys
from pathlib import Path
from mossa_jax.log import log
from mossa_jax.processes.life import Process, Settings
from mossa_jax.processes.streams import settle_streams

def work(process):
    for number in range(20_000):
        print("a line of the table", number)
        log.warning("a line of the log") if number % 2_000 == 0 else None
    Path(sys.argv[1]).write_text("all work is done")

settle_streams()
sys.exit(Process(Settings(platform="cpu")).run(work))
"""


def run(root, shell, path):
    command = f'"{sys.executable}" -c "$WORK" {path} {shell}'
    environment = cpu(root, 1) | {"WORK": WORK}
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], cwd=root, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("shell", ["| head -1", ">&- 2>&- <&-", "2>&1 | true"])
def test_work_is_finished_whoever_listens(root, tmp_path, shell):
    done = run(root, shell, tmp_path / "done.txt")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "done.txt").read_text() == "all work is done"
    assert "BrokenPipe" not in done.stderr and "Exception ignored" not in done.stderr


def test_output_that_a_full_disk_does_not_take_is_told_in_one_line(root, tmp_path):
    done = run(root, ">/dev/full", tmp_path / "done.txt")
    lines = [line for line in done.stderr.splitlines() if "a line of the log" not in line]
    assert done.returncode == 6 and len(lines) == 1 and lines[0].startswith("error: no space left"), done.stderr


def test_what_a_command_prints_before_it_works_is_held_to_the_same(root):
    command = [sys.executable, "-m", "launch.run", "--config=demo", "--print_config"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=root, env=cpu(root, 1), stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 6 and done.stderr.count("\n") == 1 and "no space left" in done.stderr
