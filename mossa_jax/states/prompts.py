"""Packed prompts on a mesh, ready to run."""

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
from mossa_jax.states.shapes import PassShape, RowShape, pass_shapes
from mossa_jax.tokens.packing import PackedPrompts, PackedSizes, Packing
from mossa_jax.tokens.rows import PromptRows


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

    def pack(self, arch: Architecture, prompts: Sequence[Sequence[int]]) -> PackedPrompts:
        """Packs the token ids of prompts for a model of this architecture.

        Raises:
          ValueError: a prompt has no ids or fits no row.
        """
        # With pool `all` the shared ids are rows too, once per prompt.
        return self.packing.prompts(prompts, may_share=self.pool != "all" and can_share_prefix(arch))

    def shapes(self, lists: Sequence[PackedSizes], mesh: jax.sharding.Mesh) -> tuple[PassShape, ...]:
        """Returns the shapes of passes over these lists of packed prompts, as in `pass_shapes`."""
        return pass_shapes(lists, mesh, self.batch_rows, self.packing.row_length)


class PromptPass:
    """Prompts, packed and placed, with everything else that a pass of several models over them takes.

    Attributes:
      shape: the sizes of its programs.
      spec: the static part of the pass.
      arguments: (base, adapters) on the devices.
      prefix: what the models make of the ids that all prompts share; None if they share none.
      prompts: how many prompts there are.
      models: M.
    """

    def __init__(
        self,
        model: Model,
        adapters: HostAdapters,
        prompts: Sequence[Sequence[int]],
        config: PassConfig,
        shapes: Sequence[PassShape] = (),
    ):
        """Packs the prompts and runs the ids that they share; arguments as in `keep_states`."""
        # The first axis of every leaf of the adapters is M.
        self.prompts, self.models = len(prompts), len(next(iter(jax.tree.leaves(adapters))))
        self._mesh = model.mesh
        arch, mesh = model.architecture, model.mesh
        packed = config.pack(arch, prompts)
        self._rows = packed.rows
        shared = len(packed.prefix)
        # A list that fits none of the shapes gets one of its own, and programs of its own.
        own = config.shapes([packed.sizes], mesh)
        self.shape = shape = next(shape for shape in (*shapes, *own) if shape.fits(packed.sizes))
        length = shape.prefix_length
        self.spec = PassSpec(arch, config.pool, length, shape.max_own, first_changed_block(arch, adapters), mesh)
        self.arguments = model.state, place_adapters(mesh, adapters)
        self.prefix: PrefixStates | None = None
        if shared:
            tokens = np.zeros((1, length), np.int32)  # [1, T]
            tokens[0, :shared] = packed.prefix
            # One row cannot be spread over `fsdp`, so it is whole on every device.
            placed = mesh_lib.place(mesh, tokens, (None, None))
            # The number of ids is an argument and not part of the program.
            count = mesh_lib.place(mesh, np.asarray(shared, np.int32), ())
            self.prefix = read_prefix(arch, mesh, *self.arguments, placed, count)

    def batches(self) -> Iterator[RowBatch]:
        """Yields the packed rows in batches on the mesh, rows over `fsdp`."""
        for _, batch in self.batches_with_rows():
            yield batch

    def batches_with_rows(self) -> Iterator[tuple[PromptRows, RowBatch]]:
        """Yields each batch on the host, empty rows at its end included, and on the mesh."""
        shapes: dict[int, RowShape] = {shape.length: shape for shape in self.shape.rows}
        # Short rows first, then long ones; each length has its own program.
        for rows in self._rows:
            shape = shapes[rows.tokens.shape[1]]
            for batch in rows.batches(shape.batches_of(len(rows))):
                sign()
                yield batch, self._place(batch, shape.prompts)

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
