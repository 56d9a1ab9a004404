"""Facts that the processes of a run must have in common before they compute together, and what differs among them.

Process 0 compares them while the processes meet (`rendezvous.py`): processes that were started with other settings
would train on and give a table that no configuration describes, or wait for each other inside a collective for ever.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import stat
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from mossa_jax.errors import BAD_CONFIG, BAD_INPUT, Refusal

Facts = dict[str, dict[str, Any]]
"""Group (one of `_GROUPS`) -> name -> value, ready for JSON."""

# What a difference means: the exit code, and the way out. In this order they are compared.
_GROUPS = {
    "program": (BAD_CONFIG, "install and set the same on all hosts"),
    "command": (BAD_CONFIG, "start all processes by the same command"),
    "config": (BAD_CONFIG, "give all processes the same configuration"),
    "files": (BAD_INPUT, "give all hosts the same files"),
}
_PACKAGES = (
    "mossa_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "ml_dtypes",
    "transformers",
    "tokenizers",
)
# Options of JAX on which programs rest; an environment variable may set each of them.
_OPTIONS = (
    "jax_platforms", "jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl",
    "jax_threefry_partitionable", "jax_numpy_dtype_promotion", "jax_disable_jit", "jax_debug_nans", "jax_debug_infs",
    "jax_enable_compilation_cache",
)  # fmt: skip
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_CPU_COLLECTIVES_IMPLEMENTATION")

_WHOLE = 4 << 20  # bytes up to which a file is read whole
_SAMPLES, _SAMPLE = 64, 1 << 16  # how many parts of a larger one are read, and their bytes
_MOST_FILES = 20_000  # in a folder


def program_facts() -> dict[str, Any]:
    """Returns what this process runs: versions, the source of this package, options of JAX and XLA."""
    import jax

    config: Any = jax.config  # its options are declared at run time
    return {
        **{name: _version(name) for name in _PACKAGES},
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "the source of mossa_jax": source_digest(),
        **{name: getattr(config, name, None) for name in _OPTIONS},
        "jax_compilation_cache_dir": "set" if config.jax_compilation_cache_dir else "not set",
        **{name: os.environ.get(name) for name in _VARIABLES},
    }


def source_digest(folder: Path = Path(__file__).parents[1]) -> str:
    """Returns a digest of the Python files below a folder, 12 hex digits."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode(errors="surrogateescape"))
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def file_facts(name: str, path: str) -> dict[str, str]:
    """Returns what a file, or each file below a folder, holds: `name/relative` -> bytes and a digest.

    Of a file above 4 MiB the digest is over 64 parts of 64 KiB that are spread over it: all hosts look at the files of
    a model at the same time, and whoever reads a file reads it whole soon enough. Hidden files are left out.

    Args:
      name: of the flag or field that names it.
      path: local.
    """
    if not os.path.isdir(path):
        return {name: _describe(path)} if os.path.exists(path) else {}
    facts: dict[str, str] = {}
    for relative in _files_below(path):
        if len(facts) == _MOST_FILES:
            break
        facts[f"{name}/{relative}"] = _describe(os.path.join(path, relative))
    return facts


def difference(who: str, own: Mapping[str, Mapping[str, Any]], other: Mapping[str, Any]) -> Refusal | None:
    """Returns the refusal of a run whose processes differ; None if they do not.

    Args:
      who: the other process, for the message.
      own: facts of process 0.
      other: those that the other process sent.
    """
    for group, (code, way_out) in _GROUPS.items():
        theirs = other.get(group)
        reason = first_difference(who, own.get(group, {}), theirs if isinstance(theirs, dict) else {})
        if reason:
            return Refusal(code, f"{reason}; {way_out}")
    return None


def first_difference(who: str, own: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Says in what another process's facts differ from those of process 0; "" if they do not."""
    # As JSON has them: one process has a tuple where another one's list arrived. 2 and 2.0 are the same.
    own, other = json.loads(json.dumps(dict(own))), json.loads(json.dumps(dict(other)))
    names = [name for name in {**own, **other} if (name in own, own.get(name)) != (name in other, other.get(name))]
    if not names:
        return ""
    more = f" (and {len(names) - 1} more: {', '.join(names[1:4])}{', ...' if len(names) > 4 else ''})"
    first = names[0]
    words = f"{who} has {first}={_text(other, first)}, process 0 has {_text(own, first)}"
    return words + (more if len(names) > 1 else "")


def _text(facts: Mapping[str, Any], name: str) -> str:
    if name not in facts:
        return "nothing"
    text = json.dumps(facts[name], sort_keys=True, ensure_ascii=False)
    if len(text) > 200:
        # A long value differs where nobody sees it in a line.
        return f"{text[:160]}... ({hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:12]})"
    return text


def digest_of(facts: Any) -> str:
    """Returns the digest of facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _files_below(folder: str) -> Iterator[str]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(each for each in folders if not each.startswith((".", "__pycache__")))
        for name in sorted(names):
            if not name.startswith("."):
                yield os.path.relpath(os.path.join(parent, name), folder)


def _describe(path: str) -> str:
    """Returns the size and a digest of a file; what is in the way where it cannot be read."""
    digest = hashlib.sha256()
    try:
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode):
            return "no regular file"
        size = about.st_size
        with open(path, "rb", buffering=0) as file:
            if size <= _WHOLE:
                digest.update(file.read(_WHOLE))
            else:
                for number in range(_SAMPLES):
                    # The first part and the last are among them.
                    file.seek(number * (size - _SAMPLE) // (_SAMPLES - 1))
                    digest.update(file.read(_SAMPLE))
    except OSError as error:
        return error.strerror or type(error).__name__
    return f"{size:,} bytes ({digest.hexdigest()[:12]})"
