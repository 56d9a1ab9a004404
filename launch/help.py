"""Help: what a command's flags and the fields of a config mean."""

from __future__ import annotations

import ast
import re
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from mossa_jax.config import describe_fields

_FIRST = ("config", "workdir")
_SHARED = (
    "processes", "process", "coordinator", "platform", "cpu_devices", "start_timeout", "heartbeat_timeout",
    "compile_cache", "verbosity",
)  # fmt: skip
_LIBRARIES = ("absl", "ml_collections")


def help_text(usage: str) -> str:
    """Returns the help of the command whose flags are defined.

    Args:
      usage: the docstring of the command.
    """
    values = flags.FLAGS
    own = [
        flag.name
        for module, defined in values.flags_by_module_dict().items()
        if module.split(".")[0] not in _LIBRARIES
        for flag in defined
        if flag.name not in (*_FIRST, *_SHARED)
    ]
    lines = [usage.strip(), "", "Flags:"]
    for name in (*(name for name in _FIRST if name in values), *own):
        lines += _flag_lines(values[name])
    lines += ["", "Flags of every command:"]
    for name in _SHARED:
        lines += _flag_lines(values[name])
    if "config" in values:
        lines += ["", "Fields of the config, each of which is a flag, too:"]
        for entry in describe_fields():
            lines += _entry(f"--config.{entry.name}", entry.type, entry.default, entry.text)
    return "\n".join(lines)


def show(text: str) -> None:
    """Prints a text, and does not leave it to the end of the process to find that it cannot be written."""
    print(text, flush=True)


def summary(source: Path) -> str:
    """Returns the first paragraph of a source file's docstring as one line, without importing the file."""
    text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def _flag_lines(flag: flags.Flag) -> Iterator[str]:
    choices = getattr(flag.parser, "enum_values", None)
    kind = " | ".join(filter(None, choices)) if choices else flag.flag_type().replace("string", "str")
    is_config = flag.name == "config"
    default = "" if flag.default is None or is_config else (flag.default_as_str or "").strip("'")
    text = re.sub(r"^<.*?>: ", "", flag.help or "")  # absl puts the choices of an enum in front
    yield from _entry(f"--{flag.name}", "file, run folder or name" if is_config else kind, default, text)


def _entry(flag: str, kind: str, default: str, text: str) -> Iterator[str]:
    yield f"  {flag}  ({kind}" + (f"; default {default})" if default else ")")
    width = min(max(shutil.get_terminal_size().columns, 60), 120)
    yield from textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
