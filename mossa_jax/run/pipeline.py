"""The whole run, stage after stage: tune, score, compare, report. Each stage goes on where it was left.

The unit of finished work is a file: a tuned model's folder, a task's part of a table. A unit that is there is not done
again; everything that is written appears whole or not at all.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
from dataclasses import asdict
from importlib import metadata

import jax

from mossa_jax import config as config_lib
from mossa_jax.config import Config
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.monitoring.trackers import Trackers, check_trackers
from mossa_jax.run.compare import compare
from mossa_jax.run.context import Run
from mossa_jax.run.report import report
from mossa_jax.run.tune import tune


def run_all(run: Run) -> dict:
    """Tunes E and every control, scores, compares and reports; returns the findings, where this process writes them."""
    tune(run)
    compare(run)
    return report(run)


def summary(found: dict, workdir: str) -> str:
    """The findings in words, with the page's path, for people at a terminal."""
    lines = [f"[{finding['verdict']}] {finding['title']}: {finding['sentence']}" for finding in found["findings"]]
    return "\n".join(["", "Findings", *lines, "", f"Report: {os.path.join(workdir, 'report.html')}"])


def open_run(config: Config, workdir: str) -> RunFolder:
    """Checks the configuration and claims the run folder for it.

    Raises:
      Refusal: 2 for a bad configuration or a folder of another one.
    """
    config_lib.check(config)
    check_trackers(config.track)
    run_folder = RunFolder(workdir, writer=jax.process_index() == 0)
    run_folder.open(config, environment())
    if config.track and run_folder.writer:
        run_folder.trackers = Trackers(config.track, run_folder.path, config.name, asdict(config))
    return run_folder


def _command(argv: list[str]) -> str:
    """The command line as one types it: a module that was started by `python -m` shows up as the path of its file."""
    folder, script = os.path.split(argv[0])
    if os.path.basename(folder) == "launch" and script.endswith(".py"):
        return shlex.join(["python", "-m", f"launch.{script.removesuffix('.py')}", *argv[1:]])
    return shlex.join([os.path.basename(sys.executable), *argv])


def environment() -> dict:
    """Versions, devices and the command, for the record."""
    packages = "mossa_jax jax jaxlib flax optax orbax-checkpoint transformers datasets numpy".split()
    return {
        "command": _command(sys.argv),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
    }
