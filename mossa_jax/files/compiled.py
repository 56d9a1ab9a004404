"""Compiled programs that are kept from one run to the next, for the commands of `launch`.

JAX has a cache of compiled programs, but writes its files in place: a process that is killed leaves half a program,
which every later run compiles again. With a limit of its size JAX also locks the folder for every read, and a folder
that cannot be written then keeps nothing. So JAX gets a path here (`etils.epath` lets a package register its own) whose
files are `Entries`.
"""

from __future__ import annotations

import hashlib
import platform
import secrets
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import jax
import jaxlib
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.files.entries import Entries
from mossa_jax.files.paths import as_path, cache_root
from mossa_jax.log import log
from mossa_jax.processes import agreement

OFF = "none"
"""The name that keeps nothing."""

LIMIT = 2 << 30
"""Bytes that kept programs take on a disk; `JAX_COMPILATION_CACHE_MAX_SIZE` sets another limit."""

_LABEL = "compiled programs"
_SCHEME = "kept"
_CPU_INFO = Path("/proc/cpuinfo")
_CPU = ("model name", "flags", "Features", "CPU implementer", "CPU part")

# By the parts of the path that JAX is given.
_folders: dict[tuple[str, ...], Entries] = {}


def keep_compiled(folder: str = "") -> None:
    """Makes JAX keep every compiled program, and reuse it in later runs on the same hardware and versions.

    Process 0 writes and all read. Several processes use a folder only if all of them see the same one: GPUs that
    compile together would wait for a process that has its program already.

    Args:
      folder: on a disk or in any store that fsspec knows; "" for the cache's own, unless JAX is configured to keep
        programs somewhere already; "none" to keep none.

    Raises:
      Refusal: 2 when fsspec does not know the folder's scheme.
    """
    if folder == OFF:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if not folder and not _is_free():
        return
    try:
        root = as_path(folder) if folder else epath.Path(cache_root() / "compiled")
        entries = Entries(_LABEL, root.expanduser() / machine(), _limit())
    except (ImportError, ValueError) as error:
        raise Refusal(BAD_CONFIG, f"--compile_cache={folder}: {error}; name a local folder or gs://...") from None
    entries.create()
    if jax.process_count() > 1 and not _all_see(entries):
        log.info("%s: not every process sees %s, so none are kept; --compile_cache=DIR", _LABEL, entries.folder)
        return
    path = _KeptPath(f"{_SCHEME}://{entries.folder}")
    _folders[path.parts] = entries
    options = {
        "jax_compilation_cache_dir": f"{_SCHEME}://{entries.folder}",
        # Programs of any size and compile time: a later run then compiles nothing at all.
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_compilation_cache_max_size": -1,  # `Entries` has the limit
        # XLA's own files beside them have no limit, are written by all processes, and only on a disk; and the folder's
        # name would be part of every program's key.
        "jax_persistent_cache_enable_xla_caches": "none",
    }
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX reads these options once


def is_kept() -> bool:
    """Returns whether JAX keeps compiled programs."""
    config: Any = jax.config  # its options are declared at run time
    return bool(config.jax_compilation_cache_dir) and config.jax_enable_compilation_cache


def machine() -> str:
    """Names all that a compiled program depends on beside JAX's own key.

    That key lacks the features of the CPU, which programs for CPUs are compiled for, and the versions of the libraries
    of a GPU or TPU, parts of which are in the program.
    """
    if _CPU_INFO.is_file():
        processor = sorted({line for line in _CPU_INFO.read_text().splitlines() if line.startswith(_CPU)})
    else:
        processor = [platform.processor(), platform.node()]  # features unknown: this machine's programs are its own
    backend = jax.default_backend()
    libraries = [] if backend == "cpu" else _libraries()
    described = "\n".join(
        [platform.machine(), *processor, jaxlib.__version__, jax.devices()[0].client.platform_version, *libraries]
    )
    return f"jax-{jax.__version__}-{backend}-{hashlib.sha256(described.encode()).hexdigest()[:12]}"


def _libraries() -> list[str]:
    """Returns the installed packages of accelerators, with their versions."""
    names = {(str(package.metadata["Name"]).lower(), package.version) for package in metadata.distributions()}
    return sorted(f"{name} {version}" for name, version in names if name.startswith(("jax-", "nvidia-", "libtpu")))


def _is_free() -> bool:
    """Returns whether JAX is configured neither to keep programs in some folder, nor to keep none."""
    config: Any = jax.config
    return config.jax_enable_compilation_cache and not config.jax_compilation_cache_dir


def _limit() -> int:
    config: Any = jax.config
    size = config.jax_compilation_cache_max_size
    return LIMIT if size == -1 else size


def _all_see(entries: Entries) -> bool:
    """Returns whether all processes see one folder; all call this together."""
    # What process 0 writes, the others find. Whoever finds it has the same folder: the name is drawn anew each time.
    number = secrets.randbits(60)
    if jax.process_index() == 0:
        entries.write(f"meeting-{number}", b"")
    name = f"meeting-{agreement.everywhere(number)[0]}"
    is_seen = all(agreement.everywhere(int(entries.read(name) is not None)))
    if jax.process_index() == 0:
        entries.delete(name)
    return is_seen


@epath.register_path_cls(f"{_SCHEME}://")
class _KeptPath(epath.Path):
    """The path of a folder of `Entries`, or of one entry in it, with what JAX's cache asks of a path."""

    _value: bytes | None = None

    @property
    def _entries(self) -> Entries:
        return _folders[self.parent.parts]

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: `keep_compiled` creates the folder."""

    def exists(self) -> bool:
        """Returns whether there is such an entry, and it is complete."""
        self._value = self._entries.read(self.name)
        return self._value is not None

    def read_bytes(self) -> bytes:
        """Returns the entry's content. JAX asks first whether it exists, and must get what was there then."""
        if self._value is None and not self.exists():
            raise FileNotFoundError(self.name)
        assert self._value is not None
        return self._value

    def write_bytes(self, data: Any) -> int:
        """Writes the entry."""
        self._entries.write(self.name, bytes(data))
        return len(data)

    def expanduser(self) -> _KeptPath:
        """Returns the path itself."""
        return self

    resolve = absolute = expanduser

    def _unsupported(self, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(f"{self}: JAX reads and writes kept programs whole")

    open = iterdir = glob = walk = is_dir = stat = rmtree = rmdir = unlink = rename = replace = copy = _unsupported
