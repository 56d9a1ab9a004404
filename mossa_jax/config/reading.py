"""What a config file, a run folder or the name of a published config gives."""

from __future__ import annotations

import copy
import hashlib
import os
import runpy
import traceback
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

from mossa_jax.config.data import FORMATS, config_from_data, parse_data
from mossa_jax.config.fields import Config
from mossa_jax.config.published import published_configs
from mossa_jax.config.sweeps import check_sweep
from mossa_jax.config.values import did_you_mean
from mossa_jax.errors import BAD_CONFIG, NO_ACCESS, Refusal
from mossa_jax.foreign import parse_sums, read_bytes, user_path

RECORD = "config.json"
"""The file of a run folder that holds its configuration."""
SWEEP_RECORD = "sweep.json"
"""The file of a sweep's folder that says how its runs differ."""

_SWEEP = "sweep"  # the one key of a JSON file that holds a sweep


def load_config(name: str | PathLike[str], where: str = "") -> Config:
    """Returns one configuration.

    Args:
      name: a Python file with `get_config()`, which is run; a JSON or TOML file of fields, in which missing ones have
        their defaults; a run folder, or its config.json; or the name of a published config, such as `demo`. With a word
        behind a colon, as in `FILE.py:WORD`, that run of the file's sweep, or what `get_config(WORD)` returns.
      where: what a refusal calls the source; by default `config NAME`.

    Raises:
      Refusal: 2 if there is no such source or it gives no configuration; 4 if a store cannot be reached.
    """
    return _load(os.fspath(name), where, takes_sweeps=False)[""]


def load_runs(name: str | PathLike[str], where: str = "") -> dict[str, Config]:
    """Returns the runs of a sweep by name, where the source is one, and else one configuration, named "".

    A Python file is a sweep if it has `get_sweep()`, a JSON file if its one key is `sweep`.

    Args:
      name: as in `load_config`.
      where: as in `load_config`.

    Raises:
      Refusal: as `load_config`.
    """
    return _load(os.fspath(name), where, takes_sweeps=True)


def read_fields(path: str | PathLike[str], where: str) -> dict[str, Any]:
    """Returns the fields and values of a TOML or JSON file, as `with_fields` takes them.

    Raises:
      Refusal: 2 if there is no such file, or it holds something else.
    """
    path = os.fspath(path)
    if not path.endswith(FORMATS):
        raise Refusal(BAD_CONFIG, f"{where}: must be a TOML or JSON file, named *.toml or *.json")
    text = read_file(path, where)
    if text is None:
        raise Refusal(BAD_CONFIG, f"{where}: no such file")
    values = parse_data(text, path, where)
    if not isinstance(values, dict):
        raise Refusal(BAD_CONFIG, f"{where}: must hold an object of fields and values")
    return values


def read_file(path: str | PathLike[str], where: str) -> bytes | None:
    """Returns the content of a file on this machine or in an object store; None if there is no such file.

    Raises:
      Refusal: 2 if it cannot be read, 4 if the store cannot be reached.
    """
    path = os.fspath(path)
    if "://" in path:
        return _read_object(path, where)
    if not _exists(path, where):
        return None
    try:
        return read_bytes(Path(path), way_out="name another file")
    except Refusal as refusal:
        raise Refusal(BAD_CONFIG, f"{where}: {refusal}") from None


def _exists(path: str, where: str) -> bool:
    """Returns whether there is something of that name on this machine, whatever it is."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Refusal(BAD_CONFIG, f"{where}: cannot be read ({reason}); name another file") from None
    return True


def _read_object(path: str, where: str) -> bytes | None:
    import fsspec

    try:
        with fsspec.open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except (ImportError, ValueError) as error:
        raise Refusal(BAD_CONFIG, f"{where}: {error}; install the missing package, or name a local path") from None
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise Refusal(NO_ACCESS, f"{where}: cannot be reached ({reason}); check name, network, credentials") from None


def _load(name: str, where: str, takes_sweeps: bool) -> dict[str, Config]:
    where = where or f"config {name}"
    path, word = _locate(
        user_path(name, "--config" if where.startswith("--config") else "config") if name else "", where
    )
    if path.endswith(FORMATS):
        return _from_data(path, word, where, takes_sweeps)
    if "://" in path or path.endswith((".yaml", ".yml")):
        raise Refusal(BAD_CONFIG, f"{where}: must be a local Python file, a JSON or TOML file, or a run folder")
    return _from_python(path, word, where, takes_sweeps)


def _locate(name: str, where: str) -> tuple[str, str]:
    """Returns the file that a name stands for, and the word behind its colon."""
    if not name:
        raise Refusal(BAD_CONFIG, f"{where}: names nothing; give a file, a run folder or a published config")
    if "://" in name:
        is_file = name.endswith((*FORMATS, ".py", ".yaml", ".yml"))
        return (name if is_file else f"{name.rstrip('/')}/{RECORD}"), ""
    published = published_configs()
    head, _, tail = name.partition(":")
    for path, word in ((name, ""), (head, tail)):
        if path and _exists(path, where) and not os.path.isdir(path):
            return path, word
        if path in published:
            return str(published[path]), word
    folder = Path(name)
    if (folder / RECORD).is_file():
        return str(folder / RECORD), ""
    if (folder / SWEEP_RECORD).is_file():
        runs = sorted(path.parent.name for path in folder.glob(f"*/{RECORD}"))
        raise Refusal(
            BAD_CONFIG, f"{where}: the folder of a sweep; name one of its runs: {', '.join(runs) or 'none yet'}"
        )
    if folder.is_dir():
        raise Refusal(BAD_CONFIG, f"{where}: a folder without {RECORD}, so no run folder; name a file or a run folder")
    hint = did_you_mean(head, published).removeprefix("; ")
    raise Refusal(BAD_CONFIG, f"{where}: no such file; {hint or 'published configs are ' + ', '.join(published)}")


def _from_data(path: str, word: str, where: str, takes_sweeps: bool) -> dict[str, Config]:
    text = read_file(path, where)
    if text is None:
        raise Refusal(BAD_CONFIG, f"{where}: no such file; a run folder has a {RECORD}")
    _check_digest(path, text, where)
    data = parse_data(text, path, where)
    if isinstance(data, dict) and data.keys() == {_SWEEP}:
        entries = data[_SWEEP] if isinstance(data[_SWEEP], dict) else {}
        runs = {name: config_from_data(entry, f"{where}: {name}") for name, entry in entries.items()}
        return _pick(check_sweep(runs, where), word, where, takes_sweeps)
    if word:
        raise Refusal(BAD_CONFIG, f"{where}: is no sweep, so it has no run {word!r}; leave out :{word}")
    return {"": config_from_data(data, where)}


def _check_digest(path: str, text: bytes, where: str) -> None:
    """Refuses the record of a run folder that is not as the run wrote it."""
    folder, _, name = path.rpartition("/")
    if name != RECORD:
        return
    digests = parse_sums(read_file(f"{folder or '.'}/SHA256SUMS", where) or b"").get(name)
    if digests and hashlib.sha256(text).hexdigest() not in digests:
        raise Refusal(
            BAD_CONFIG, f"{where}: is not as its run wrote it, by SHA256SUMS beside it; restore it from a copy"
        )


def _from_python(path: str, word: str, where: str, takes_sweeps: bool) -> dict[str, Config]:
    # What is no Python file, such as a pipe or a pointer to one, is named as what it is.
    read_file(path, where)
    names = _guarded(lambda: runpy.run_path(path), path, where)
    get_config, get_sweep = names.get("get_config"), names.get("get_sweep")
    if callable(get_sweep) and (takes_sweeps or word or not callable(get_config)):
        runs = check_sweep(_guarded(get_sweep, path, where), where)
        if not word or word in runs or not callable(get_config):
            return _pick(runs, word, where, takes_sweeps)
    if not callable(get_config):
        raise Refusal(BAD_CONFIG, f"{where}: has no get_config() that returns a mossa_jax Config")
    config = _guarded(lambda: get_config(*[word] if word else []), path, where)
    if not isinstance(config, Config):
        raise Refusal(BAD_CONFIG, f"{where}: its get_config() returns no mossa_jax Config")
    # The file may return the same object again; nobody else's changes must reach ours.
    return {"": copy.deepcopy(config)}


def _pick(runs: dict[str, Config], word: str, where: str, takes_sweeps: bool) -> dict[str, Config]:
    """Returns the runs that are asked for: all, or the one that a word names."""
    if word in runs:
        return {"": runs[word]}
    if word:
        hint = did_you_mean(word, runs) or f"; there is {', '.join(list(runs)[:6])}"
        raise Refusal(BAD_CONFIG, f"{where}: no such run in its sweep{hint}")
    if not takes_sweeps:
        name = where.partition("=")[2] or where.removeprefix("config ")
        raise Refusal(
            BAD_CONFIG, f"{where}: a sweep of {len(runs)} runs; name one of them, as {name}:{next(iter(runs))}"
        )
    return runs


def _guarded(call: Callable[[], Any], path: str, where: str) -> Any:
    """Calls what a config file defines; its errors become refusals that name the line."""
    try:
        return call()
    except Refusal as refusal:
        raise Refusal(refusal.code, f"{where}: {refusal}") from None
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        text = error.msg if isinstance(error, SyntaxError) else str(error)
        at = f"line {line}: " if line else ""
        raise Refusal(BAD_CONFIG, f"{where}: {at}{type(error).__name__}: {text}") from None
