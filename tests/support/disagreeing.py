"""Starts two processes of one run that differ in something, and says how they end."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.processes import cpu, free_address

# Runs a command with another version of a package, or another program text, than is installed.
_FAKE = """
import importlib.metadata, os, runpy, sys
from mossa_jax.processes import facts
name, value = os.environ["FAKE"].split("=")
version = importlib.metadata.version
facts.metadata.version = lambda package: value if package == name else version(package)
if name == "source":
    facts.source_digest = lambda: value
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Change:
    """What process 1 has otherwise than process 0.

    Attributes:
      flags: behind the common ones.
      variables: of the environment.
      folder: where it is started; None for the folder of process 0.
      fake: `package=version`, or `source=digest`.
      command: its module; "" for that of process 0.
    """

    flags: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None
    fake: str = ""
    command: str = ""


def two_ends(flags, change: Change, folder: Path, command="launch.tune", timeout=120):
    """Returns the exit codes of both processes, what each said, and the seconds until both had ended."""
    address, processes, files = free_address(), [], []
    begin = time.monotonic()
    for index, own in enumerate([Change(), change]):
        name = own.command or command
        words = [*flags, "--processes=2", f"--coordinator={address}", f"--process={index}", *own.flags]
        program = ["-c", _FAKE, name] if own.fake else ["-m", name]
        # The folder of process 0 is a neighbour: relative paths lead to other files in another one.
        file = (folder / f"{index}.err").open("w+")
        files.append(file)
        processes.append(
            subprocess.Popen(
                [sys.executable, *program, *words],
                cwd=own.folder or folder,
                env=cpu(ROOT, 1) | {"FAKE": own.fake} | own.variables,
                stdout=file,
                stderr=file,
            )
        )
    try:
        codes = [process.wait(max(begin + timeout - time.monotonic(), 0.1)) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    seconds = time.monotonic() - begin
    said = []
    for file in files:
        file.seek(0)
        said.append(file.read())
        file.close()
    return codes, said, seconds


def last_line(text: str) -> str:
    return text.rstrip().rpartition(os.linesep)[2]
