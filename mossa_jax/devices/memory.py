"""Whether a program fits a device: its compiled memory beside what the device has. Nothing is ever tried out."""

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

# What the TPU compiler says of a program that is too large: all of it, or its temporary part; and the room there is.
_TOO_LARGE = re.compile(r"Used ([\d.]+[KMGT]) of ([\d.]+[KMGT]) hbm")
_TEMPORARY_TOO_LARGE = re.compile(r"HLO temporaries \(([\d.]+[KMGT])\) exceeds available HBM \(([\d.]+[KMGT])\)")
_REMEDY = "give it less at once (tuning.slots, batch_rows, parts) or spread it wider (mesh.fsdp, mesh.tensor)"
# Where Linux says what a container may take (cgroup 2, cgroup 1).
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def program_bytes(compiled: jax.stages.Compiled) -> dict[str, int]:
    """What a compiled program takes on each device, in bytes: `arguments`, `temporary`, `total`.

    `total` counts outputs and code as well, and an output that overwrites an argument once.
    """
    memory = compiled.memory_analysis()
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    total += memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    return {"arguments": memory.argument_size_in_bytes, "temporary": memory.temp_size_in_bytes, "total": total}


def compiler_bytes(error: Exception, arguments: int) -> dict[str, int] | None:
    """The same, with the `room` on a device, from what a compiler says of a program that it finds too large itself.

    Args:
      error: what it raised.
      arguments: bytes of the program's arguments on each device.

    Returns:
      None where the error is another one.
    """
    whole, temporary = (pattern.search(str(error)) for pattern in (_TOO_LARGE, _TEMPORARY_TOO_LARGE))
    if not (whole or temporary):
        return None
    size, room = (
        int(float(part[:-1]) * 1024 ** (1 + "KMGT".index(part[-1]))) for part in (whole or temporary).groups()
    )
    total = size if whole else size + arguments
    return {"arguments": arguments, "temporary": total - arguments, "total": total, "room": room}


def bytes_on_device(tree: Any) -> int:
    """What one device holds of arrays, or of shapes, with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(leaf.dtype.itemsize * int(np.prod(leaf.sharding.shard_shape(leaf.shape))) for leaf in leaves)


def device_room(device: jax.Device) -> int | None:
    """Memory of a device in bytes: what its runtime says, else what its kind has; None where neither is known.

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
    """This machine's memory in bytes, or what of it this container may take."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in map(Path, _LIMITS):
        said = path.read_text().strip() if path.is_file() else ""
        found = min(found, int(said)) if said.isdigit() else found
    return found


def compile_step(
    label: str, remat: str, make: Callable[[bool], Any], arguments: tuple, device: jax.Device
) -> jax.stages.Compiled:
    """Compiles a training step, with recomputation or without, and logs in one line what it takes.

    Args:
      label: in front of that line.
      remat: `tuning.remat`. `auto`: compiled without recomputation first; where that takes more than `SHARE` of the
        device's memory, or what a device has is not known, with it.
      make: whether to recompute -> the jitted step.
      arguments: of its first call, of which shapes and shardings count; those of later calls must be the same.
      device: one of those that it is compiled for.

    Raises:
      Refusal: 3 when the compiler says that the step does not fit.
    """
    room, asked = device_room(device), recompute(remat)
    compiled, size = _compiled(make(asked is True), arguments)
    text = f"{label}: a step takes {_mib(size)} a device"
    if asked is None:
        text += f" without recomputation, {_mib(room and SHARE * room)} may be taken"
        if _everywhere(compiled is not None and room is not None and size <= SHARE * room):
            log.info("%s: tuning.remat=auto leaves it off", text)
            return compiled
        compiled, size = _compiled(make(True), arguments)
        text += f": tuning.remat=auto turns it on, {_mib(size)}"
    else:
        text += f" of {_mib(room)}, tuning.remat={remat}"
    if compiled is None:
        raise Refusal(BAD_INPUT, f"{text}; the compiler finds no room for it: {_REMEDY}")
    log.info("%s", text)
    if room is not None and size > room:
        log.warning("%s: that is more than there is (%s); %s", label, _mib(room), _REMEDY)
    return compiled


def _compiled(step: Any, arguments: tuple) -> tuple[jax.stages.Compiled | None, int]:
    """The program and its bytes on a device; None, with the compiler's figure, where it says there is no room."""
    try:
        with unlimited():
            compiled = step.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if (found := compiler_bytes(error, bytes_on_device(arguments))) is None:
            raise
        return None, found["total"]
    return compiled, program_bytes(compiled)["total"]


def _everywhere(here: bool) -> bool:
    """Whether something holds on every process of the run."""
    if jax.process_count() == 1:
        return here
    return bool(np.all(multihost_utils.process_allgather(np.asarray(here))))


def _mib(size: float | None) -> str:
    return "an unknown size" if size is None else f"{size / 2**20:,.1f} MiB"
