"""Where the configuration of a command comes from: --config, the run folder in --workdir, --overrides, --config.X=Y."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from absl import flags
from ml_collections import config_flags

from mossa_jax.config import Config, check, config_to_data, load_config, load_runs, varied_fields, with_fields
from mossa_jax.config.data import field_values
from mossa_jax.config.reading import RECORD, SWEEP_RECORD, read_fields, read_file
from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.foreign import user_path

_VARIANTS = "variants"  # the folder of a run folder that holds further variants of its results


class ConfigSource(flags.ArgumentParser):
    """Reads what --config names, as `mossa_jax.config.load_config` does.

    Attributes:
      runs: the runs of the sweep that --config names, by name; empty if it names one configuration.
      record: the config.json of the run folder that stands in for a --config that is not given; "" if it is given.
    """

    def __init__(self, takes_sweeps: bool):
        """Reads nothing yet; `takes_sweeps` says whether the command runs sweeps."""
        super().__init__()
        self._takes_sweeps = takes_sweeps
        self.runs: dict[str, Config] = {}
        self.record = ""

    def parse(self, path: str) -> Config:
        """Returns the configuration; of a sweep, a copy of its first, which takes the overrides of the command line."""
        where = path if path and path == self.record else f"--config={path}"
        self.runs = {}
        if self._takes_sweeps:
            runs = load_runs(path, where)
            if "" in runs:
                return runs[""]
            self.runs = runs
            return with_fields(next(iter(runs.values())), {})
        return load_config(path, where)


def _source() -> ConfigSource:
    """Returns what reads --config in this command."""
    source = flags.FLAGS["config"].parser
    assert isinstance(source, ConfigSource)
    return source


def runs_of_sweep() -> dict[str, Config]:
    """Returns the runs of the sweep that --config names, with all overrides; empty if it names one configuration."""
    return _source().runs


def with_config_of_workdir(words: Sequence[str]) -> list[str]:
    """Adds the --config that a command line leaves to the run folder in --workdir.

    The folder of a variant of results stands for its run folder with the variant's configuration.

    Raises:
      Refusal: 2 when the folder is no run folder.
    """
    words = list(words)
    workdir = _last_value(words, "workdir")
    if not workdir or "workdir" not in flags.FLAGS:
        return words
    workdir = user_path(workdir, "--workdir")
    config, place = _last_value(words, "config"), _run_folder(workdir)
    is_variant = place != workdir
    if config is not None and is_variant:
        rule = f"the folder of a variant has its own configuration; leave out --config, or name --workdir={place}"
        raise Refusal(BAD_CONFIG, f"--workdir={workdir}: {rule}")
    if config is not None:
        return words
    record = _join(workdir, RECORD)
    if read_file(record, f"--workdir={workdir}") is None:
        raise Refusal(BAD_CONFIG, f"--workdir={workdir}: {_why_no_run_folder(workdir)}")
    _source().record = record
    # The last word of a flag counts.
    return [*words[:1], f"--config={record}", *words[1:], *([f"--workdir={place}"] if is_variant else [])]


def check_takeover(source: str, workdir: str | None) -> str:
    """Returns the run folder that --from names.

    Raises:
      Refusal: 2 when it is no run folder, or the one to work in.
    """
    place = _run_folder(source)
    if read_file(_join(place, RECORD), f"--from={source}") is None:
        raise Refusal(BAD_CONFIG, f"--from={source}: {_why_no_run_folder(place, 'name the folder of a run')}")
    if workdir and Path(place).resolve() == Path(workdir).resolve():
        raise Refusal(BAD_CONFIG, f"--from={source}: is --workdir itself; name another run, or a new --workdir")
    return place


def settle_config() -> None:
    """Applies --overrides below what the command line says, and checks the configuration, of a sweep every one.

    Raises:
      Refusal: 2 when the values cannot work, or override what a sweep varies.
    """
    flag, path = flags.FLAGS["config"], flags.FLAGS["overrides"].value
    if flag.value is None:
        if path is not None:
            raise Refusal(BAD_CONFIG, f"--overrides={path}: there is no --config whose fields it could override")
        return
    where = f"--overrides={path}"
    values = field_values(read_fields(path, where), where) if path is not None else {}
    runs = _source().runs
    if runs:
        varied = next(iter(varied_fields(runs).values()))
        _source().runs = runs = {name: _overridden(run, values) for name, run in runs.items()}
        left = next(iter(varied_fields(runs).values()))
        if lost := [field for field in varied if field not in left]:
            rule = "the sweep varies it; leave this override out, or change the sweep"
            raise Refusal(BAD_CONFIG, f"config.{lost[0]}: {rule}")
    flag.value = _overridden(flag.value, values)
    for name, run in (runs or {"": flag.value}).items():
        try:
            check(run)
        except Refusal as refusal:
            in_file = any(str(refusal).startswith(f"config.{field}=") for field in values)
            source = where if in_file else f"the run {name} of the sweep" if name else ""
            raise Refusal(refusal.code, f"{source}: {refusal}" if source else str(refusal)) from None


def _overridden(config: Config, values: Mapping[str, Any]) -> Config:
    """Returns a copy with the values of a file, and over these the values of the command line."""
    changed = with_fields(config, values)
    for name, value in config_flags.get_override_values(flags.FLAGS["config"]).items():
        group, _, field = name.rpartition(".")
        setattr(functools.reduce(getattr, filter(None, group.split(".")), changed), field, value)
    return changed


def config_text() -> str:
    """Returns the configuration, or all those of a sweep, as JSON that --config takes."""
    runs = {name: config_to_data(run) for name, run in runs_of_sweep().items()}
    single: Any = flags.FLAGS["config"].value
    return json.dumps({"sweep": runs} if runs else config_to_data(single), indent=1)


def _last_value(words: Sequence[str], flag: str) -> str | None:
    """Returns the value of a flag on the command line, the last if it is given several times."""
    value = None
    for index, word in enumerate(words):
        if match := re.fullmatch(rf"--?{flag}=(.*)", word, re.DOTALL):
            value = match[1]
        elif index > 0 and words[index - 1] in (f"--{flag}", f"-{flag}"):
            value = word
    return value


def _join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/') or '/'}/{name}"


def _run_folder(folder: str) -> str:
    """Returns the run folder of a folder of a variant, and any other folder as it is."""
    is_local = "://" not in folder
    path = PurePosixPath(os.path.abspath(folder) if is_local else folder.rstrip("/"))
    if path.parent.name != _VARIANTS:
        return folder
    # A path object would turn the two slashes of a scheme into one.
    place = str(path.parent.parent) if is_local else folder.rstrip("/")[: -len(f"/{_VARIANTS}/{path.name}")]
    return place if read_file(_join(place, RECORD), f"--workdir={folder}") is not None else folder


def _why_no_run_folder(folder: str, remedy: str = "give --config=FILE to begin a run there") -> str:
    if "://" not in folder and not Path(folder).exists():
        return f"no such folder; {remedy}"
    if "://" not in folder and not Path(folder).is_dir():
        return f"is a file, and no run folder; {remedy}"
    if read_file(_join(folder, SWEEP_RECORD), folder) is not None:
        return f"is the folder of a sweep; name one of its runs, as {_join(folder, 'NAME')}, or give its own --config"
    return f"has no {RECORD}, so it is no run folder; {remedy}"
