"""Whether a program fits a device: its compiled memory against the device's. Nothing is ever run to find out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mossa_jax.config import recompute
from mossa_jax.devices.chips import memory_of
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.log import log
from mossa_jax.processes.watchdog import unlimited

SHARE = 0.9
"""Share of a device's memory that a step may take; the rest is for what runs beside it, and for fragments."""

# What the TPU compiler says of a program that is too large: its whole size or that of its temporary part, and the room.
_TOO_LARGE = re.compile(r"Used ([\d.]+[KMGT]) of ([\d.]+[KMGT]) hbm")
_TEMPORARY_TOO_LARGE = re.compile(r"HLO temporaries \(([\d.]+[KMGT])\) exceeds available HBM \(([\d.]+[KMGT])\)")
_REMEDY = "train less at once (tuning.slots, batch_rows, parts) or spread it wider (mesh.fsdp, mesh.tensor)"
# Where Linux says how much a container may take (cgroup 2, cgroup 1).
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def program_bytes(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Returns what a compiled program takes on each device, in bytes: `arguments`, `temporary`, `total`.

    `total` includes outputs and code; an output that overwrites an argument counts once.
    """
    memory: Any = compiled.memory_analysis()
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    total += memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    return {"arguments": memory.argument_size_in_bytes, "temporary": memory.temp_size_in_bytes, "total": total}


def compiler_bytes(error: Exception, arguments: int) -> dict[str, int] | None:
    """Returns the sizes of a program that the compiler itself finds too large, from its error.

    Args:
      error: what the compiler raised.
      arguments: bytes of the program's arguments on each device.

    Returns:
      The keys of `program_bytes`, and `room`, the bytes that the device has; None for any other error.
    """
    whole, temporary = (pattern.search(str(error)) for pattern in (_TOO_LARGE, _TEMPORARY_TOO_LARGE))
    match = whole or temporary
    if match is None:
        return None
    size, room = (int(float(text[:-1]) * 1024 ** (1 + "KMGT".index(text[-1]))) for text in match.groups())
    total = size if whole else size + arguments
    return {"arguments": arguments, "temporary": total - arguments, "total": total, "room": room}


def bytes_on_device(tree: Any) -> int:
    """Returns the bytes that one device holds of a tree of arrays, or of shapes, with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(leaf.dtype.itemsize * int(np.prod(leaf.sharding.shard_shape(leaf.shape))) for leaf in leaves)


def device_room(device: jax.Device) -> int | None:
    """Returns a device's memory in bytes: as its runtime reports it, else as its kind has it; None if neither is known.

    A CPU device has its share of the host's memory, which all devices of this process have in common.
    """
    try:
        room = (device.memory_stats() or {}).get("bytes_limit")
    except jax.errors.JaxRuntimeError:  # a runtime that keeps no such figures
        room = None
    if room is None and device.platform == "cpu":
        room = host_memory() // jax.local_device_count()
    return room or memory_of(device.device_kind)


def host_memory() -> int:
    """Returns this machine's memory in bytes, or the limit of this container where that is less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in map(Path, _LIMITS):
        limit = path.read_text().strip() if path.is_file() else ""
        memory = min(memory, int(limit)) if limit.isdigit() else memory
    return memory


def compile_step(
    label: str,
    remat: str,
    make: Callable[[bool], jax.stages.Wrapped],
    arguments: tuple[Any, ...],
    device: jax.Device,
    is_quiet: bool = False,
) -> jax.stages.Compiled:
    """Compiles a training step, with or without recomputation, and logs in one line how much memory it takes.

    Args:
      label: in front of that line.
      remat: `tuning.remat`. With `auto`, the step is compiled without recomputation first. Where that takes more than
        `SHARE` of the device's memory, or the device's memory is not known, it is compiled again with recomputation.
      make: returns the jitted step with recomputation (True) or without.
      arguments: of its first call; only shapes and shardings count. Those of later calls must be the same.
      device: one of those that it is compiled for.
      is_quiet: logs nothing.

    Raises:
      Refusal: 3 when the compiler says that the step does not fit.
    """
    room, recomputes = device_room(device), recompute(remat)
    compiled, size = _compiled(make(recomputes is True), arguments)
    text = f"{label}: a step takes {_mib(size)} per device"
    if recomputes is None:
        text += f" without recomputation, {_mib(room and SHARE * room)} may be taken"
        if _everywhere(compiled is not None and room is not None and size <= SHARE * room) and compiled is not None:
            if not is_quiet:
                log.debug("%s: tuning.remat=auto leaves it off", text)
            return compiled
        compiled, size = _compiled(make(True), arguments)
        text += f": tuning.remat=auto turns it on, {_mib(size)}"
    else:
        text += f" of {_mib(room)}, tuning.remat={remat}"
    if compiled is None:
        raise Refusal(BAD_INPUT, f"{text}; the compiler finds no room for it: {_REMEDY}")
    if is_quiet:
        return compiled
    log.debug("%s", text)
    if room is not None and size > room:
        log.warning("%s: a step takes more memory than the device has (%s); %s", label, _mib(room), _REMEDY)
    return compiled


def _compiled(step: jax.stages.Wrapped, arguments: tuple[Any, ...]) -> tuple[jax.stages.Compiled | None, int]:
    """Returns the program and its bytes on a device; None, with the compiler's figure, where the compiler refuses."""
    try:
        with unlimited():
            compiled = step.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if (sizes := compiler_bytes(error, bytes_on_device(arguments))) is None:
            raise
        return None, sizes["total"]
    return compiled, program_bytes(compiled)["total"]


def _everywhere(holds: bool) -> bool:
    """Returns whether something holds on every process of the run."""
    if jax.process_count() == 1:
        return holds
    return bool(np.all(multihost_utils.process_allgather(np.asarray(holds))))


def _mib(size: float | None) -> str:
    return "an unknown size" if size is None else f"{size / 2**20:,.1f} MiB"
