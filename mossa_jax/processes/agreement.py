"""What the processes of a run tell each other, all together and at the same point."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from mossa_jax.processes.watchdog import unlimited


def agreed(found: Sequence[bool]) -> list[bool]:
    """What process 0 found, on every process, which all come here with as many.

    What lies on a shared file system is asked of one process: another may for a while still see what was before.
    """
    if jax.process_count() == 1:
        return list(found)
    with unlimited():
        return [bool(one) for one in multihost_utils.broadcast_one_to_all(np.asarray(found, bool))]


def everywhere(value: int) -> list[int]:
    """Each process's value, below 2^62, by index; all processes come here together."""
    if jax.process_count() == 1:
        return [value]
    halves = np.asarray([value >> 31, value & (2**31 - 1)], np.int32)  # 64 bits are not on everywhere
    with unlimited():
        found = multihost_utils.process_allgather(halves)
    return [(int(high) << 31) | int(low) for high, low in found]


def wait_for_all(name: str) -> None:
    """Returns when every process has come here, however long its own work takes; at once where there is one."""
    if jax.process_count() > 1:
        with unlimited():
            multihost_utils.sync_global_devices(name)
