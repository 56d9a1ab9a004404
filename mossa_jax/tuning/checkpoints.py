"""Checkpoints of a training state that can be trusted: saved by Orbax in the background, restored onto any mesh.

Each step is a folder that Orbax writes. Once it is whole, a manifest beside it seals it, with the size and SHA-256 of
each of its files. Only a step that still agrees with its manifest is restored.

Orbax reads and writes disks and `gs://`. There, an object is either whole or missing, so a manifest holds sizes alone:
a digest would read everything again. For every other object store, a step is written to this machine's cache and
copied to the store before it is sealed, and copied back to be restored.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from mossa_jax.errors import BAD_CONFIG, DISK, Refusal
from mossa_jax.files.names import digest, slug
from mossa_jax.files.paths import as_path, cache_root, copy_folder, file_names, is_remote
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.files.write import storing, write_json
from mossa_jax.log import log
from mossa_jax.processes.watchdog import sign, unlimited

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

State = TypeVar("State")

_KEPT = 2  # newest steps that are kept
_READERS = 4  # threads that hash files; hashlib releases the interpreter's lock
_CHUNK = 1 << 20  # bytes that are hashed at once
# Errors of the disk itself, by their numbers.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def checkpoint_folder(run_folder: RunFolder, label: str) -> epath.Path:
    """Returns where the checkpoints of the group with this label are."""
    # Labels are the run's own words, and no two differ in capitals alone.
    return run_folder / f"checkpoints/{label if label == 'E' else slug(label)}"


class Checkpoints:
    """The steps saved for one group of models; the newest two are kept.

    Attributes:
      folder: holds `<step>/` as Orbax writes it, and `manifests/<step>.json` beside it.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        alone: bool = False,
        config: str = "",
        stacked: bool = False,
        before_sealing: Callable[[], None] | None = None,
    ):
        """Opens the folder and removes what an interrupted save left there.

        Args:
          folder: of this group of models, on a file system that all processes share.
          alone: only this process takes part, whatever the others do.
          config: digest of the configuration; steps of another one are refused.
          stacked: the first axis of every array may be longer or shorter than it was when saved (places on another
            mesh); it is filled up with zeros, or cut. Everything else about shapes must follow from `config`.
          before_sealing: called before a step is sealed, to write what a run that resumes from it will not write
            again; called in a thread of its own.

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
        # The folder that Orbax writes to and reads from.
        self._near = epath.Path(cache_root() / "steps" / digest(str(folder))) if self._staged else self.folder
        self._before_sealing = before_sealing
        self._config = config
        self._stacked = stacked
        self._alone = alone
        self._writes = alone or jax.process_index() == 0
        self._orbax = self._new_orbax()
        # One thread: steps are sealed one after another, in order.
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._saving: Future[None] | None = None
        # One of several processes deletes, seals and reads manifests; all of them write their shards through Orbax.
        if self._writes:
            if self._staged:
                self._near.rmtree(missing_ok=True)  # left by a run that was killed
            if not is_remote(self._near):
                self._near.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()

    def _new_orbax(self) -> ocp.StandardCheckpointer:
        import orbax.checkpoint as ocp

        options = ocp.options.MultiprocessingOptions()
        if self._alone:
            # Without these, Orbax would wait at its barriers for processes that take no part.
            options = ocp.options.MultiprocessingOptions(
                primary_host=jax.process_index(),
                active_processes={jax.process_index()},
                barrier_sync_key_prefix=f"alone{jax.process_index()}",
            )
        return ocp.StandardCheckpointer(multiprocessing_options=options)

    def restore(self, state: State) -> tuple[State, int]:
        """Restores the newest step that can be trusted.

        Every step that is passed over is deleted. A step with a file that is not as it was saved gets a warning; a save
        that was not finished gets a line at info level.

        Args:
          state: a tree of arrays, or of shapes with shardings; what is restored is shaped and placed like it.

        Returns:
          (the restored state, its step), or (`state`, 0) where there is no step to be trusted.

        Raises:
          Refusal: 2 when the steps belong to another configuration, or to a state of another shape.
        """
        step, is_ours = self._agreed(self._newest() if self._writes else (0, True))
        if not is_ours:
            raise Refusal(
                BAD_CONFIG,
                f"{self.folder} holds checkpoints of another config; name a new --workdir or restore the old values",
            )
        if step < 0:
            return state, 0
        if self._alone:
            # Orbax restores arrays to devices only where all processes share them; here it fills arrays of the host.
            target = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
        else:
            target = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
            )
        try:
            # Each process reads the shards that its devices hold under `target`, whatever mesh wrote them. Not strict:
            # the first axis may be cut or filled up with zeros (`stacked`).
            restored = self._orbax.restore(self._orbax_folder(step), target, strict=not self._stacked)
            if self._alone:
                # Committed to its device only if `state` was; otherwise the next step would be compiled again.
                restored = jax.tree.map(
                    lambda new, leaf: jax.device_put(new, leaf.sharding if leaf.committed else None), restored, state
                )
            return restored, step
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
        """Starts to save a step; returns before it is on disk, but after the previous save is.

        Args:
          step: number of steps done.
          state: a tree of arrays; may be donated as soon as this returns.

        Raises:
          OSError: with its errno, when this save or the previous one failed; older steps are left as they were.
        """
        self._wait()
        if self._alone:  # Orbax takes arrays on devices only where all processes share them
            state = jax.tree.map(np.asarray, state)
        # Returns once the arrays are copied to the host: they may be donated from then on.
        with self._cleaning_up():
            self._orbax.save(self._orbax_folder(step), state)
        self._saving = self._thread.submit(self._finish, step)

    def _orbax_folder(self, step: int) -> epath.Path:
        return epath.Path(str(self._near / str(step)))  # of the class that Orbax expects for the scheme

    def close(self) -> None:
        """Waits until the last save is sealed; raises what `save` raises."""
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
        """Waits for Orbax, seals the step, and only then deletes old ones; runs in a thread of its own."""
        with self._cleaning_up():
            self._orbax.wait_until_finished()
            if self._writes:
                near = self._near / str(step)
                # Measured before anything is copied or sealed, so that the manifest describes what Orbax wrote.
                files = _measure(near, sorted(file_names(near)))
                if self._staged:
                    with storing(self.folder / str(step)):
                        copy_folder(near, self.folder / str(step))
                    self._clear(step)
                # The order matters: files, then what goes with them, then the seal. A kill in between leaves an
                # unfinished step, and the one before it is still there.
                if self._before_sealing is not None:
                    self._before_sealing()
                # The manifest has a digest of itself, so that a manifest that is cut off is known as such.
                record = {"step": step, "config": self._config, "files": files}
                write_json(self._manifest(step), record | {"digest": digest(record)})
                steps = self._steps()
                # Old steps go only now that a newer one is sealed; unfinished ones go with them.
                sealed = sorted(step for step in steps if self._manifest(step).exists())
                for old in steps - set(sealed[-_KEPT:]):
                    self._delete(old)

    @contextlib.contextmanager
    def _cleaning_up(self) -> Iterator[None]:
        """Removes the remains of a save that fails, and raises its error with the errno of the system."""
        try:
            yield
        except Exception as error:
            self._orbax = self._new_orbax()  # the old one would raise further errors of this save in later ones
            if self._writes:
                self._remove_unfinished()
            # A refusal about a store names the store already.
            is_told = isinstance(error, Refusal) and is_remote(self.folder)
            disk = None if is_told else _disk_error(error, self._near)
            if disk is None:
                raise
            raise disk from error

    def _newest(self) -> tuple[int, bool]:
        """Returns the newest step to be trusted, -1 for none, and whether it belongs to this configuration."""
        # Newest first. The save of a step without a manifest was interrupted before the seal; no file of it is damaged.
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
        """Returns the first thing that is wrong with a step; a sound one is where Orbax reads it afterwards."""
        if self._staged:
            copy_folder(self.folder / str(step), self._near / str(step))
        damage = _damage(self._near / str(step), files)
        if damage is not None:
            self._clear(step)
        return damage

    def _clear(self, step: int) -> None:
        """Deletes the copy of a step in this machine's cache, if there is one."""
        if self._staged:
            (self._near / str(step)).rmtree(missing_ok=True)

    def _agreed(self, verdict: tuple[int, bool]) -> tuple[int, bool]:
        """Returns the verdict of process 0 on every process that takes part."""
        if jax.process_count() > 1 and not self._alone:
            with unlimited():  # process 0 reads every file of the step
                verdict = multihost_utils.broadcast_one_to_all(np.asarray(verdict, np.int32))
        return int(verdict[0]), bool(verdict[1])

    def _steps(self) -> set[int]:
        """Returns the steps that have a folder, a manifest or both."""
        # Orbax's temporary folders have names that are not numbers.
        names = [path.name for path in self.folder.iterdir()] if self.folder.exists() else []
        names += [path.stem for path in (self.folder / "manifests").glob("*.json")]
        return {int(name) for name in names if name.isdigit()}

    def _manifest(self, step: int) -> epath.Path:
        return self.folder / "manifests" / f"{step}.json"

    def _delete(self, step: int) -> None:
        """Deletes a step, its manifest first: if a kill interrupts this, the step is unfinished, not damaged."""
        self._manifest(step).unlink(missing_ok=True)
        (self.folder / str(step)).rmtree(missing_ok=True)

    def _remove_unfinished(self) -> None:
        import orbax.checkpoint as ocp

        for path in self._near.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
            with contextlib.suppress(OSError):  # writes that Orbax abandoned may continue; the next opening tries again
                path.rmtree()


def _measure(folder: epath.Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Returns the size in bytes and, on a disk, the SHA-256 of each of these files."""

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

    # Threads hash at the same time; `map` keeps the order of the names.
    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(names, pool.map(measured, names), strict=True))


def _read(path: epath.Path, step: int) -> dict[str, Any] | None:
    """Returns the manifest of a step; None when it is not as it was written."""
    try:
        record = json.loads(path.read_text())
        seal = record.pop("digest")
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        if isinstance(error, OSError) and is_remote(path):
            raise  # a store that cannot be reached says nothing about the step
        return None
    return record if seal == digest(record) and record["step"] == step else None


def _damage(folder: epath.Path, files: dict[str, dict[str, Any]]) -> str | None:
    """Returns the first thing that is wrong with a step.

    Args:
      folder: of the step.
      files: what its manifest says of each file.

    Returns:
      The file and what is wrong with it; None where nothing is.
    """
    names = set(file_names(folder))
    # The cheap checks first: names and sizes, before every byte is read.
    for name in sorted(files):
        if name not in names:
            return f"{name} is missing"
        if (size := (folder / name).stat().length) != files[name]["size"]:
            return f"{name} has {size} bytes, not {files[name]['size']}"
    unknown = sorted(name for name in names - set(files) if _is_read_unasked(name))
    if unknown:
        return f"{unknown[0]} was not saved"
    try:
        measured = _measure(folder, sorted(files))
    except OSError as error:
        return f"a file cannot be read: {error}"
    return next((f"{name} has another content" for name in measured if measured[name] != files[name]), None)


def _is_read_unasked(name: str) -> bool:
    """Returns whether Orbax would read a file of this name although nothing that it wrote refers to it."""
    return name == "checkpoint" or name.startswith("array_metadatas/")


def _disk_error(error: Exception, folder: epath.Path) -> OSError | None:
    """Returns an error of the disk as an OSError that names the folder; None for others, and for one that names a file.

    TensorStore passes on the system's words, but not its errno.
    """
    if isinstance(error, OSError):
        nameless = error.errno is not None and error.filename is None
        return OSError(error.errno, error.strerror, str(folder)) if nameless else None
    if isinstance(error, Refusal) and error.code == DISK:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    number = next((number for number in _DISK_ERRORS if os.strerror(number) in str(error)), None)
    return None if number is None else OSError(number, os.strerror(number), str(folder))
