"""The whole run, stage after stage: tune, score, compare, analyse, report. Each stage continues where it stopped.

The unit of finished work is a file: the folder of a tuned model, or a task's share of a table. A unit that exists is
not computed again, and everything is written completely or not at all.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

import jax

from mossa_jax.config import Config, check
from mossa_jax.errors import Refusal
from mossa_jax.files.growing import LogFile
from mossa_jax.files.paths import is_remote
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.log import log
from mossa_jax.monitoring.profiles import Profile
from mossa_jax.monitoring.trackers import Trackers, check_trackers
from mossa_jax.processes.life import Process
from mossa_jax.run import takeover
from mossa_jax.run.analyse import analyse
from mossa_jax.run.analyse import check as check_analyses
from mossa_jax.run.compare import compare
from mossa_jax.run.context import Run
from mossa_jax.run.environment import environment
from mossa_jax.run.later_programs import compare_programs
from mossa_jax.run.options import Options
from mossa_jax.run.record import FILE
from mossa_jax.run.report import report
from mossa_jax.run.summary import summary as summary
from mossa_jax.run.tune import tune

_Result = TypeVar("_Result")


def in_run_folder(
    process: Process,
    config: Config,
    workdir: str,
    stage: Callable[[Run], _Result],
    profile: str = "",
    options: Options | None = None,
) -> _Result:
    """Runs one stage in a run folder that it claims, with the log copied there, and releases the folder.

    Args:
      process: this process.
      config: the configuration.
      workdir: the run folder's path.
      stage: the work.
      profile: the steps to trace, as in `Profile.parse`.
      options: what else is asked of this attempt.

    Raises:
      Refusal: 2 for a bad configuration or profile, a folder of another configuration, or an `options.take_from` that
        is no run folder.
    """
    options = options or Options()
    trace = Profile.parse(profile)
    takeover.check_source(options.take_from, workdir)
    is_new, is_refused = not is_remote(workdir) and not os.path.exists(workdir), False
    run_folder = open_run(config, workdir)
    run = Run(config, run_folder, process.stop, trace, options)
    ahead = run.ahead
    # The process keeps this, and must not keep the run: a sweep's next run needs its memory.
    process.runs_native_code.append(lambda: ahead.is_working)
    # An object store gets growing files only now and then, so a process that is ended has to write the rest.
    process.before_leaving.append(run_folder.flush)
    try:
        with _log_in(run_folder):
            return stage(run)
    except Refusal:
        is_refused = True
        raise
    finally:
        ahead.close()
        process.before_leaving.remove(run_folder.flush)
        run_folder.close()
        # A refusal before the data are read, such as of a base that is not there, leaves no folder behind.
        if is_refused and is_new and run_folder.writer and not (run_folder / FILE).exists():
            run_folder.path.rmtree(missing_ok=True)


@contextlib.contextmanager
def _log_in(run_folder: RunFolder) -> Iterator[None]:
    """Copies the log to the run folder's log.txt (writer only)."""
    if not run_folder.writer:
        yield
        return
    handler = LogFile(run_folder / "log.txt")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


def run_all(run: Run) -> dict[str, Any]:
    """Tunes E and every control, scores, compares, analyses and reports.

    Returns:
      The findings, in the process that writes them; empty in the others.
    """
    check_analyses(run)
    tune(run, {"compare": partial(compare_programs, run)})
    compare(run)
    analyse(run)
    return report(run)


def open_run(config: Config, workdir: str) -> RunFolder:
    """Checks the configuration and claims the run folder for it.

    Raises:
      Refusal: 2 for a bad configuration, or for a folder of another configuration.
    """
    check(config)
    check_trackers(config.track)
    run_folder = RunFolder(workdir, writer=jax.process_index() == 0)
    run_folder.open(config, environment())
    if config.track and run_folder.writer:
        run_folder.trackers = Trackers(config.track, run_folder.path, config.name, asdict(config))
    return run_folder
