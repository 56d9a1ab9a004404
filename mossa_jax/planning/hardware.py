"""Hardware to plan for: TPU slices and GPU clusters. Programs are compiled for both, although neither is at hand."""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from mossa_jax.devices.chips import GPUS, TPUS, Chip
from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.planning.gpu_targets import target_config
from mossa_jax.processes.drivers import without_complaints


@dataclass(frozen=True)
class Hardware:
    """A TPU slice or a GPU cluster. All figures are per chip; a GPU counts as one chip.

    Attributes:
      name: as in `find_hardware`, e.g. "v5e:4x4", "h100:8x2".
      chips: the number of chips.
      memory: bytes that JAX may take.
      peak: FLOP/s in bfloat16, dense products.
      bandwidth: bytes/s from its memory.
      link: bytes/s that it receives from chips of its node; on a TPU, along one axis of the torus.
      network: bytes/s that it receives from other nodes through its own adapter.
      node: the number of chips that `link` joins; on a TPU slice, all of them.
      devices: that programs are compiled for; () if there is no compiler for this hardware.
      exact_products, fast_products: as in `devices.chips.Chip`.
      no_compiler: why there is none, and the way out; "" if there is one.
    """

    name: str
    chips: int
    memory: int
    peak: float
    bandwidth: float
    link: float
    network: float
    node: int
    devices: tuple[jax.Device, ...] = ()
    exact_products: float = 6.0
    fast_products: float = 3.0
    no_compiler: str = ""

    @property
    def is_tpu(self) -> bool:
        """Whether it is a TPU slice."""
        return self.name.partition(":")[0] in TPUS

    def receive_rate(self, grid: Mapping[str, int], axes: Sequence[str]) -> float:
        """Returns the bytes/s that a chip receives in a transfer over some axes of a mesh.

        A group of chips within a node uses their links. A group that spans nodes is a ring, which enters each node
        through the adapters of its members there; they share the work.

        Args:
          grid: the mesh, axis name -> size.
          axes: that the transfer runs over.
        """
        chips = np.arange(int(np.prod(list(grid.values())))).reshape(list(grid.values()))
        nodes = chips[tuple(slice(None) if axis in axes else 0 for axis in grid)].ravel() // self.node
        members = int(np.sum(nodes == nodes[0]))
        return self.link if members == nodes.size else min(self.link, members * self.network)


# Shapes of slices by chips, as Cloud TPU gives them for an accelerator type.
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {
    4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8",
}  # fmt: skip
# Accelerator type -> chip, chips per unit of its number, shapes. Types of v4 and v5p count cores, two per chip.
_TYPES = {"v5litepod": ("v5e", 1, _FLAT), "v6e": ("v6e", 1, _FLAT), "v5p": ("v5p", 2, _CUBES), "v4": ("v4", 2, _CUBES)}

# XLA_PYTHON_CLIENT_MEM_FRACTION of launch/xla_flags/h100.env.
_GPU_SHARE = 0.9
# FLOP/s, bytes/s from memory, over links and between nodes: of a CPU that nobody has.
_CPU = (1e11, 1e10, 1e12, 1e12)
_NOT_WANTED = "--nocompile"


def find_hardware(name: str) -> Hardware:
    """Returns the hardware that a name stands for.

    Args:
      name: of a TPU slice, e.g. "v5e:4x4", "v5p:2x2x4", or its type on Cloud TPU, e.g. "v5litepod-16"; or GPUs per
        node, by nodes, e.g. "h100:8", "a100:8x2".

    Raises:
      Refusal: 2 for an unknown name, or for a TPU slice if the package libtpu is not installed.
    """
    name = _slice_of(name)
    chip_name, _, shape = name.partition(":")
    if chip_name in TPUS:
        devices = topology_devices(name)
        return _hardware(name, TPUS[chip_name], len(devices), 1.0, devices)
    if chip_name in GPUS and re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", shape):
        node, _, nodes = shape.partition("x")
        with without_complaints():
            devices, no_compiler = _gpu_devices(chip_name, int(node), int(nodes or 1))
        cluster = _hardware(name, GPUS[chip_name], int(node), _GPU_SHARE, devices)
        return replace(cluster, chips=int(node) * int(nodes or 1), no_compiler=no_compiler)
    raise _unknown(name)


def hardware_by_formula(name: str) -> Hardware:
    """Returns the hardware that a name stands for without a compiler; no package for TPUs or GPUs is needed.

    Args:
      name: as in `find_hardware`; or "cpu:1" for devices of a CPU, whose figures stand for nothing: they serve where
        times are those of a run on it.

    Raises:
      Refusal: 2 for an unknown name.
    """
    name = _slice_of(name)
    chip, _, shape = name.partition(":")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){0,2}", shape):
        raise _unknown(name)
    sizes = [int(size) for size in shape.split("x")]
    if chip in TPUS and len(sizes) > 1:
        return replace(_hardware(name, TPUS[chip], math.prod(sizes), 1.0, ()), no_compiler=_NOT_WANTED)
    if chip in GPUS and len(sizes) < 3:
        node = _hardware(name, GPUS[chip], sizes[0], _GPU_SHARE, ())
        return replace(node, chips=math.prod(sizes), no_compiler=_NOT_WANTED)
    if chip == "cpu" and len(sizes) == 1:
        memory = int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / sizes[0])
        return Hardware(name, sizes[0], memory, *_CPU, node=sizes[0], no_compiler=_NOT_WANTED)
    raise _unknown(name)


def _slice_of(name: str) -> str:
    """Returns the slice of an accelerator type of Cloud TPU, e.g. v5e:4x4 for v5litepod-16; other names as they are."""
    kind, _, number = name.partition("-")
    if kind in _TYPES and number.isdigit():
        chip, each, shapes = _TYPES[kind]
        if int(number) % each == 0 and int(number) // each in shapes:
            return f"{chip}:{shapes[int(number) // each]}"
    return name


def _unknown(name: str) -> Refusal:
    return Refusal(
        BAD_CONFIG,
        f"--topology={name} is unknown; give a TPU slice ({', '.join(TPUS)}) such as v5e:4x4, or GPUs per node by "
        f"nodes ({', '.join(GPUS)}) such as h100:8 or h100:8x2",
    )


def _hardware(name: str, chip: Chip, chips: int, share: float, devices: tuple[jax.Device, ...]) -> Hardware:
    """Returns one node of `chips` chips, of whose memory JAX may take `share`."""
    return Hardware(
        name, chips, int(share * chip.memory * 2**30), chip.peak, chip.bandwidth, chip.link, chip.network, chips,
        devices, chip.exact_products, chip.fast_products,
    )  # fmt: skip


@functools.cache
def _gpu_devices(chip: str, node: int, nodes: int) -> tuple[tuple[jax.Device, ...], str]:
    """Returns GPUs that need not exist, or none, with the reason.

    Args:
      chip: one of `chips.GPUS`.
      node: GPUs per node.
      nodes: the number of nodes.
    """
    from jax.experimental import topologies

    try:
        # Slices x hosts x GPUs.
        devices = topologies.get_topology_desc(
            platform="cuda", target_config=target_config(chip), topology=f"1x{nodes}x{node}"
        ).devices
        # Shows whether the assembler and NVIDIA's device library are installed: `exp` is one of its functions.
        number = jax.ShapeDtypeStruct((), jnp.float32, sharding=SingleDeviceSharding(devices[0]))
        jax.jit(jnp.exp).lower(number).compile()
    except Exception as error:
        # JAX and its plugin raise errors of many types: there is no plugin, it is too old, or a part of it is missing.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return (), f"no compiler for NVIDIA GPUs ({reason}); pip install 'mossa_jax[plan]' brings one"
    return tuple(devices), ""


def topology_devices(name: str) -> tuple[jax.Device, ...]:
    """Returns the devices of a TPU slice that need not exist.

    Args:
      name: e.g. "v5e:4x4", "v5p:2x2x4".

    Raises:
      Refusal: 2 for an unknown topology, or if the package libtpu is not installed.
    """
    from jax.experimental import topologies

    # There is no metadata server to ask.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # Nothing runs, so other processes may load libtpu at the same time.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    cores = TPUS[name.split(":")[0]].cores
    options = {"chip_config_name": cores} if cores else {}
    try:
        return tuple(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except Exception as error:
        # The plugin raises errors of many types: libtpu is missing, or the shape does not exist.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Refusal(
            BAD_CONFIG,
            f"--topology={name} is not available ({reason}); pip install libtpu, and give a shape such as v5e:4x4",
        ) from None
