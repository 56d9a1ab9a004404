"""Checkpoints of a training state: Orbax, asynchronous, restored onto whatever mesh is there."""

from __future__ import annotations

import logging
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

log = logging.getLogger("mossa_jax")


class Checkpoints:
    """The steps saved for one group of models; the newest two are kept."""

    def __init__(self, folder: epath.PathLike, alone: bool = False):
        """Opens the folder; `alone`: only this process takes part, whatever the others do."""
        own = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(),
            active_processes={jax.process_index()},
            barrier_sync_key_prefix=f"alone{jax.process_index()}",
        )
        folder = epath.Path(folder).absolute()
        if alone:
            folder.mkdir(parents=True, exist_ok=True)  # Orbax makes it only together with all processes
        self._manager = ocp.CheckpointManager(
            folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=2,
                cleanup_tmp_directories=True,
                create=not alone,
                multiprocessing_options=own if alone else ocp.options.MultiprocessingOptions(),
            ),
        )

    def restore(self, state: Any) -> tuple[Any, int]:
        """The newest state that can be read, shaped and placed like `state`, and its step; else `state`, 0.

        A step that cannot be read is passed over with one line in the log.
        """
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return self._manager.restore(step, args=ocp.args.StandardRestore(target)), step
            except (ValueError, OSError, KeyError) as error:
                first = (str(error).splitlines() or [type(error).__name__])[0][:160]
                log.warning("checkpoint of step %d in %s cannot be read (%s); going back", step, self.folder, first)
                self._manager.delete(step)
        return state, 0

    @property
    def folder(self) -> epath.Path:
        """Where the steps lie."""
        return self._manager.directory

    def save(self, step: int, state: Any) -> None:
        """Starts to save; returns before it is on disk."""
        self._manager.save(step, args=ocp.args.StandardSave(state))

    def close(self) -> None:
        """Waits for the last save."""
        self._manager.wait_until_finished()
        self._manager.close()
