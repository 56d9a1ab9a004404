"""Models and data sets of the Hugging Face hub: listed, fetched through its library's cache, or refused in one line.

Where the hub does not answer, the copy in the cache is used, with one warning line; with HF_HUB_OFFLINE only that copy
is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from mossa_jax.errors import BAD_INPUT, DISK, NO_ACCESS, Refusal
from mossa_jax.files.write import write_text
from mossa_jax.log import log
from mossa_jax.processes.watchdog import unlimited

Result = TypeVar("Result")

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds between attempts; each is stretched or shortened by up to a half, lest many machines ask at once."""
_LONGEST_WAIT = 30.0
# Statuses below 500 that say "later", not "no".
_LATER = (408, 429)


@dataclass(frozen=True)
class Repository:
    """A model or data set of the hub at a revision.

    Attributes:
      name: hub id, org/name.
      revision: branch, tag or commit; None for the main branch.
      repo_type: as the hub's library calls it.
      probe: a file that tells, when it is asked for, whether we may read the repository; "" asks the hub's own check.
      instead: for refusals: what to do where access is denied.
    """

    name: str
    revision: str | None = None
    repo_type: Literal["model", "dataset"] = "dataset"
    probe: str = ""
    instead: str = "give a local folder of the same files"

    @property
    def kind(self) -> str:
        """The word for people: "model" or "data set"."""
        return "model" if self.repo_type == "model" else "data set"

    @property
    def label(self) -> str:
        """Name and revision, for people."""
        return self.name if self.revision is None else f"{self.name} at revision {self.revision!r}"

    @property
    def page(self) -> str:
        """The address of its page."""
        from huggingface_hub import constants

        folder = "" if self.repo_type == "model" else "datasets/"
        return f"{constants.ENDPOINT}/{folder}{self.name}"

    @property
    def cached(self) -> Path:
        """Its folder in the hub library's cache, which need not exist."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self.name, repo_type=self.repo_type)

    def snapshot(self) -> Path | None:
        """The folder in the cache with those files of this revision that were downloaded, if there is one."""
        ref = self.cached / "refs" / (self.revision or "main")
        commit = ref.read_text().strip() if ref.is_file() else self.revision or "main"
        folder = self.cached / "snapshots" / commit
        return folder if folder.is_dir() else None


class Listing(NamedTuple):
    """The files of a repository at one commit.

    Attributes:
      commit: full hash.
      files: path -> digest of the content as the hub gives it: the SHA-256 of a large file, the git blob SHA-1 of a
        small one; empty where it is not known.
    """

    commit: str
    files: dict[str, str]


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


def from_hub_or_cache(
    repository: Repository, ask_hub: Callable[[], Result], look_in_cache: Callable[[], Result | None]
) -> Result:
    """Asks the hub for something of a repository, and where the hub does not give it, the cache.

    Args:
      repository: of the hub.
      ask_hub: its refusals are passed on; any other error of it means that the hub does not give it.
      look_in_cache: returns None where the cache does not have it.

    Raises:
      Refusal: 3 when there is no such revision, or neither the hub nor the cache gives it; 4 when the repository is
        gated, private or missing.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import RevisionNotFoundError

    check_id(repository.name)
    if is_offline():
        cached = look_in_cache()
        if cached is None:
            raise Refusal(
                BAD_INPUT,
                f"HF_HUB_OFFLINE is set and {repository.label} is not whole in the cache {constants.HF_HUB_CACHE}; "
                "unset it to download, or give a local folder",
            )
        return cached
    try:
        return ask_hub()
    except Refusal:
        raise
    except RevisionNotFoundError:
        raise Refusal(
            BAD_INPUT,
            f"hub {repository.kind} {repository.name} has no revision {repository.revision!r}; give a branch, tag or "
            f"commit that {repository.page} lists",
        ) from None
    # Each transport, proxy and version of the library has errors of its own.
    except Exception as error:
        cached = look_in_cache()
        if cached is None:
            raise refusal(repository, error) from None
        reason, folder = one_line(error), repository.cached
        log.warning("%s cannot be fetched from the hub (%s); the copy in %s is used", repository.name, reason, folder)
        return cached


def listing(repository: Repository) -> Listing:
    """Asks the hub, once, for the files of a repository that we may read.

    Raises:
      Exception: what the library raises, also where we may list the files but not read them.
    """
    from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url

    name, repo_type, timeout = repository.name, repository.repo_type, constants.HF_HUB_ETAG_TIMEOUT
    api = HfApi(endpoint=constants.ENDPOINT)
    request = api.model_info if repo_type == "model" else api.dataset_info
    info = request(name, revision=repository.revision, timeout=timeout, files_metadata=True)
    files = {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id or "" for file in info.siblings or ()}
    commit = info.sha or repository.revision or "main"
    # Anyone may list a gated repository.
    if repository.probe in files:
        url = hf_hub_url(name, repository.probe, repo_type=repo_type, revision=commit, endpoint=constants.ENDPOINT)
        get_hf_file_metadata(url, timeout=timeout)
    elif not repository.probe and info.gated:
        api.auth_check(name, repo_type=repo_type)
    return Listing(commit, files)


def list_files(name: str, revision: str | None = None) -> Listing:
    """Lists the files of a data set at the commit that a revision stands for.

    It takes one request, and another one where the data set is gated. Where the hub does not answer, the files in the
    cache are listed, with a warning; with HF_HUB_OFFLINE only these are.

    Raises:
      Refusal: 3 when there is no such revision or the hub cannot be reached; 4 when the data set is gated, private or
        missing.
    """
    repository = Repository(name, revision)

    def ask_hub() -> Listing:
        files = retried(partial(listing, repository))
        _remember(repository, files.commit)
        return files

    return from_hub_or_cache(repository, ask_hub, partial(_cached_listing, repository))


def download_snapshot(repository: Repository, files: Sequence[str]) -> Path:
    """Fetches some files of a repository into the hub library's cache, several at a time.

    Args:
      repository: of the hub.
      files: their paths, all of which the repository has.

    Returns:
      The snapshot's folder, named by its commit.

    Raises:
      Refusal: 3 when they cannot be fetched; 4 when we may not read them; 6 when the disk is full.
    """
    from huggingface_hub import constants, snapshot_download

    try:
        with unlimited():
            folder = Path(
                snapshot_download(
                    repository.name,
                    repo_type=repository.repo_type,
                    revision=repository.revision,
                    allow_patterns=list(files),
                    endpoint=constants.ENDPOINT,
                )
            )
    except Exception as error:
        raise refusal(repository, error) from None
    # Where the connection breaks, some versions of the library return the folder as it is.
    missing = [file for file in files if not (folder / file).exists()]
    if missing:
        raise Refusal(
            BAD_INPUT, f"the download of {repository.name} ended without {missing[0]}; run the same command again"
        )
    return folder


def retried(request: Callable[[], Result]) -> Result:
    """Returns what `request` returns; repeats it, with growing waits, while its errors may pass."""
    for wait in WAITS:
        try:
            with unlimited():
                return request()
        except Exception as error:
            if not _may_pass(error):
                raise
            wait = max(wait * random.uniform(0.5, 1.5), min(_retry_after(error), _LONGEST_WAIT))
            log.info("%s; trying again in %.0f s", one_line(error), wait)
            time.sleep(wait)
    with unlimited():
        return request()


def refusal(repository: Repository, error: Exception, file: str = "") -> Refusal:
    """Says why a repository, or the one of its `file`s that was asked for, cannot be fetched, and what to do about it.

    Args:
      repository: of the hub.
      error: what the hub's library raised.
      file: path in the repository, if a single file was asked for.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    name = repository.name
    if disk_full(error):
        return Refusal(
            DISK, f"no space left in {constants.HF_HUB_CACHE} for {name}; free some or set HF_HUB_CACHE, run again"
        )
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        # Why the library looked in its cache at all.
        error = error.__cause__
    status = _status(error)
    answer = " ".join((getattr(error, "server_message", None) or "").split())[:200]
    if isinstance(error, GatedRepoError):
        state = "is gated"
    elif isinstance(error, RepositoryNotFoundError) or status == 404:
        state, answer = "does not exist or is private", ""
    elif status in (401, 403):
        state = "is closed to us"
    else:
        subject = f"{file} of {name}" if file else f"{name} is no folder here and"
        return Refusal(
            BAD_INPUT,
            f"{subject} cannot be fetched from the hub {constants.ENDPOINT} ({one_line(error)}); give a "
            f"local folder, or download it where there is a network and use that cache (HF_HUB_CACHE, now "
            f"{constants.HF_HUB_CACHE}) with HF_HUB_OFFLINE=1",
        )
    reason = (answer or "the token in use does not open it") if get_token() else "no token is set"
    return Refusal(
        NO_ACCESS,
        f"hub {repository.kind} {name} {state} ({reason}): see {repository.page}, ask for access there and set "
        f"HF_TOKEN to a token that may read it; or {repository.instead}",
    )


def one_line(error: Exception) -> str:
    """Puts an error into one line."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    return f"{type(error).__name__}: {first}"


def disk_full(error: Exception) -> bool:
    """Whether an error says that a disk or quota is full; libraries in other languages only say so in their text."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _may_pass(error: Exception) -> bool:
    """Whether an error may be gone at the next attempt."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    status = _status(error)
    if status is not None:
        return status in _LATER or status >= 500
    # LocalEntryNotFoundError comes after attempts of the library's own.
    lasting = isinstance(error, (Refusal, LocalEntryNotFoundError, OfflineModeIsEnabled, PermissionError))
    return not lasting and not disk_full(error)


def _retry_after(error: Exception) -> float:
    """Seconds that the hub asks us to wait; 0 where it does not say."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    seconds = headers.get("Retry-After", "")
    return float(seconds) if seconds.isdecimal() else 0.0


def _remember(repository: Repository, commit: str) -> None:
    """Writes down which commit a branch or tag stands for, where the library looks for it without a network."""
    if repository.revision != commit:
        # A cache that others keep may be read-only.
        with contextlib.suppress(OSError):
            write_text(repository.cached / "refs" / (repository.revision or "main"), commit)


def _cached_listing(repository: Repository) -> Listing | None:
    """The files in the cache; None where there is no snapshot."""
    folder = repository.snapshot()
    if folder is None:
        return None
    files = {}
    for path in folder.rglob("*"):
        if path.is_file():
            # A snapshot's files are links to blobs that are called by their digest.
            files[path.relative_to(folder).as_posix()] = Path(os.readlink(path)).name if path.is_symlink() else ""
    return Listing(folder.name, files)
