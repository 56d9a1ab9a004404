"""What the command line of one process of a run has to have in common with those of the others."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from absl import flags

from mossa_jax.config import Config
from mossa_jax.config.kinds import flat_fields
from mossa_jax.processes.facts import Facts, file_facts

from .config_source import runs_of_sweep

# Where a process stands, what it says and how long it waits are its own; the configuration is compared field by field.
_OWN = (
    "process", "coordinator", "verbosity", "start_timeout", "heartbeat_timeout", "step_timeout", "max_hours", "config",
    "overrides", "print_config",
)  # fmt: skip
_LIBRARIES = ("absl", "ml_collections")
# Folders in which a run keeps what it makes: only that they are the same place can be compared.
_PLACES = ("workdir", "from", "out", "export", "compile_cache")


def command_facts(command: str) -> Facts:
    """Returns the command with its flags, the configuration, and what the files hold that these name.

    Args:
      command: its name.
    """
    given = dict(_flags())
    config = dict(_fields())
    files: dict[str, str] = {}
    for name, value in [*config.items(), *given.items()]:
        if name.removeprefix("--") not in _PLACES:
            for path in _local_paths(value):
                files |= file_facts(name, path)
    return {"command": {"command": command, **given}, "config": config, "files": files}


def _flags() -> Iterator[tuple[str, Any]]:
    """Yields the flags of the command that decide what it does, with their values."""
    values = flags.FLAGS
    for module, defined in sorted(values.flags_by_module_dict().items()):
        for flag in defined if module.split(".")[0] not in _LIBRARIES else ():
            if flag.name in _OWN or flag.name.startswith("config."):
                continue
            value = flag.value
            if flag.name in _PLACES and value and "://" not in value and value != "none":
                # The same relative path is another folder where a process was started elsewhere.
                value = os.path.abspath(value)
            yield f"--{flag.name}", value


def _fields() -> Iterator[tuple[str, Any]]:
    """Yields the fields of the configuration, or of all of a sweep, with their values."""
    if "config" not in flags.FLAGS or flags.FLAGS["config"].value is None:
        return
    runs: dict[str, Config] = runs_of_sweep() or {"": flags.FLAGS["config"].value}
    for name, run in runs.items():
        for field, value in flat_fields(json.loads(json.dumps(asdict(run)))):
            yield f"config.{field}" + (f" of the run {name}" if name else ""), value


def _local_paths(value: Any) -> Iterator[str]:
    """Yields the files and folders that a value names."""
    for each in value if isinstance(value, list | tuple) else [value]:
        if isinstance(each, str) and each and "\0" not in each:
            path = os.path.expanduser(each)
            # A name such as that of a task may by chance be that of a file: what a path is has a separator.
            if "/" in path and os.path.exists(path):
                yield path
