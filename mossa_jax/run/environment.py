"""What a command runs on: versions of the packages, the commit of this one, devices, and the command itself."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

_PACKAGES = "mossa_jax jax jaxlib flax optax orbax-checkpoint transformers datasets numpy".split()
_SECONDS = 10
"""How long git may take, on a file system that is slow."""


def environment() -> dict[str, Any]:
    """Returns versions, commit, devices and the command, for the record."""
    return {
        "command": command(sys.argv),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "commit": commit(Path(__file__).parents[1]),
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
    }


def command(argv: Sequence[str]) -> str:
    """Returns the command line as one types it; `python -m launch.run` and `mossa run` both appear as such."""
    folder, script = os.path.split(argv[0])
    if argv[0].startswith("mossa "):
        return shlex.join([*argv[0].split(), *argv[1:]])
    if os.path.basename(folder) == "launch" and script.endswith(".py"):
        return shlex.join(["python", "-m", f"launch.{script.removesuffix('.py')}", *argv[1:]])
    return shlex.join([os.path.basename(sys.executable), *argv])


def commit(package: Path) -> str:
    """Returns the git commit of a package's source, with "and changes" if files differ from it; "" if there is none.

    An installed package has no commit, even where a repository lies around it that knows nothing of its files.
    """
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return ""
    head = _git(package, "rev-parse", "HEAD")
    if head is None:
        return ""
    return head if _git(package, "status", "--porcelain", "--", ".") == "" else f"{head} and changes"


def _git(folder: Path, *arguments: str) -> str | None:
    """Returns what git says in a folder; None if it fails, or is not there."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
