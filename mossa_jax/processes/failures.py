"""Errors of the system and of libraries, told as refusals: one line and one exit code, whichever command meets them.

This is for errors that the world causes: paths, disks, networks, memory, packages that are not installed, damaged
files. An error of the program itself is none of these; it keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import re
import socket

from mossa_jax.errors import BAD_CONFIG, BAD_INPUT, DISK, NO_ACCESS, Refusal

_OF_A_PATH = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP,
    errno.EINVAL, errno.EEXIST, errno.ENOTEMPTY, errno.EBUSY, errno.EXDEV, errno.ENODEV, errno.ENXIO, errno.ETXTBSY,
    errno.EILSEQ, errno.ENOTSUP, errno.ESPIPE,
}  # fmt: skip
_OF_A_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE}
_OF_FULL_DISK = {errno.ENOSPC, errno.EDQUOT}
_OF_A_NETWORK = {
    errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH,
    errno.EHOSTDOWN, errno.ENETDOWN, errno.EADDRNOTAVAIL,
}  # fmt: skip
_OF_MEMORY = (
    "needs more memory than there is ({}); give it less at once (fewer rows, tasks or slots), or a larger machine"
)

# Packages that an extra of this one brings, by the name under which they are imported.
_EXTRAS = {
    "gcsfs": "mossa_jax[gcs]", "s3fs": "mossa_jax[s3]", "tensorboardX": "mossa_jax[track]", "wandb": "mossa_jax[track]",
    "libtpu": "mossa_jax[plan]",
}  # fmt: skip
_PACKAGES = {"google": "protobuf", "PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn"}
# Libraries whose own errors speak of a file that they were given.
_READERS = ("pyarrow", "safetensors", "zstandard")
# Those whose own errors speak of a store or a service that does not answer as it should.
_SERVICES = (
    "requests", "httpx", "httpx2", "httpcore", "aiohttp", "urllib3", "gcsfs", "s3fs", "botocore", "aiobotocore",
    "huggingface_hub",
)  # fmt: skip


def explain(error: BaseException) -> Refusal | None:
    """Returns the refusal that tells an error which the world caused; None for an error of the program itself.

    Args:
      error: as it was caught. What it was raised from is looked at where it says nothing itself.
    """
    if isinstance(error, Refusal):
        return error
    if isinstance(error, OSError):
        return _of_system(error)
    if isinstance(error, ImportError):
        return _of_package(error)
    if isinstance(error, MemoryError):
        return Refusal(BAD_CONFIG, f"the work {_OF_MEMORY.format(first_line(error))}")
    text = first_line(error)
    if text.startswith("RESOURCE_EXHAUSTED"):
        return Refusal(BAD_CONFIG, f"a device {_OF_MEMORY.format(text)}")
    if _is_of(error, _SERVICES):
        return _of_service(error, text)
    if _is_of(error, _READERS):
        return Refusal(BAD_INPUT, f"a file cannot be read ({type(error).__name__}: {text}); mend it, or name another")
    if (number := _number_in(error)) is not None:
        return _of_system(OSError(number, text))
    return None


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its type's name if it has none."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)


def _of_system(error: OSError) -> Refusal:
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    place, reason = " and ".join(names), error.strerror or first_line(error)
    where = f"{place}: {reason}" if place else reason
    if error.errno in _OF_FULL_DISK:
        return Refusal(DISK, f"no space left ({where}); free some and run the same command again")
    if error.errno in _OF_A_DISK:
        limit = (
            " (a limit of this session, see `ulimit -f`, or of the file system)" if error.errno == errno.EFBIG else ""
        )
        return Refusal(DISK, f"the disk failed ({where}){limit}; see to it and run the same command again")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return Refusal(BAD_CONFIG, f"too many open files ({where}); raise the limit: ulimit -n 4096")
    if error.errno == errno.ENOMEM:
        return Refusal(BAD_CONFIG, f"the work {_OF_MEMORY.format(where)}")
    if error.errno == errno.EAGAIN:
        return Refusal(BAD_CONFIG, f"the system has no room for another process or thread ({where}); see ulimit -u")
    is_of_network = isinstance(error, ConnectionError | TimeoutError | socket.gaierror) and not isinstance(
        error, BrokenPipeError
    )
    if is_of_network or error.errno in _OF_A_NETWORK or _is_of(error, _SERVICES):
        return _of_service(error, where)
    if error.errno in _OF_A_PATH:
        return Refusal(BAD_CONFIG, f"{where}; name another place")
    # Libraries raise it with words alone, about a file that they were given.
    return Refusal(BAD_INPUT, f"a file cannot be read or written ({type(error).__name__}: {where}); name another")


def _of_service(error: BaseException, reason: str) -> Refusal:
    return Refusal(NO_ACCESS, f"no connection ({type(error).__name__}: {reason}); check the network, and try again")


def _of_package(error: ImportError) -> Refusal | None:
    package = (error.name or "").partition(".")[0]
    if package in ("mossa_jax", "launch"):
        return None
    if not package or not isinstance(error, ModuleNotFoundError):
        # A library's words about a package that it would need, or a version that does not fit.
        return Refusal(BAD_CONFIG, f"{first_line(error)}; install what is missing, or the versions of setup.py")
    wanted = _EXTRAS.get(package, _PACKAGES.get(package, package))
    return Refusal(BAD_CONFIG, f"the package {package} is not installed; pip install '{wanted}'")


def _is_of(error: BaseException, libraries: tuple[str, ...]) -> bool:
    """Returns whether an error's type, or one that it extends, is defined by one of these libraries."""
    return any(kind.__module__.partition(".")[0] in libraries for kind in type(error).__mro__)


def _number_in(error: BaseException) -> int | None:
    """Returns the errno that libraries in other languages put into the text of an error."""
    text = str(error)
    match = re.search(r"\((?:os error|errno) (\d+)\)|\[Errno (\d+)\]", text)
    if match:
        return int(match[1] or match[2])
    return next((number for number in sorted(_OF_A_DISK) if f": {os.strerror(number)}" in text), None)
