"""The console command `mossa`: every command of this folder under one name.

mossa                           lists the commands
mossa COMMAND --help            lists the flags of a command, and the fields of a config
mossa COMMAND [--FLAG=VALUE]    runs a command
mossa configs                   lists the published configs, which --config finds by name
"""

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from mossa_jax import __version__
from mossa_jax.config import published_configs
from mossa_jax.errors import BAD_CONFIG, INTERNAL
from mossa_jax.processes.failures import explain
from mossa_jax.processes.streams import settle_streams

from .help import show, summary

_COMMANDS = (
    "run", "tasks", "tune", "compare", "report", "runs", "export", "plan", "bench_cka", "bench_tuning",
    "bench_forward", "bench_token", "bench_load", "bench_device", "bench_findings",
)  # fmt: skip


def main() -> None:
    """Runs the command that the first word names, or lists the commands."""
    settle_streams()
    folder = Path(__file__).parent
    files = {name: folder / f"{name}.py" for name in _COMMANDS if (folder / f"{name}.py").is_file()}
    word = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if word in files:
        sys.argv = [f"mossa {word}", *sys.argv[2:]]
        command = import_module(f".{word}", __package__)
        command.run(command.main)
    elif word == "configs":
        _show(_lines(published_configs()))
    elif word in ("help", "--help", "-h"):
        _show(
            f"mossa COMMAND [--FLAG=VALUE ...]\n\nCommands:\n{_lines(files)}\n"
            "  configs        Lists the published configs, which --config finds by name.\n\n"
            "mossa COMMAND --help lists the flags of a command, and the fields of a config."
        )
    elif word == "--version":
        _show(f"mossa_jax {__version__}")
    else:
        print(f"error: mossa {word}: no such command; there are {', '.join([*files, 'configs'])}", file=sys.stderr)
        sys.exit(BAD_CONFIG)


def _show(text: str) -> None:
    try:
        show(text)
    except OSError as error:
        refusal = explain(error)
        print(f"error: {refusal}", file=sys.stderr)
        sys.exit(refusal.code if refusal else INTERNAL)


def _lines(files: Mapping[str, Path]) -> str:
    """One line per file: its name, and what its docstring says first."""
    width = max(map(len, files), default=0)
    return "\n".join(f"  {name:<{width}}  {summary(file)}" for name, file in files.items())


if __name__ == "__main__":
    main()
