"""Checkpoints of a training state that can be trusted: Orbax, asynchronous, restored onto whatever mesh is there.

A step is a folder that Orbax writes. Once it is whole, a manifest outside of it seals it: the size and SHA-256 of each
of its files. Only what still agrees with its manifest is ever restored.

Orbax reads and writes disks and `gs://`, where objects are whole or not there and the sizes must do, since a digest
would read all of it again. For every other object store a step is written to the cache of this machine and copied from
there before it is sealed, and copied back to be restored.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from mossa_jax.errors import BAD_CONFIG, DISK, Refusal
from mossa_jax.files.names import digest, slug
from mossa_jax.files.paths import as_path, cache_root, copy_folder, file_names, is_remote
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.files.write import storing, write_json
from mossa_jax.processes.watchdog import sign, unlimited

log = logging.getLogger("mossa_jax")

_KEPT = 2
_READERS = 4  # threads that hash files; hashlib lets go of the interpreter
_CHUNK = 1 << 20
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def checkpoint_folder(run_folder: RunFolder, label: str) -> epath.Path:
    """Returns where the checkpoints of the group with this label are."""
    return run_folder / f"checkpoints/{slug(label)}"


class Checkpoints:
    """The steps saved for one group of models; the newest two are kept.

    Attributes:
      folder: where they lie: `<step>/` as Orbax writes it, `manifests/<step>.json` beside.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        alone: bool = False,
        config: str = "",
        stacked: bool = False,
        before_sealing: Callable[[], None] = lambda: None,
    ):
        """Opens the folder and removes what an interrupted save left there.

        Args:
          folder: of this group of models; on a file system that all processes share.
          alone: only this process takes part, whatever the others do.
          config: digest of the configuration; steps of another one are refused.
          stacked: the first axis of every array may be longer or shorter than it was when saved (places on another
            mesh): it is filled up with zeros, or cut. All else about shapes must follow from `config`.
          before_sealing: called before a step counts, to write what is not written again after a restart from it; in
            a thread of its own.

        Raises:
          Refusal: 2 when several processes would have to share this machine's cache.
        """
        self.folder = as_path(folder)
        self._staged = is_remote(folder) and not str(folder).startswith("gs://")
        if not is_remote(folder):
            self.folder = self.folder.absolute()
        if self._staged and jax.process_count() > 1 and not alone:
            raise Refusal(
                BAD_CONFIG,
                f"{folder}: checkpoints of several processes need a shared disk or gs://; name another --workdir",
            )
        self._near = epath.Path(cache_root() / "steps" / digest(str(folder))) if self._staged else self.folder
        self._before_sealing = before_sealing
        self._config = config
        self._stacked = stacked
        self._alone = alone
        self._writes = alone or jax.process_index() == 0
        self._orbax = self._new_orbax()
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._saving: Future | None = None
        if self._writes:
            if self._staged:
                self._near.rmtree(missing_ok=True)  # what a killed run left
            if not is_remote(self._near):
                self._near.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()

    def _new_orbax(self) -> ocp.StandardCheckpointer:
        options = ocp.options.MultiprocessingOptions()
        if self._alone:
            options = ocp.options.MultiprocessingOptions(
                primary_host=jax.process_index(),
                active_processes={jax.process_index()},
                barrier_sync_key_prefix=f"alone{jax.process_index()}",
            )
        return ocp.StandardCheckpointer(multiprocessing_options=options)

    def restore(self, state: Any) -> tuple[Any, int]:
        """The newest state that can be trusted, shaped and placed like `state`, and its step; else `state`, 0.

        Every step that is passed over is deleted: with one warning where a file of it is not what was saved, with a
        line at info level where the save was not finished.

        Raises:
          Refusal: 2 when the steps are of another configuration, or of a state of another shape.
        """
        step, ours = self._agreed(self._newest() if self._writes else (0, True))
        if not ours:
            raise Refusal(
                BAD_CONFIG,
                f"{self.folder} holds checkpoints of another config; name a new --workdir or restore the old values",
            )
        if step < 0:
            return state, 0
        if self._alone:
            target = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
        else:
            target = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
            )
        try:
            found = self._orbax.restore(self._orbax_folder(step), target, strict=not self._stacked)
            if self._alone:
                # Committed to devices only if it was: else the next step would be another program.
                found = jax.tree.map(
                    lambda new, leaf: jax.device_put(new, leaf.sharding if leaf.committed else None), found, state
                )
            return found, step
        except ValueError as error:
            if (disk := _disk_error(error, self._near)) is not None:
                raise disk from error
            raise Refusal(
                BAD_CONFIG,
                f"checkpoint of step {step} in {self.folder} is whole but holds another state "
                f"({str(error).splitlines()[0][:160]}); name a new --workdir or restore the old values",
            ) from None
        finally:
            self._clear(step)

    def save(self, step: int, state: Any) -> None:
        """Starts to save; returns before it is on disk, but not before the save before is.

        Raises:
          OSError: with its errno, when this save or the one before failed; older steps are left as they were.
        """
        self._wait()
        if self._alone:  # of arrays on devices Orbax takes those alone that all processes share
            state = jax.tree.map(np.asarray, state)
        with self._cleaning_up():
            self._orbax.save(self._orbax_folder(step), state)
        self._saving = self._thread.submit(self._finish, step)

    def _orbax_folder(self, step: int) -> epath.Path:
        return epath.Path(str(self._near / str(step)))  # of the class that Orbax expects for the scheme

    def close(self) -> None:
        """Waits until the last save is sealed; raises as `save`."""
        try:
            self._wait()
        finally:
            self._thread.shutdown()
            self._orbax.close()

    def _wait(self) -> None:
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def _finish(self, step: int) -> None:
        """In a thread of its own: waits for Orbax, seals the step, and only then deletes old ones."""
        with self._cleaning_up():
            self._orbax.wait_until_finished()
            if self._writes:
                near = self._near / str(step)
                files = _measure(near, sorted(file_names(near)))
                if self._staged:
                    with storing(self.folder / str(step)):
                        copy_folder(near, self.folder / str(step))
                    self._clear(step)
                self._before_sealing()
                record = {"step": step, "config": self._config, "files": files}
                write_json(self._manifest(step), record | {"digest": digest(record)})
                steps = self._steps()
                sealed = sorted(step for step in steps if self._manifest(step).exists())
                for old in steps - set(sealed[-_KEPT:]):
                    self._delete(old)

    @contextlib.contextmanager
    def _cleaning_up(self) -> Iterator[None]:
        """Leaves nothing of a save that fails, and gives its error the number that the system gave it."""
        try:
            yield
        except Exception as error:
            self._orbax = self._new_orbax()  # the old one would raise what else went wrong in saves to come
            if self._writes:
                self._remove_unfinished()
            told = isinstance(error, Refusal) and is_remote(self.folder)
            disk = None if told else _disk_error(error, self._near)
            if disk is None:
                raise
            raise disk from error

    def _newest(self) -> tuple[int, bool]:
        """The newest step to be trusted, -1 for none, and whether it is of this configuration."""
        for step in sorted(self._steps(), reverse=True):
            if not self._manifest(step).exists():
                log.info("checkpoint of step %d in %s was not finished; going back", step, self.folder)
            else:
                record = _read(self._manifest(step), step)
                if record is not None and record["config"] != self._config:
                    return step, False
                damage = "its manifest" if record is None else self._damage(step, record["files"])
                if damage is None:
                    return step, True
                log.warning("checkpoint of step %d in %s is damaged (%s); going back", step, self.folder, damage)
            self._delete(step)
        return -1, True

    def _damage(self, step: int, files: dict[str, dict[str, Any]]) -> str | None:
        """The first thing that is wrong with a step; a sound one lies where Orbax reads it afterwards."""
        if self._staged:
            copy_folder(self.folder / str(step), self._near / str(step))
        damage = _damage(self._near / str(step), files)
        if damage is not None:
            self._clear(step)
        return damage

    def _clear(self, step: int) -> None:
        """Deletes the copy of a step in this machine's cache, where there is one."""
        if self._staged:
            (self._near / str(step)).rmtree(missing_ok=True)

    def _agreed(self, verdict: tuple[int, bool]) -> tuple[int, bool]:
        """What process 0 found, on every process that takes part."""
        if jax.process_count() > 1 and not self._alone:
            with unlimited():  # it reads every file of the step
                verdict = multihost_utils.broadcast_one_to_all(np.asarray(verdict, np.int32))
        return int(verdict[0]), bool(verdict[1])

    def _steps(self) -> set[int]:
        """Of which there is a folder, a manifest or both."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.exists() else []
        names += [path.stem for path in (self.folder / "manifests").glob("*.json")]
        return {int(name) for name in names if name.isdigit()}

    def _manifest(self, step: int) -> epath.Path:
        return self.folder / "manifests" / f"{step}.json"

    def _delete(self, step: int) -> None:
        """The manifest first: what a kill leaves of the step is then not finished, rather than damaged."""
        self._manifest(step).unlink(missing_ok=True)
        (self.folder / str(step)).rmtree(missing_ok=True)

    def _remove_unfinished(self) -> None:
        for path in self._near.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
            with contextlib.suppress(OSError):  # writes that Orbax gave up may go on; the next opening tries again
                path.rmtree()


def _measure(folder: epath.Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Size in bytes and, on a disk, SHA-256 of each of these files."""

    def measured(name: str) -> dict[str, Any]:
        if is_remote(folder):
            return {"size": (folder / name).stat().length}
        size, sha256 = 0, hashlib.sha256()
        with (folder / name).open("rb") as file:
            while chunk := file.read(_CHUNK):
                size += len(chunk)
                sha256.update(chunk)
                sign()
        return {"size": size, "sha256": sha256.hexdigest()}

    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(names, pool.map(measured, names), strict=True))


def _read(path: epath.Path, step: int) -> dict[str, Any] | None:
    """The manifest of this step; None when it is not what was written."""
    try:
        record = json.loads(path.read_text())
        seal = record.pop("digest")
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        if isinstance(error, OSError) and is_remote(path):
            raise  # a store that cannot be reached says nothing about the step
        return None
    return record if seal == digest(record) and record["step"] == step else None


def _damage(folder: epath.Path, files: dict[str, dict[str, Any]]) -> str | None:
    """The first thing that is wrong with a step, given what its manifest says; None when all is right."""
    found = set(file_names(folder))
    for name in sorted(files):
        if name not in found:
            return f"{name} is missing"
        if (size := (folder / name).stat().length) != files[name]["size"]:
            return f"{name} has {size} bytes, not {files[name]['size']}"
    strange = sorted(name for name in found - set(files) if _is_looked_for(name))
    if strange:
        return f"{strange[0]} was not saved"
    try:
        measured = _measure(folder, sorted(files))
    except OSError as error:
        return f"a file cannot be read: {error}"
    return next((f"{name} has another content" for name in measured if measured[name] != files[name]), None)


def _is_looked_for(name: str) -> bool:
    """Whether Orbax would read such a file though nothing that it wrote refers to it."""
    return name == "checkpoint" or name.startswith("array_metadatas/")


def _disk_error(error: Exception, folder: epath.Path) -> OSError | None:
    """An error of the disk as an OSError that names the folder; None for any other, or where it names a file already.

    TensorStore says in words alone what the system said.
    """
    if isinstance(error, OSError):
        nameless = error.errno is not None and error.filename is None
        return OSError(error.errno, error.strerror, str(folder)) if nameless else None
    if isinstance(error, Refusal) and error.code == DISK:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    found = next((number for number in _DISK_ERRORS if os.strerror(number) in str(error)), None)
    return None if found is None else OSError(found, os.strerror(found), str(folder))
