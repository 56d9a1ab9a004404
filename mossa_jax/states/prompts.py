"""Packed prompts on a mesh, ready to run, and the sizes that are rounded so that tasks share compiled programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.llama.adapters import HostAdapters, place_adapters
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.files.load import Model
from mossa_jax.llama.model import can_share_prefix
from mossa_jax.processes.watchdog import sign
from mossa_jax.states.forward import PassSpec, PrefixStates, RowBatch, read_prefix
from mossa_jax.tokens.batches import rows_per_batch
from mossa_jax.tokens.packing import Packing
from mossa_jax.tokens.rows import PromptRows

PREFIX_MULTIPLE = 32
"""The shared ids are padded to a multiple of this."""

# Longer prompts get 0, "not known": attention then does not limit how far back a query looks.
_MAX_OWN_SIZES = (64, 128, 256, 384, 512, 768)


@dataclass(frozen=True)
class PassConfig:
    """How prompts are read: what is pooled, and how many positions run at once.

    Attributes:
      pool: `last` (a prompt's last token), `mean` (over its tokens) or `all` (every token is a row).
      batch_rows: packed rows of `packing.row_length` positions per forward pass.
      packing: the rows that prompts are packed into.
    """

    pool: str
    batch_rows: int
    packing: Packing


class PromptPass:
    """Prompts, packed and placed, with everything else that a pass of several models over them takes.

    Attributes:
      spec: the static part of the pass.
      arguments: (base, adapters) on the devices.
      prefix: what the models make of the ids that all prompts share; None if they share none.
      prompts: how many prompts there are.
      models: M.
    """

    def __init__(self, model: Model, adapters: HostAdapters, prompts: Sequence[Sequence[int]], config: PassConfig):
        """Packs the prompts and runs the ids that they share; arguments as in `keep_states`."""
        # The first axis of every leaf of the adapters is M.
        self.prompts, self.models = len(prompts), len(next(iter(jax.tree.leaves(adapters))))
        self._mesh, self._config = model.mesh, config
        arch, mesh = model.architecture, model.mesh
        # With pool `all` the shared ids are rows too, once per prompt.
        packed = config.packing.prompts(prompts, may_share=config.pool != "all" and can_share_prefix(arch))
        self._rows = packed.rows
        shared = len(packed.prefix)
        # T and the most own ids are static in the program. Rounded, they are the same for many tasks.
        length = mesh_lib.round_up(shared, PREFIX_MULTIPLE)
        max_own = rounded_max_own(packed.max_own)
        self.spec = PassSpec(arch, config.pool, length, max_own, first_changed_block(arch, adapters), mesh)
        self.arguments = model.state, place_adapters(mesh, adapters)
        self.prefix: PrefixStates | None = None
        if shared:
            tokens = np.zeros((1, length), np.int32)  # [1, T]
            tokens[0, :shared] = packed.prefix
            # One row cannot be spread over `fsdp`, so it is whole on every device.
            placed = mesh_lib.place(mesh, tokens, (None, None))
            # The number of ids is an argument and not part of the program.
            count = mesh_lib.place(mesh, np.asarray(shared, np.int32), ())
            self.prefix = read_prefix(self.spec, *self.arguments, placed, count)

    def batches(self) -> Iterator[RowBatch]:
        """Yields the packed rows in batches on the mesh, rows over `fsdp`."""
        config = self._config
        for rows in self._rows:
            # Short rows first, then long ones; each length has its own program. P is rounded up, so that tasks with
            # about as many prompts per row share it.
            width = _power_of_two(rows.ids.shape[1])  # P
            # A batch of long rows has fewer of them, for about the same number of positions and the same memory.
            most = rows_per_batch(config.batch_rows, config.packing.row_length, rows.tokens.shape[1])
            # Whole rows per device: a batch that does not divide over `fsdp` would be computed by each of its devices.
            size = mesh_lib.round_up(_even_batch(len(rows), most), self._mesh.shape["fsdp"])
            for batch in rows.batches(size):
                sign()
                yield self._place(batch, width)

    def _place(self, batch: PromptRows, width: int) -> RowBatch:
        """Puts a batch on the mesh, with room for `width` prompts per row."""
        # Columns of `ends` and `ids` up to [B, P]; unused slots have id -1, and end 0, which is a valid column.
        room = ((0, 0), (0, width - batch.ids.shape[1]))
        arrays = {
            "tokens": batch.tokens,
            "segments": batch.segments,
            "positions": batch.positions,
            "ends": np.pad(batch.ends, room),
            "ids": np.pad(batch.ids, room, constant_values=-1),
        }
        return RowBatch(**{name: mesh_lib.place(self._mesh, a, ("rows", None)) for name, a in arrays.items()})


def first_changed_block(arch: Architecture, adapters: HostAdapters) -> int:
    """Returns the first block in which any adapter has an effect; the last block if there is none."""
    changed = np.zeros(arch.layers, bool)
    for lora in adapters.values():
        # Each [M, L].
        acting = [np.abs(lora[side]).max(axis=(2, 3)) > 0 for side in ("a", "b")] + [lora["scale"] != 0]
        # The update is scale * (x @ a) @ b: it acts where all three factors do. [M, L] -> [L].
        changed |= np.logical_and.reduce(acting).any(axis=0)
    # Without any update the last block is still run model by model, so that every pass has the same two parts.
    return int(changed.argmax()) if changed.any() else arch.layers - 1


def rounded_max_own(longest: int) -> int:
    """Returns `PassSpec.max_own` for prompts with at most `longest` ids of their own: one of a few sizes, or 0."""
    # A few sizes, since each is a program of its own.
    return next((size for size in _MAX_OWN_SIZES if size >= longest), 0)


def _power_of_two(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()


def _even_batch(rows: int, most: int) -> int:
    """Returns the rows per batch: as few batches as `most` allows, all of them nearly full.

    The size is rounded up to an eighth of a power of two, so that tasks of similar size share their programs.
    """
    # The number of batches is that of the largest size allowed; rows are then divided evenly among them.
    size = min(most, _power_of_two(rows))
    return min(mesh_lib.round_up(-(-rows // -(-rows // size)), max(size // 8, 1)), most)
