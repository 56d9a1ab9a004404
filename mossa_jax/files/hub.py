"""Files of the Hugging Face hub: fetched through its library's cache, proven whole, and refused in one line."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import filelock

from mossa_jax.errors import BAD_INPUT, DISK, NO_ACCESS, Refusal
from mossa_jax.files.cache import cache_root
from mossa_jax.files.names import digest
from mossa_jax.files.write import write_text
from mossa_jax.log import log
from mossa_jax.processes.watchdog import unlimited

Result = TypeVar("Result")

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds between attempts; each is stretched or shortened by up to a half, lest many machines ask at once."""
_LONGEST_WAIT = 30.0
# Statuses below 500 that say "later", not "no".
_LATER = (408, 429)
_GIT_SHA1, _SHA256 = r"[0-9a-f]{40}", r"[0-9a-f]{64}"


def check_id(name: str) -> None:
    """Refuses (3) what cannot be a hub id."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise Refusal(BAD_INPUT, f"{name!r} is neither a folder here nor a hub id; give one of them") from None


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids requests."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def list_files(name: str, revision: str | None = None) -> tuple[str, dict[str, str]]:
    """The commit that a revision of a data set stands for, and its files: path -> digest of the content.

    One request, and another one where the data set is gated. Where the hub does not answer, the files in the cache are
    listed, with a warning; with HF_HUB_OFFLINE only these are. The digest is what the hub names: the SHA-256 of a large
    file, the git blob SHA-1 of a small one; empty where it is not known.

    Raises:
      Refusal: 3 when there is no such revision or the hub cannot be reached; 4 when the data set is gated, private or
        missing.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import RevisionNotFoundError

    check_id(name)
    if is_offline():
        cached = _cached_files(name, revision)
        if cached is None:
            raise Refusal(
                BAD_INPUT,
                f"HF_HUB_OFFLINE is set and {at(name, revision)} is not in the cache {constants.HF_HUB_CACHE}; "
                "unset it to download, or give a local folder",
            )
        return cached
    try:
        commit, files = retried(partial(_listed_files, name, revision))
    except RevisionNotFoundError:
        raise Refusal(
            BAD_INPUT,
            f"hub data set {name} has no revision {revision!r}; give a branch, tag or commit that "
            f"{_page('data set', name)} lists",
        ) from None
    except Exception as error:  # each transport, proxy and version of the library has errors of its own
        cached = _cached_files(name, revision)
        if cached is None:
            raise _data_refusal(name, error) from None
        log.warning("%s cannot be had from the hub (%s); the files in the cache are used", name, why(error))
        return cached
    _remember(name, revision, commit)
    return commit, files


def download(name: str, file: str, commit: str, content: str = "") -> Path:
    """A file of a data set, in the hub library's cache: whole, and downloaded once by one process of a machine.

    Args:
      name: hub id.
      file: path in the repository.
      commit: a commit's full hash, as `list_files` gives it.
      content: the content's digest, as `list_files` gives it; a file that does not fit is fetched again.

    Raises:
      Refusal: 3 when the file cannot be had whole; 4 when we may not read it; 6 when the disk is full.
    """
    lock = cache_root() / "hub" / f"{digest([name, file, commit])}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with unlimited():
        held = filelock.FileLock(str(lock)).acquire()
    with held:
        try:
            return retried(partial(_whole_file, name, file, commit, content))
        except Refusal:
            raise
        except Exception as error:
            raise _data_refusal(name, error, file) from None


def retried(request: Callable[[], Result]) -> Result:
    """What `request` returns, asked for again, with growing waits, while its errors are of the kind that passes."""
    for wait in WAITS:
        try:
            with unlimited():
                return request()
        except Exception as error:
            if not _may_pass(error):
                raise
            wait = max(wait * random.uniform(0.5, 1.5), min(_asked_wait(error), _LONGEST_WAIT))
            log.info("%s; trying again in %.0f s", why(error), wait)
            time.sleep(wait)
    with unlimited():
        return request()


def refusal(kind: str, name: str, error: Exception, instead: str, file: str = "") -> Refusal:
    """Why a model or data set cannot be had, and what to do about it.

    Args:
      kind: "model" or "data set".
      name: hub id.
      error: what the hub's library raised.
      instead: what else could be used where access is denied.
      file: the one of its files that was asked for, if it was one.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    if disk_full(error):
        return Refusal(
            DISK, f"no space left in {constants.HF_HUB_CACHE} for {name}; free some or set HF_HUB_CACHE, run again"
        )
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # why the library looked in its cache at all
    status = _status(error)
    said = " ".join((getattr(error, "server_message", None) or "").split())[:200]
    if isinstance(error, GatedRepoError):
        state = "is gated"
    elif isinstance(error, RepositoryNotFoundError) or status == 404:
        state, said = "does not exist or is private", ""
    elif status in (401, 403):
        state = "is closed to us"
    else:
        what = f"{file} of {name}" if file else f"{name} is no folder here and"
        return Refusal(
            BAD_INPUT,
            f"{what} cannot be had from the hub {constants.ENDPOINT} ({why(error)}); give a "
            f"local folder, or download it where there is a network and use that cache (HF_HUB_CACHE, now "
            f"{constants.HF_HUB_CACHE}) with HF_HUB_OFFLINE=1",
        )
    reason = (said or "the token in use does not open it") if get_token() else "no token is set"
    return Refusal(
        NO_ACCESS,
        f"hub {kind} {name} {state} ({reason}): see {_page(kind, name)}, ask for access there and set "
        f"HF_TOKEN to a token that may read it; or {instead}",
    )


def why(error: Exception) -> str:
    """An error in one line."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    return f"{type(error).__name__}: {first}"


def at(name: str, revision: str | None) -> str:
    """A repository and its revision, for people."""
    return name if revision is None else f"{name} at revision {revision!r}"


def disk_full(error: Exception) -> bool:
    """Whether an error says that a disk or quota is full; libraries in other languages only have it in their text."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)


def _page(kind: str, name: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{name}" if kind == "model" else f"{constants.ENDPOINT}/datasets/{name}"


def _data_refusal(name: str, error: Exception, file: str = "") -> Refusal:
    return refusal("data set", name, error, "give a local folder of the same files", file)


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _may_pass(error: Exception) -> bool:
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    status = _status(error)
    if status is not None:
        return status in _LATER or status >= 500
    # LocalEntryNotFoundError comes after attempts of the library's own.
    lasting = isinstance(error, (Refusal, LocalEntryNotFoundError, OfflineModeIsEnabled, PermissionError))
    return not lasting and not disk_full(error)


def _asked_wait(error: Exception) -> float:
    headers = getattr(getattr(error, "response", None), "headers", {})
    asked = headers.get("Retry-After", "")
    return float(asked) if asked.isdecimal() else 0.0


def _listed_files(name: str, revision: str | None) -> tuple[str, dict[str, str]]:
    from huggingface_hub import HfApi, constants

    api = HfApi(endpoint=constants.ENDPOINT)
    info = api.dataset_info(name, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT, files_metadata=True)
    if info.gated:  # anyone may list it
        api.auth_check(name, repo_type="dataset")
    files = {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id or "" for file in info.siblings}
    return info.sha, files


def _storage(name: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="dataset")


def _remember(name: str, revision: str | None, commit: str) -> None:
    """Writes down which commit a branch or tag stands for, where the library looks for it without a network."""
    if revision != commit:
        with contextlib.suppress(OSError):  # a cache that others keep may be read-only
            write_text(_storage(name) / "refs" / (revision or "main"), commit)


def _cached_files(name: str, revision: str | None) -> tuple[str, dict[str, str]] | None:
    ref = _storage(name) / "refs" / (revision or "main")
    commit = ref.read_text().strip() if ref.is_file() else revision or "main"
    folder = _storage(name) / "snapshots" / commit
    if not folder.is_dir():
        return None
    files = {}
    for path in folder.rglob("*"):
        if path.is_file():
            # A snapshot's files are links to blobs that are called by their digest.
            files[path.relative_to(folder).as_posix()] = Path(os.readlink(path)).name if path.is_symlink() else ""
    return commit, files


def _whole_file(name: str, file: str, commit: str, content: str) -> Path:
    """One attempt at a file."""
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
    """Whether a file's content has that digest; what was found so is not read again while it stays as it is."""
    if not re.fullmatch(f"{_GIT_SHA1}|{_SHA256}", content):
        return True
    state = path.stat()
    proof = cache_root() / "whole" / digest([str(path.resolve()), content, state.st_size, state.st_mtime_ns])
    if proof.exists():
        return True
    with path.open("rb") as blob:
        if re.fullmatch(_SHA256, content):
            found = hashlib.file_digest(blob, "sha256").hexdigest()
        else:
            found = hashlib.sha1(b"blob %d\0" % state.st_size + blob.read()).hexdigest()
    if found == content:
        proof.parent.mkdir(parents=True, exist_ok=True)
        proof.touch()
    return found == content
