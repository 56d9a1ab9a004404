"""Chips by their makers' figures: peak speed, memory and bandwidth."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """Figures of one chip; a GPU counts as one.

    Attributes:
      memory: GiB.
      peak: FLOP/s in dense bfloat16 products.
      bandwidth: bytes/s from its own memory.
      link: bytes/s received from other chips of its node; on a TPU along one axis of the torus.
      network: bytes/s received from other nodes.
      cores: name of the core configuration of a TPU chip, where there is a choice.
      float32: FLOP/s in float32 products, if the chip has units for them; 0 if they are made of bfloat16 products.
      tf32: FLOP/s in dense products of float32 numbers rounded to 10 bits, on a GPU.
    """

    memory: float
    peak: float
    bandwidth: float
    link: float
    network: float = 0.0
    cores: str | None = None
    float32: float = 0.0
    tf32: float = 0.0

    @property
    def exact_products(self) -> float:
        """How many bfloat16 products take as long as one float32 product of precision HIGHEST.

        A TPU makes it of six. A GPU computes it outside its matrix units.
        """
        return self.peak / self.float32 if self.float32 else 6.0

    @property
    def fast_products(self) -> float:
        """How many bfloat16 products take as long as one float32 product of precision HIGH.

        A TPU makes it of three. XLA computes it in TF32 on a GPU, in one pass.
        """
        return self.peak / self.tf32 if self.tf32 else 3.0


# Memory as reported by libtpu 0.0.52.
TPUS = {
    "v4": Chip(30.75, 275e12, 1.23e12, 90e9, cores="megacore"),
    "v5e": Chip(15.75, 197e12, 0.82e12, 90e9),
    "v5p": Chip(95.73, 459e12, 2.77e12, 180e9, cores="megacore"),
    "v6e": Chip(31.24, 918e12, 1.64e12, 180e9),
}
# Memory as the driver reports it. Links: NVLink in one direction. Network: one adapter per GPU (200 Gbit/s for A100,
# 400 Gbit/s for the others).
GPUS = {
    "a100-40": Chip(39.42, 312e12, 1.56e12, 300e9, 25e9, float32=19.5e12, tf32=156e12),
    "a100": Chip(79.25, 312e12, 2.04e12, 300e9, 25e9, float32=19.5e12, tf32=156e12),
    "h100": Chip(79.11, 989e12, 3.35e12, 450e9, 50e9, float32=67e12, tf32=494e12),
    "h200": Chip(141.0, 989e12, 4.80e12, 450e9, 50e9, float32=67e12, tf32=494e12),
    "b200": Chip(178.36, 2250e12, 8.0e12, 900e9, 50e9, float32=75e12, tf32=1125e12),
}
# Prefixes of JAX's `device_kind`; longer ones first.
_KINDS = {
    "TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5p": "v5p", "TPU v5": "v5p", "TPU v6 lite": "v6e",
    "TPU v6e": "v6e", "NVIDIA A100": "a100", "NVIDIA H100": "h100", "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
}  # fmt: skip


def chip_name(kind: str) -> str | None:
    """Returns the name in `TPUS` or `GPUS` of a device's `device_kind`; None if it is unknown."""
    return next((chip for name, chip in _KINDS.items() if kind.startswith(name)), None)


def chip_of(kind: str) -> Chip | None:
    """Returns the chip of a device's `device_kind`; None if it is unknown."""
    name = chip_name(kind)
    return None if name is None else (TPUS | GPUS)[name]


def memory_of(kind: str) -> int | None:
    """Returns the bytes of memory of a device: from its name, since A100s come in two sizes, or else from its chip."""
    in_name, chip = re.search(r"\b(\d+)GB\b", kind), chip_of(kind)
    size = float(in_name[1]) if in_name else chip.memory if chip else None
    return None if size is None else int(size * 2**30)
