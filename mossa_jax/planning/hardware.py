"""Hardware that need not be here: TPU slices, which can be compiled for, and GPU clusters, known by their figures."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import jax

from mossa_jax.rundir import BAD_CONFIG, Refusal


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


@dataclass(frozen=True)
class _Kind:
    """Makers' figures of a chip: GiB; the others as of `Hardware`. `cores`: which make a TPU chip, where it matters."""

    memory: float
    peak: float
    bandwidth: float
    link: float
    network: float = 0.0
    cores: str | None = None


# Memory as libtpu 0.0.52 says it is available.
_TPUS = {
    "v4": _Kind(30.75, 275e12, 1.23e12, 90e9, cores="megacore"),
    "v5e": _Kind(15.75, 197e12, 0.82e12, 90e9),
    "v5p": _Kind(95.73, 459e12, 2.77e12, 180e9, cores="megacore"),
    "v6e": _Kind(31.24, 918e12, 1.64e12, 180e9),
}
# NVLink in one direction; the network at one adapter a GPU (200 Gbit/s for A100, 400 for the others).
_GPUS = {
    "a100": _Kind(80, 312e12, 2.04e12, 300e9, 25e9),
    "h100": _Kind(80, 989e12, 3.35e12, 450e9, 50e9),
    "h200": _Kind(141, 989e12, 4.80e12, 450e9, 50e9),
}
# XLA_PYTHON_CLIENT_MEM_FRACTION of launch/xla_flags/h100.env.
_GPU_SHARE = 0.9


def find_hardware(name: str) -> Hardware:
    """What a topology's name stands for: "v5e:4x4", "v5p:2x2x4" (TPU slices), "h100:8", "a100:8x2" (GPUs x nodes).

    Raises:
      Refusal: 2 for an unknown one, or for a TPU slice without the package libtpu.
    """
    kind, _, shape = name.partition(":")
    if kind in _TPUS:
        devices, known = topology_devices(name), _TPUS[kind]
        return _hardware(name, known, len(devices), len(devices), 1.0, devices)
    if kind in _GPUS and re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", shape):
        node, _, nodes = shape.partition("x")
        return _hardware(name, _GPUS[kind], int(node) * int(nodes or 1), int(node), _GPU_SHARE)
    raise Refusal(
        BAD_CONFIG,
        f"--topology={name} is unknown: one TPU slice of {', '.join(_TPUS)}, as v5e:4x4, or GPUs a node, by "
        f"nodes, of {', '.join(_GPUS)}, as h100:8 or h100:8x2",
    )


def _hardware(
    name: str, kind: _Kind, chips: int, node: int, share: float, devices: tuple[jax.Device, ...] = ()
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
    cores = _TPUS[name.split(":")[0]].cores
    options = {"chip_config_name": cores} if cores else {}
    try:
        return tuple(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except Exception as error:  # whatever the plugin raises: no libtpu, or a shape that does not exist
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Refusal(
            BAD_CONFIG, f"--topology={name} cannot be described ({first}); pip install libtpu, and a shape like v5e:4x4"
        ) from None
