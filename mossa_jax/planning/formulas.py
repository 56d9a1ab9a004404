"""What programs take, by formula: operations, temporary memory, bytes between chips.

For choosing what to compile, and for hardware that nothing can be compiled for. Operations are exact counts of matrix
products; memory and transfers follow what the compiler was seen to do on TPUs (BUILD_NOTES.md, "Planning").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mossa_jax.llama.adapters import target_sizes
from mossa_jax.llama.architecture import Architecture
from mossa_jax.similarity import engine
from mossa_jax.similarity.gram import tile_size
from mossa_jax.similarity.null import GATHER_COST, MAX_GRAM_ROWS
from mossa_jax.tuning.flops import mean_keys
from mossa_jax.tuning.loss import HEAD_TOKENS

# bfloat16 products that make one float32 product, at the precision of the Gram tiles and of the permutations.
_EXACT_PASSES, _PERMUTED_PASSES = 6, 3
_FLOAT32 = 4


@dataclass(frozen=True)
class Spread:
    """A batch on a mesh.

    Attributes:
      adapter, fsdp, tensor: chips on each axis.
      models: that run at once, a multiple of `adapter` in tuning.
      rows, row_length: a model and batch.
      itemsize: bytes of a number of the base.
      parts: that rows are worked through in; where a part does not divide over `fsdp` it stands whole on each chip.
    """

    adapter: int
    fsdp: int
    tensor: int
    models: int
    rows: int
    row_length: int
    itemsize: int
    parts: int = 1

    @property
    def used(self) -> float:
        """Share of the chips whose rows are their own."""
        return 1.0 if self.rows % (self.fsdp * self.parts) == 0 else 1 / self.fsdp

    @property
    def here(self) -> float:
        """Positions, of all models, that a chip works through."""
        return self.models / self.adapter * self.rows * self.row_length / (self.fsdp * self.used)


def forward_flops(arch: Architecture, positions: float, row_length: int) -> float:
    """Of the blocks, for so many positions of one model, without head and adapters (which are below a percent)."""
    blocks = arch.matrix_parameters - arch.vocab * arch.hidden
    windowed = len(arch.windowed)
    keys = windowed * mean_keys(row_length, arch.window) + (arch.layers - windowed) * mean_keys(row_length, 0)
    return positions * (2 * blocks + 4 * arch.heads * arch.head_dim * keys)


def similarity_flops(
    arch: Architecture, models: int, rows: int, pairs: Sequence[tuple[int, int]], permutations: int
) -> float:
    """Of one task's kept rows, in bfloat16 products: every float32 product is several of these."""
    layers, width = arch.layers + 2, arch.hidden
    costs = engine.estimate_costs(models, layers, rows, width, pairs, 1, "last")
    if rows <= MAX_GRAM_ROWS and GATHER_COST * rows <= width**2:
        again = 2 * models * rows**2 * width  # Gram matrices, once; a permutation then gathers
    else:
        again = permutations * len(pairs) * 2 * rows * width**2
    return _EXACT_PASSES * costs.kept.flops + _PERMUTED_PASSES * layers * again * (permutations > 0)


def moments_flops(arch: Architecture, models: int, rows: float, pairs: Sequence[tuple[int, int]], pool: str) -> float:
    """Of the moments of so many rows, in bfloat16 products."""
    costs = engine.estimate_costs(models, arch.layers + 2, int(rows), arch.hidden, pairs, 1, pool)
    return _EXACT_PASSES * costs.moments.flops


def tuning_bytes(arch: Architecture, spread: Spread, remat: bool) -> float:
    """Temporary memory of a training step: block inputs, one block's insides (all blocks', without recomputation), a
    gathered block, and a chunk of the head."""
    here, inside = spread.here / spread.parts, _inside(arch, spread)
    kept = here * arch.layers * (arch.hidden * spread.itemsize if remat else inside)
    head = HEAD_TOKENS * spread.models / spread.adapter * arch.vocab / spread.tensor * _FLOAT32
    return kept + here * inside + gathered_bytes(arch, spread) + 2 * head


def states_bytes(arch: Architecture, spread: Spread, kept: int) -> float:
    """Temporary memory of the pass of a comparison: what is kept on a chip is there twice, old and new."""
    return kept + _passing(arch, spread) + gathered_bytes(arch, spread)


def similarity_bytes(arch: Architecture, models: int, rows: int) -> float:
    """Temporary memory of the similarities of a task: one layer of all models whole on every chip, raw and centred, a
    tile of each Gram matrix, and a permutation's product."""
    layer = models * rows * arch.hidden
    return _FLOAT32 * (2 * layer + models * tile_size(rows) ** 2 + arch.hidden**2)


def cache_bytes(arch: Architecture, spread: Spread, new_tokens: int) -> float:
    """Keys and values of a batch of prompts on a chip."""
    rows = spread.models * spread.rows / (spread.fsdp * spread.used)
    heads = arch.kv_heads / spread.tensor if arch.kv_heads % spread.tensor == 0 else arch.kv_heads
    return 2 * arch.layers * rows * (spread.row_length + new_tokens) * heads * arch.head_dim * spread.itemsize


def score_bytes(arch: Architecture, spread: Spread, new_tokens: int) -> float:
    """Temporary memory of greedy answers: the cache of two steps of the loop, or one while prompts are read."""
    cache = cache_bytes(arch, spread, new_tokens)
    return cache + max(cache, _passing(arch, spread)) + gathered_bytes(arch, spread)


def gathered_bytes(arch: Architecture, spread: Spread) -> float:
    """One block's matrices, whole over `fsdp`."""
    return _block(arch) * spread.itemsize / spread.tensor if spread.fsdp > 1 else 0.0


def tuning_transfers(arch: Architecture, spread: Spread, rank: int, targets: Sequence[str], remat: bool) -> dict:
    """What a chip receives in a training step, by mesh axis.

    Over `fsdp` the blocks' matrices are gathered for the forward and for the backward pass of every part and the head
    once, and gradients of adapters are summed; over `tensor` each block's two sums are made forward, backward, and once
    more where blocks are recomputed.
    """
    share, tensor = (spread.fsdp - 1) / spread.fsdp, (spread.tensor - 1) / spread.tensor
    weights = (
        (spread.parts * 2 * arch.layers * _block(arch) + arch.vocab * arch.hidden) * spread.itemsize / spread.tensor
    )
    sizes = target_sizes(arch)
    adapters = arch.layers * rank * sum(sum(sizes[target]) for target in targets) * _FLOAT32
    sums = (3 if remat else 2) * 2 * arch.layers * spread.here * arch.hidden * spread.itemsize
    return {
        "fsdp": share * (weights + 2 * adapters * spread.models / spread.adapter),
        "tensor": 2 * tensor * sums,
    }


def states_transfers(arch: Architecture, spread: Spread) -> dict:
    """The same for one forward pass over a batch."""
    share, tensor = (spread.fsdp - 1) / spread.fsdp, (spread.tensor - 1) / spread.tensor
    return {
        "fsdp": share * arch.layers * _block(arch) * spread.itemsize / spread.tensor,
        "tensor": 2 * tensor * 2 * arch.layers * spread.here * arch.hidden * spread.itemsize,
    }


def similarity_transfers(arch: Architecture, spread: Spread, models: int, rows: int) -> dict:
    """The same for a task's similarities: every layer is gathered once."""
    layer = models * rows * arch.hidden * _FLOAT32
    return {"fsdp": (arch.layers + 2) * layer * (spread.fsdp - 1) / spread.fsdp}


def score_transfers(arch: Architecture, spread: Spread, new_tokens: int) -> dict:
    """The same for greedy answers: the prompts' pass, and one over a position for each new token."""
    prompts = states_transfers(arch, spread)
    # A step of decoding sums the products of all rows instead of gathering matrices.
    width = 5 * arch.hidden + 2 * arch.feed_forward
    sums = 2 * arch.layers * spread.models * spread.rows * width * spread.itemsize
    prompts["fsdp"] += new_tokens * sums / spread.tensor * (spread.fsdp - 1) / spread.fsdp
    return prompts


def _passing(arch: Architecture, spread: Spread) -> float:
    """Bytes of what is alive inside of a block that is only passed."""
    return spread.here * spread.itemsize * 6 * arch.hidden


def _block(arch: Architecture) -> int:
    return (arch.matrix_parameters - arch.vocab * arch.hidden) // arch.layers


def _inside(arch: Architecture, spread: Spread) -> float:
    """Bytes a position that are alive inside of a differentiated block; over `tensor` with parts yet to be summed."""
    heads = (arch.heads + arch.kv_heads) * arch.head_dim
    whole = (9 if spread.tensor > 1 else 5) * arch.hidden
    return spread.itemsize * (whole + (2 * heads + 4 * arch.feed_forward) / spread.tensor)
