"""Pairs of processes of one run that differ in something: how they end.

Run as a script with a JSON list of trials and a folder: imports once, forks both processes of each trial, and prints
their exit codes and the seconds until both had ended. What process i of trial n says is in <n>-<i>.err.
"""

import importlib.metadata
import json
import os
import runpy
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

TIMEOUT = 120.0  # seconds


@dataclass(frozen=True)
class Trial:
    """What both processes have in common, and what process 1 has otherwise.

    Attributes:
      flags: of both.
      folder: in which process 0 is started: relative paths lead to other files in another one.
      more: flags of process 1, behind the others.
      options: of JAX in process 1, as JAX_ENABLE_X64 sets them.
      variables: of the environment of process 1.
      other_folder: in which process 1 is started; "" for that of process 0.
      fake: `package=version` of process 1, or `source=digest`.
      command: its module; "" for that of process 0.
    """

    flags: list[str]
    folder: str
    more: list[str] = field(default_factory=list)
    options: dict[str, object] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    other_folder: str = ""
    fake: str = ""
    command: str = ""


@dataclass(frozen=True)
class Ends:
    """How both processes ended: exit codes, what each said, and the seconds until then."""

    codes: list[int]
    said: list[str]
    seconds: float

    @property
    def last(self) -> list[str]:
        """The last line of each."""
        return [text.rstrip().rpartition("\n")[2] for text in self.said]


def ends_of(trials, folder: Path) -> list[Ends]:
    """Returns how the two processes of each trial ended."""
    from tests.support.paths import ROOT
    from tests.support.processes import cpu

    done = subprocess.run(
        [sys.executable, __file__, json.dumps([asdict(trial) for trial in trials]), str(folder)],
        cwd=ROOT, env=cpu(ROOT, 1), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [
        Ends(codes, [(folder / f"{number}-{index}.err").read_text() for index in (0, 1)], seconds)
        for number, (codes, seconds) in enumerate(json.loads(done.stdout))
    ]


def _process(trial: Trial, index: int, address: str, said: str) -> None:
    """Lives as one of the two processes; does not return."""
    for stream in (1, 2):
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    module, words = "launch.tune", [*trial.flags, "--processes=2", f"--coordinator={address}", f"--process={index}"]
    os.chdir(trial.folder)
    if index:
        import jax

        from mossa_jax.processes import facts

        module, words = trial.command or module, [*words, *trial.more]
        os.chdir(trial.other_folder or ".")
        os.environ.update(trial.variables)
        for name, value in trial.options.items():
            jax.config.update(name, value)
        package, _, version = trial.fake.partition("=")
        found = importlib.metadata.version
        facts.metadata.version = lambda name: version if name == package else found(name)
        if package == "source":
            facts.source_digest = lambda: version
    sys.argv = [module, *words]
    code = 99  # no command returns
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _main() -> None:
    import mossa_jax.run.pipeline  # noqa: F401  # what all of them would import
    from tests.support.processes import free_address

    ends = []
    for number, trial in enumerate(json.loads(sys.argv[1])):
        begin, address = time.monotonic(), free_address()
        children = []
        for index in (0, 1):
            if not (child := os.fork()):
                _process(Trial(**trial), index, address, f"{sys.argv[2]}/{number}-{index}.err")
            children.append(child)
        codes = {}
        while len(codes) < 2:
            for index, child in enumerate(children):
                if index not in codes and (end := os.waitpid(child, os.WNOHANG))[0]:
                    codes[index] = os.waitstatus_to_exitcode(end[1])
            time.sleep(0.02)
            if time.monotonic() - begin > TIMEOUT:
                for index in {0, 1} - set(codes):
                    os.kill(children[index], 9)
        ends.append([[codes[0], codes[1]], time.monotonic() - begin])
    print(json.dumps(ends))


if __name__ == "__main__":
    _main()
