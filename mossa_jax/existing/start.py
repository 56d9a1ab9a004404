"""A run that is started from Python, as in a notebook: `mossa.run`."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

from mossa_jax.config import Config, check, config_from_data, load_config, with_fields
from mossa_jax.errors import BAD_CONFIG, STOPPED, Refusal
from mossa_jax.existing.runs import Run
from mossa_jax.files.compiled import keep_compiled
from mossa_jax.foreign import user_path
from mossa_jax.log import log
from mossa_jax.outputs import check_output
from mossa_jax.processes.life import Process, Settings
from mossa_jax.run import pipeline
from mossa_jax.run.options import STALE, Options

_AGAIN = "call mossa.run with the same arguments again to continue"


def run(
    config: str | os.PathLike[str] | Config | Mapping[str, Any],
    workdir: str | os.PathLike[str],
    *,
    take_from: str | os.PathLike[str] = "",
    stale: str = "refuse",
    **overrides: Any,
) -> Run:
    """Runs the whole experiment in this process, or continues it where it stopped, as `mossa run` does.

    Progress is logged to standard error. An interrupt (Ctrl-C, or the stop button of a notebook) saves the state and
    stops; a second one stops at once, and what was finished until then is kept. The devices are those that JAX has in
    this process.

    Args:
      config: the name of a published configuration, a config file, a run folder's config.json, a `Config`, or a mapping
        of fields to values.
      workdir: the run folder; made if it is not there.
      take_from: a run folder whose models and results are taken over where they rest on the same things, as `--from`.
      stale: what to do with models that rest on other rows, as `--stale`: "refuse", "retrain" or "keep".
      **overrides: values of fields, on top of `config`: `seed=1`, `tuning={"rank": 4}`, or by their dotted names
        `**{"tuning.rank": 4}`.

    Returns:
      The finished run, opened: `mossa.Run(workdir)`, or the variant that `config` asks for.

    Raises:
      Refusal: 75 if it was interrupted: call again to continue. Other codes as those of the command: 2 for a field, a
        value or a folder that does not fit, 3 for data or a model.

    Example:
      >>> import mossa_jax as mossa
      >>> run = mossa.run("demo", "runs/demo", seed=1, compare={"permutations": 100})
      >>> run.findings[["title", "verdict"]]
    """
    if stale not in STALE:
        raise Refusal(BAD_CONFIG, f"stale={stale!r}: must be one of {', '.join(STALE)}")
    values = with_fields(_config(config), overrides, "mossa.run")
    check(values)
    folder = user_path(workdir, "workdir")
    check_output(folder, "workdir", "folder")
    options = Options(user_path(take_from, "take_from") if take_from else "", stale)
    keep_compiled()
    # Devices and other processes are as whoever started this one left them; only the stop is asked for here.
    process = Process(Settings())
    try:
        with _shown_log(), process.stop.listening():
            variant = pipeline.in_run_folder(process, values, folder, _run_all, options=options)
    except Refusal as refusal:
        if refusal.code == STOPPED:
            raise Refusal(STOPPED, f"stopped on request, state saved; {_AGAIN}") from None
        raise
    except KeyboardInterrupt:
        raise Refusal(STOPPED, f"interrupted; what was finished is kept; {_AGAIN}") from None
    return Run(folder, variant)


def _config(config: object) -> Config:
    """Returns the configuration that is meant."""
    if isinstance(config, Config):
        return config
    if isinstance(config, Mapping):
        return config_from_data(config, "mossa.run")
    if isinstance(config, str | os.PathLike):
        return load_config(config)
    raise Refusal(
        BAD_CONFIG, f"config is of type {type(config).__name__}; give a name, a file, a Config or a mapping of fields"
    )


def _run_all(attempt: pipeline.Run) -> str:
    """Runs all stages, and returns the name of the variant that they were for."""
    pipeline.run_all(attempt)
    return attempt.folder.variant


@contextlib.contextmanager
def _shown_log() -> Iterator[None]:
    """Shows the log on standard error while the block runs, unless it goes somewhere already."""
    if log.handlers:
        yield
        return
    level, propagates = log.level, log.propagate
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagates
