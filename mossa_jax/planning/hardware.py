"""Hardware to plan for: TPU slices and GPU clusters. Programs are compiled for both, although neither is at hand."""

from __future__ import annotations

import functools
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


# XLA_PYTHON_CLIENT_MEM_FRACTION of launch/xla_flags/h100.env.
_GPU_SHARE = 0.9


def find_hardware(name: str) -> Hardware:
    """Returns the hardware that a name stands for.

    Args:
      name: of a TPU slice, e.g. "v5e:4x4", "v5p:2x2x4"; or GPUs per node, by nodes, e.g. "h100:8", "a100:8x2".

    Raises:
      Refusal: 2 for an unknown name, or for a TPU slice if the package libtpu is not installed.
    """
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
    raise Refusal(
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
