"""Whether this machine has accelerators, told from its drivers and before JAX looks for them."""

from __future__ import annotations

import contextlib
import ctypes.util
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# The compilers that the extra `plan` installs; JAX takes them for signs of an accelerator.
_COMPILERS = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12", "libtpu")
# Devices of the drivers for NVIDIA (also under Windows), AMD and TPU.
_DRIVERS = ("nvidia[0-9]*", "nvidiactl", "dxg", "kfd", "accel[0-9]*", "vfio/[0-9]*")


def is_for_planning_only(devices: Path = Path("/dev")) -> bool:
    """Returns whether compilers for accelerators are installed on a Linux machine that has no accelerator.

    JAX would try each of them and complain at length before it uses the CPU.

    Args:
      devices: the folder with the devices of all drivers.
    """
    if not sys.platform.startswith("linux") or not any(map(_is_installed, _COMPILERS)):
        return False
    return not any(any(devices.glob(name)) for name in _DRIVERS) and ctypes.util.find_library("cuda") is None


@contextlib.contextmanager
def without_complaints() -> Iterator[None]:
    """Drops what libraries write to standard error, where compilers for accelerators miss a driver that is not here."""
    if not is_for_planning_only():
        yield
        return
    sys.stderr.flush()
    # Libraries in C++ write to the descriptor, not to `sys.stderr`.
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        # The package around it is missing.
        return False
