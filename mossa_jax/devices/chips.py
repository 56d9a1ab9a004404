"""Chips by the makers' figures: what one could do at most, what it holds, how fast it is reached."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """Figures of one chip; a GPU is one.

    Attributes:
      memory: GiB.
      peak: FLOP/s in bfloat16, dense products.
      bandwidth: bytes/s from its memory.
      link: bytes/s that it receives from others of its node; on a TPU along one axis of the torus.
      network: bytes/s that it receives from other nodes.
      cores: which make a TPU chip, where it matters.
    """

    memory: float
    peak: float
    bandwidth: float
    link: float
    network: float = 0.0
    cores: str | None = None


# Memory as libtpu 0.0.52 says it is available.
TPUS = {
    "v4": Chip(30.75, 275e12, 1.23e12, 90e9, cores="megacore"),
    "v5e": Chip(15.75, 197e12, 0.82e12, 90e9),
    "v5p": Chip(95.73, 459e12, 2.77e12, 180e9, cores="megacore"),
    "v6e": Chip(31.24, 918e12, 1.64e12, 180e9),
}
# NVLink in one direction; the network at one adapter a GPU (200 Gbit/s for A100, 400 for the others).
GPUS = {
    "a100": Chip(80, 312e12, 2.04e12, 300e9, 25e9),
    "h100": Chip(80, 989e12, 3.35e12, 450e9, 50e9),
    "h200": Chip(141, 989e12, 4.80e12, 450e9, 50e9),
}
# What a device's kind, as JAX calls it, begins with; longer ones first.
_KINDS = {
    "TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5p": "v5p", "TPU v5": "v5p", "TPU v6 lite": "v6e",
    "TPU v6e": "v6e", "NVIDIA A100": "a100", "NVIDIA H100": "h100", "NVIDIA H200": "h200",
}  # fmt: skip


def chip_of(kind: str) -> Chip | None:
    """The chip of a device's `device_kind`; None where it is not known."""
    return next(((TPUS | GPUS)[chip] for name, chip in _KINDS.items() if kind.startswith(name)), None)


def memory_of(kind: str) -> int | None:
    """Bytes that a device of this `device_kind` holds: what its name says (A100s come in two sizes) or its chip's."""
    said, chip = re.search(r"\b(\d+)GB\b", kind), chip_of(kind)
    size = float(said[1]) if said else chip.memory if chip else None
    return None if size is None else int(size * 2**30)
