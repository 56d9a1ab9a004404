"""Hardware that need not be here: TPU slices, which can be compiled for, and GPU clusters, known by their figures."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import jax

from mossa_jax.devices.chips import GPUS, TPUS, Chip
from mossa_jax.errors import BAD_CONFIG, Refusal


@dataclass(frozen=True)
class Hardware:
    """A slice or a cluster; all figures are those of one chip (a GPU is one).

    Attributes:
      name: as it was asked for, e.g. "v5e:4x4", "h100:8x2".
      chips: how many.
      memory: bytes that JAX may take.
      peak: FLOP/s in bfloat16, dense products.
      bandwidth: bytes/s from its memory.
      link: bytes/s that it receives from others of its node; on a TPU along one axis of the torus.
      network: bytes/s that it receives from other nodes.
      node: chips that `link` joins; on a TPU slice all of them.
      devices: what programs are compiled for; () where they cannot be.
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

    def received(self, group: int) -> float:
        """Bytes/s that a chip receives in a transfer among `group` neighbouring chips."""
        return self.link if group <= self.node else self.network


# XLA_PYTHON_CLIENT_MEM_FRACTION of launch/xla_flags/h100.env.
_GPU_SHARE = 0.9


def find_hardware(name: str) -> Hardware:
    """What a topology's name stands for: "v5e:4x4", "v5p:2x2x4" (TPU slices), "h100:8", "a100:8x2" (GPUs x nodes).

    Raises:
      Refusal: 2 for an unknown one, or for a TPU slice without the package libtpu.
    """
    kind, _, shape = name.partition(":")
    if kind in TPUS:
        devices, known = topology_devices(name), TPUS[kind]
        return _hardware(name, known, len(devices), len(devices), 1.0, devices)
    if kind in GPUS and re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", shape):
        node, _, nodes = shape.partition("x")
        return _hardware(name, GPUS[kind], int(node) * int(nodes or 1), int(node), _GPU_SHARE)
    raise Refusal(
        BAD_CONFIG,
        f"--topology={name} is unknown: one TPU slice of {', '.join(TPUS)}, as v5e:4x4, or GPUs a node, by "
        f"nodes, of {', '.join(GPUS)}, as h100:8 or h100:8x2",
    )


def _hardware(
    name: str, kind: Chip, chips: int, node: int, share: float, devices: tuple[jax.Device, ...] = ()
) -> Hardware:
    memory = int(share * kind.memory * 2**30)
    return Hardware(name, chips, memory, kind.peak, kind.bandwidth, kind.link, kind.network, node, devices)


def topology_devices(name: str) -> tuple[jax.Device, ...]:
    """Devices of a TPU slice that need not exist, e.g. "v5e:4x4", "v5p:2x2x4".

    Raises:
      Refusal: 2 for an unknown topology, or without the package libtpu.
    """
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to ask
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nothing runs, so others need not be kept out
    cores = TPUS[name.split(":")[0]].cores
    options = {"chip_config_name": cores} if cores else {}
    try:
        return tuple(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except Exception as error:  # whatever the plugin raises: no libtpu, or a shape that does not exist
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Refusal(
            BAD_CONFIG, f"--topology={name} cannot be described ({first}); pip install libtpu, and a shape like v5e:4x4"
        ) from None
