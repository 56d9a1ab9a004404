"""Values that the processes of a run exchange, all together and at the same point."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from mossa_jax.processes.watchdog import unlimited


def agreed(values: Sequence[bool]) -> list[bool]:
    """Returns process 0's values on every process.

    One process decides what exists on a shared file system, because another may see an earlier state for a while.

    Args:
      values: this process's values, as many on every process.
    """
    if jax.process_count() == 1:
        return list(values)
    with unlimited():
        return [bool(value) for value in multihost_utils.broadcast_one_to_all(np.asarray(values, bool))]


def everywhere(value: int) -> list[int]:
    """Returns the value of every process, by its index; all processes call this together.

    Args:
      value: an integer from 0 to 2^62 - 1.
    """
    if jax.process_count() == 1:
        return [value]
    # Two halves, since jax does not enable 64-bit integers everywhere.
    halves = np.asarray([value >> 31, value & (2**31 - 1)], np.int32)
    with unlimited():
        gathered = multihost_utils.process_allgather(halves)  # [processes, 2]
    return [(int(high) << 31) | int(low) for high, low in gathered]


def wait_for_all(name: str) -> None:
    """Returns once every process has called this, however long its own work takes; at once if there is one process.

    Args:
      name: of the meeting point, the same on every process.
    """
    if jax.process_count() > 1:
        with unlimited():
            multihost_utils.sync_global_devices(name)
