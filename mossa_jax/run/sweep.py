"""A sweep: several runs, one after another, each in a folder of its own beside the others."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax

from mossa_jax.config import Config, check, varied_fields
from mossa_jax.config.reading import RECORD, SWEEP_RECORD, read_file
from mossa_jax.errors import BAD_CONFIG, STOPPED, Refusal
from mossa_jax.files.checked import write_json
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.log import log
from mossa_jax.processes import agreement
from mossa_jax.processes.life import Process
from mossa_jax.run import pipeline
from mossa_jax.run.context import Run
from mossa_jax.run.options import Options


def run_sweep(
    process: Process,
    runs: Mapping[str, Config],
    workdir: str,
    stage: Callable[[Run], Any],
    profile: str = "",
    options: Options | None = None,
) -> str:
    """Does the work of every run of a sweep in its folder, `WORKDIR/<name>`; a run that is finished is passed over.

    Every run but the first takes over what it can from the first, unless `options` name another source. The first
    refusal, or a request to stop, ends the sweep; the same call continues it.

    Args:
      process: this process.
      runs: name -> configuration.
      workdir: the folder of the sweep; `sweep.json` there says how its runs differ.
      stage: the work in a run folder, as `pipeline.run_all`.
      profile: as in `pipeline.in_run_folder`.
      options: what is asked of each run; None for the defaults.

    Returns:
      The folders and the command that compares them, for people at a terminal; empty on processes that do not write.

    Raises:
      Refusal: that of a run, with the run's name in front; 2 where `workdir` is itself the folder of a run.
    """
    options = options or Options()
    is_writer = jax.process_index() == 0
    folder = RunFolder(workdir, is_writer).path
    for config in runs.values():
        check(config)
    where = f"--workdir={workdir}"
    is_run = is_writer and read_file(folder / RECORD, where) is not None
    is_file = is_writer and folder.exists() and not folder.is_dir()
    if any(agreement.agreed([is_run, is_file])):
        raise Refusal(BAD_CONFIG, f"{where}: is the folder of one run, or a file; name a new folder for the sweep")
    if is_writer:
        write_json(folder / SWEEP_RECORD, varied_fields(runs))
    folders = {name: f"{workdir.rstrip('/')}/{name}" for name in runs}
    first = next(iter(folders.values()))
    for number, (name, config) in enumerate(runs.items()):
        log.info("run %d of %d of the sweep: %s", number + 1, len(runs), name)
        own = options if options.take_from or not number else replace(options, take_from=first)
        try:
            process.stop.leave_if_asked()
            pipeline.in_run_folder(process, config, folders[name], stage, profile, own)
        except Refusal as refusal:
            place = "" if refusal.code == STOPPED else f" (run {number + 1} of {len(runs)} of the sweep)"
            raise Refusal(refusal.code, f"{name}{place}: {refusal}") from refusal
        # The finished run's arrays are freed before the next run loads its own.
        gc.collect()
    return _summary(workdir, folders) if is_writer else ""


def _summary(workdir: str, folders: Mapping[str, str]) -> str:
    lines = ["", f"{len(folders)} runs of the sweep:", *(f"  {folder}" for folder in folders.values())]
    return "\n".join([*lines, "", f"Compare them: python -m launch.runs {workdir.rstrip('/')}/*/", ""])
