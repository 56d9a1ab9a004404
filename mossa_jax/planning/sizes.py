"""The sizes that a program is planned for: base model, adapters, batch, shared prefix, and the batch's layout."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from mossa_jax.config import Mesh
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.llama.architecture import Architecture


@dataclass(frozen=True)
class Base:
    """The frozen base model on a mesh.

    Attributes:
      arch: its architecture.
      dtype: type of its weights, "float32" or "bfloat16".
      grid: the mesh, which may be abstract (`programs.grid_for`).
      is_tpu: whether an abstract mesh stands for a TPU slice; otherwise it stands for GPUs.
    """

    arch: Architecture
    dtype: str
    grid: jax.sharding.Mesh
    is_tpu: bool = False


@dataclass(frozen=True)
class AdapterSize:
    """Stacked LoRA adapters that run at once.

    Attributes:
      models: A, the number of adapters, empty slots included.
      rank: r.
      targets: projections that have an adapter, as in `config.tuning.targets`.
    """

    models: int
    rank: int
    targets: tuple[str, ...]


@dataclass(frozen=True)
class BatchSize:
    """The batch of one model.

    Attributes:
      rows: B, packed rows or prompts.
      row_length: S, positions of a row.
    """

    rows: int
    row_length: int

    def filling(self, grid: jax.sharding.Mesh) -> BatchSize:
        """Returns the batch with its rows rounded up to the fsdp axis of `grid`."""
        return BatchSize(mesh_lib.round_up(self.rows, grid.shape["fsdp"]), self.row_length)


@dataclass(frozen=True)
class PrefixSize:
    """The size of a shared prefix: ids that all sequences begin with, and that are run once.

    Attributes:
      columns: room for the shared ids; 0 if there are none.
      max_own: the most ids that a sequence has after them; 0 if that is not known.
    """

    columns: int = 0
    max_own: int = 0


NO_PREFIX = PrefixSize()


@dataclass(frozen=True)
class BatchLayout:
    """The batches of several models on a mesh.

    Attributes:
      mesh: chips on each axis.
      models: the number of models that run at once, in tuning a multiple of the adapter axis.
      batch: the batch of each model.
      itemsize: bytes of one number of the base.
      parts: micro-batches that the rows are split into. If their rows do not divide over `fsdp`, each chip of that axis
        works through all of them.
      is_gpu: whether the compiler is that for GPUs.
    """

    mesh: Mesh
    models: int
    batch: BatchSize
    itemsize: int
    parts: int = 1
    is_gpu: bool = False

    @classmethod
    def of(cls, base: Base, models: int, batch: BatchSize, parts: int = 1) -> BatchLayout:
        """Returns the layout on the mesh of `base`, with the item size of its weights."""
        mesh = Mesh(*(base.grid.shape[axis] for axis in mesh_lib.AXES))
        is_abstract = isinstance(base.grid, AbstractMesh)
        is_gpu = not base.is_tpu if is_abstract else base.grid.devices.flat[0].platform == "gpu"
        return cls(mesh, models, batch, jnp.dtype(base.dtype).itemsize, parts, is_gpu)

    @property
    def distinct_share(self) -> float:
        """Share of the chips along `fsdp` that work on rows which no other chip works on."""
        return 1.0 if self.batch.rows % (self.mesh.fsdp * self.parts) == 0 else 1 / self.mesh.fsdp

    @property
    def positions_per_chip(self) -> float:
        """Positions, over all models, that a chip works through."""
        positions = self.models / self.mesh.adapter * self.batch.rows * self.batch.row_length
        return positions / (self.mesh.fsdp * self.distinct_share)
