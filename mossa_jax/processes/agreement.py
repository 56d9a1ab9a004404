"""Values that the processes of a run exchange, all together and at the same point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.processes.facts import digest_of, first_difference
from mossa_jax.processes.watchdog import unlimited

if TYPE_CHECKING:
    from mossa_jax.processes.peers import Peers

_Value = TypeVar("_Value")
_peers: Peers | None = None


def meet_over(peers: Peers) -> None:
    """Takes the connections over which `same` and `decided` exchange values from now on."""
    global _peers
    _peers = peers


def same(subject: str, facts: Mapping[str, Any], way_out: str, code: int = BAD_INPUT) -> None:
    """Returns if all processes have the same facts; all of them call this at the same point.

    No device and no collective takes part, so that nothing hangs where processes differ.

    Args:
      subject: what the facts are of, the same on every process: "the rows".
      facts: name -> value, ready for JSON.
      way_out: what the user can do where they differ.
      code: the exit code of the run then.

    Raises:
      Refusal: `code`, on every process alike; it names the first fact that differs, with both values.
    """
    if jax.process_count() == 1:
        return
    digest = digest_of(facts)
    if _peers is None:
        # Somebody else joined the processes; a digest alone says that they differ, not in what.
        digests = everywhere(int(digest[:15], 16))
        differing = [index for index, each in enumerate(digests) if each != digests[0]]
        reason = f"process {differing[0]} and process 0 differ in {subject}" if differing else ""
    else:
        digests = _peers.exchange(subject, digest)
        reason = ""
        differing = [index for index, each in enumerate(digests) if each != digests[0]]
        if differing:
            # Only now all of it, from one process of each side.
            tells = jax.process_index() in (0, differing[0])
            every = _peers.exchange(f"{subject}, in full", [_peers.host, dict(facts)] if tells else None)
            who = f"process {differing[0]} on {every[differing[0]][0]}"
            reason = first_difference(who, every[0][1], every[differing[0]][1])
    if reason:
        raise Refusal(code, f"{reason}; {way_out}")


def decided(decide: Callable[[], _Value]) -> _Value:
    """Returns what process 0 decides on every process; all of them call this at the same point.

    Args:
      decide: called by process 0 alone; returns something ready for JSON. A refusal that it raises is raised by all.
    """
    if jax.process_count() == 1:
        return decide()
    if _peers is None:
        # Nobody can send words without connections: process 0 goes first, and the others decide by what it left.
        if jax.process_index() == 0:
            value = decide()
            wait_for_all("decided")
            return value
        wait_for_all("decided")
        return decide()
    answer: dict[str, Any] = {}
    if jax.process_index() == 0:
        try:
            answer = {"value": decide()}
        except Refusal as refusal:
            answer = {"refusal": [refusal.code, str(refusal)]}
    answer = _peers.exchange("a decision of process 0", answer)[0]
    if "refusal" in answer:
        raise Refusal(*answer["refusal"])
    return answer["value"]


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
