"""Single files of the hub's data sets: each fetched once, by one process of a machine, and proven whole."""

from __future__ import annotations

import hashlib
import re
from functools import partial
from pathlib import Path

import filelock

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files.cache import cache_root
from mossa_jax.files.hub import WAITS, Repository, is_offline, refusal, retried
from mossa_jax.files.names import digest
from mossa_jax.processes.watchdog import unlimited

_GIT_SHA1, _SHA256 = r"[0-9a-f]{40}", r"[0-9a-f]{64}"


def download(name: str, file: str, commit: str, content: str = "") -> Path:
    """Fetches a file of a data set into the hub library's cache: whole, and once, by one process of a machine.

    Args:
      name: hub id.
      file: path in the repository.
      commit: a commit's full hash, as `list_files` gives it.
      content: the content's digest, as `list_files` gives it; a file that does not match is fetched again.

    Raises:
      Refusal: 3 when the file cannot be fetched whole; 4 when we may not read it; 6 when the disk is full.
    """
    lock = cache_root() / "hub" / f"{digest([name, file, commit])}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with unlimited():
        held = filelock.FileLock(str(lock)).acquire()
    with held:
        try:
            return retried(partial(_download_once, name, file, commit, content))
        except Refusal:
            raise
        except Exception as error:
            raise refusal(Repository(name), error, file) from None


def _download_once(name: str, file: str, commit: str, content: str) -> Path:
    """Makes one attempt at a file of a data set."""
    from huggingface_hub import constants, hf_hub_download

    path = Path(
        hf_hub_download(
            name, file, repo_type="dataset", revision=commit, endpoint=constants.ENDPOINT, tqdm_class=_bounded_bar()
        )
    )
    if _is_whole(path, content):
        return path
    if is_offline():
        raise Refusal(BAD_INPUT, f"{path} is damaged; unset HF_HUB_OFFLINE to fetch it again, or give a local folder")
    path.resolve().unlink()
    path.unlink(missing_ok=True)
    raise OSError(f"{file} came with another content than the hub names")


def _bounded_bar() -> type:
    """The library's progress bar, which ends a download that starts over again and again.

    Where a server sends the whole file again instead of the rest of it and is cut off each time, the library itself
    would never end: it counts attempts anew as soon as a byte has come.
    """
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        starts = 0

        def update(self, n: float = 1) -> bool | None:
            if n < 0:
                self.starts += 1
                if self.starts == len(WAITS):
                    raise ConnectionError(f"the connection broke {self.starts} times, and each time from the start")
            return super().update(n)

    return Bar


def _is_whole(path: Path, content: str) -> bool:
    """Whether a file's content has that digest; a proof of it stands for as long as the file is unchanged."""
    if not re.fullmatch(f"{_GIT_SHA1}|{_SHA256}", content):
        return True
    state = path.stat()
    proof = cache_root() / "whole" / digest([str(path.resolve()), content, state.st_size, state.st_mtime_ns])
    if proof.exists():
        return True
    with path.open("rb") as blob:
        if re.fullmatch(_SHA256, content):
            computed = hashlib.file_digest(blob, "sha256").hexdigest()
        else:
            computed = hashlib.sha1(b"blob %d\0" % state.st_size + blob.read()).hexdigest()
    if computed == content:
        proof.parent.mkdir(parents=True, exist_ok=True)
        proof.touch()
    return computed == content
