"""Hardware to plan for: TPU slices, which programs are compiled for, and GPU clusters, which are known by figures."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import jax

from mossa_jax.devices.chips import GPUS, TPUS, Chip
from mossa_jax.errors import BAD_CONFIG, Refusal


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
      network: bytes/s that it receives from other nodes.
      node: the number of chips that `link` joins; on a TPU slice, all of them.
      devices: that programs are compiled for; () if there is no compiler for this hardware.
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

    def receive_rate(self, group: int) -> float:
        """Returns the bytes/s that a chip receives in a transfer among `group` neighbouring chips."""
        return self.link if group <= self.node else self.network


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
        return _hardware(name, TPUS[chip_name], len(devices), len(devices), 1.0, devices)
    if chip_name in GPUS and re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", shape):
        node, _, nodes = shape.partition("x")
        return _hardware(name, GPUS[chip_name], int(node) * int(nodes or 1), int(node), _GPU_SHARE)
    raise Refusal(
        BAD_CONFIG,
        f"--topology={name} is unknown; give a TPU slice ({', '.join(TPUS)}) such as v5e:4x4, or GPUs per node by "
        f"nodes ({', '.join(GPUS)}) such as h100:8 or h100:8x2",
    )


def _hardware(
    name: str, chip: Chip, chips: int, node: int, share: float, devices: tuple[jax.Device, ...] = ()
) -> Hardware:
    """Returns `chips` chips, `node` per node, of whose memory JAX may take `share`."""
    memory = int(share * chip.memory * 2**30)
    return Hardware(name, chips, memory, chip.peak, chip.bandwidth, chip.link, chip.network, node, devices)


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
