"""Operations, temporary memory and transfers of each program, by formula.

They serve to choose what to compile, and to plan for hardware that nothing can be compiled for. Operations are exact
counts of matrix products. Memory and transfers follow the observed behaviour of the compilers for TPUs and for GPUs
(docs/measurements.md, "Plans"). Transfers are bytes that one chip receives, by kind and mesh axis.

Shape letters: D hidden width, L layers, V vocabulary, n rows that are compared.
"""

from __future__ import annotations

from collections.abc import Sequence

from mossa_jax.llama.adapters import target_sizes
from mossa_jax.llama.architecture import Architecture
from mossa_jax.planning.sizes import AdapterSize, BatchLayout
from mossa_jax.similarity import engine
from mossa_jax.similarity.gram import tile_size
from mossa_jax.similarity.null import GATHER_COST, MAX_GRAM_ROWS
from mossa_jax.tuning.loss import HEAD_TOKENS

_FLOAT32 = 4

Transfers = dict[tuple[str, str], float]
"""Kind, as in `collectives`, and mesh axis -> bytes that one chip receives."""


def similarity_flops(
    arch: Architecture,
    models: int,
    rows: int,
    pairs: Sequence[tuple[int, int]],
    permutations: int,
    exact_products: float,
    fast_products: float,
) -> float:
    """Counts the operations of comparing one task's kept rows, in bfloat16 products that take as long.

    Args:
      arch: the base model's.
      models: the number of models whose rows are kept.
      rows: n.
      pairs: models that are compared.
      permutations: of the null.
      exact_products, fast_products: as in `hardware.Hardware`.
    """
    layers, width = arch.layers + 2, arch.hidden
    costs = engine.estimate_costs(models, layers, rows, width, pairs, 1, "last")
    if rows <= MAX_GRAM_ROWS and GATHER_COST * rows <= width**2:
        # The Gram matrices are computed once; a permutation then only gathers from them.
        null = 2 * models * rows**2 * width
    else:
        null = permutations * len(pairs) * 2 * rows * width**2
    return exact_products * costs.kept.flops + fast_products * layers * null * (permutations > 0)


def moments_flops(
    arch: Architecture, models: int, rows: float, pairs: Sequence[tuple[int, int]], pool: str, exact_products: float
) -> float:
    """Counts the operations of summing the moments of `rows` rows, in bfloat16 products that take as long."""
    costs = engine.estimate_costs(models, arch.layers + 2, int(rows), arch.hidden, pairs, 1, pool)
    return exact_products * costs.moments.flops


def tuning_bytes(arch: Architecture, layout: BatchLayout, remat: bool) -> float:
    """Returns the temporary bytes of a training step.

    They are the inputs of all blocks (without recomputation their activations), the work on one block, one gathered
    block, and one chunk of the head.
    """
    positions, activations = layout.positions_per_chip / layout.parts, _activation_bytes(arch, layout)
    stored = positions * arch.layers * (arch.hidden * layout.itemsize if remat else activations)
    head = HEAD_TOKENS * layout.models / layout.mesh.adapter * arch.vocab / layout.mesh.tensor * _FLOAT32
    gathered = gathered_bytes(arch, layout)
    if layout.is_gpu:
        # Mostly gradients of a block in float32.
        work = layout.itemsize * (5.5 * arch.hidden + 9.5 * arch.feed_forward / layout.mesh.tensor)
        return stored + positions * work + gathered + transposed_bytes(arch, layout) + head
    return stored + positions * activations + gathered + 2 * head


def states_bytes(arch: Architecture, layout: BatchLayout, kept: int) -> float:
    """Returns the temporary bytes of the forward pass of a comparison.

    Args:
      arch: the base model's.
      layout: of the batch.
      kept: bytes of the kept states on a chip, which a TPU holds twice, before and after the pass.
    """
    return kept * (not layout.is_gpu) + _forward_bytes(arch, layout) + gathered_bytes(arch, layout)


def similarity_bytes(arch: Architecture, layout: BatchLayout, kept: int) -> float:
    """Returns the temporary bytes of comparing one task's rows.

    Each chip holds one layer of all models whole, raw and centred, a tile of each Gram matrix, and the product of one
    permutation. One of several GPUs holds a third copy of the layer, and the kept states once more, in another order of
    axes.

    Args:
      arch: the base model's.
      layout: of the kept rows.
      kept: bytes of the kept states on a chip.
    """
    models, rows = layout.models, layout.batch.rows
    layer = models * rows * arch.hidden
    mesh = layout.mesh
    gathers_on_gpu = layout.is_gpu and mesh.adapter * mesh.fsdp * mesh.tensor > 1
    copies = 3 if gathers_on_gpu else 2
    return _FLOAT32 * (copies * layer + models * tile_size(rows) ** 2 + arch.hidden**2) + kept * gathers_on_gpu


def cache_bytes(arch: Architecture, layout: BatchLayout, new_tokens: int) -> float:
    """Returns the bytes of a batch's keys and values on a chip."""
    rows = layout.models * layout.batch.rows / (layout.mesh.fsdp * layout.distinct_share)
    heads = arch.kv_heads / layout.mesh.tensor if arch.kv_heads % layout.mesh.tensor == 0 else arch.kv_heads
    return 2 * arch.layers * rows * (layout.batch.row_length + new_tokens) * heads * arch.head_dim * layout.itemsize


def score_bytes(arch: Architecture, layout: BatchLayout, new_tokens: int) -> float:
    """Returns the temporary bytes of greedy answers.

    The decoding loop holds the cache twice, before and after a step; reading the prompts holds it once.
    """
    cache = cache_bytes(arch, layout, new_tokens)
    return cache + max(cache, _forward_bytes(arch, layout)) + gathered_bytes(arch, layout)


def likelihood_bytes(arch: Architecture, layout: BatchLayout) -> float:
    """Returns the temporary bytes of reading given answers: those of a forward pass, and one chunk of the head."""
    head = HEAD_TOKENS * arch.vocab / layout.mesh.tensor * _FLOAT32
    return _forward_bytes(arch, layout) + gathered_bytes(arch, layout) + (1 if layout.is_gpu else 2) * head


def gathered_bytes(arch: Architecture, layout: BatchLayout) -> float:
    """Returns the bytes of one block's matrices, gathered over `fsdp`."""
    return _block_parameters(arch) * layout.itemsize / layout.mesh.tensor if layout.mesh.fsdp > 1 else 0.0


def transposed_bytes(arch: Architecture, layout: BatchLayout) -> float:
    """Returns the bytes of those matrices that a GPU copies in another order of axes before it gathers them.

    They are the ones that read the hidden states: these are spread over `fsdp` by the axis that a product sums over.
    """
    if layout.mesh.fsdp == 1:
        return 0.0
    columns = (arch.heads + 2 * arch.kv_heads) * arch.head_dim + 2 * arch.feed_forward
    return arch.layers * arch.hidden * columns * layout.itemsize / (layout.mesh.fsdp * layout.mesh.tensor)


def tuning_transfers(arch: Architecture, layout: BatchLayout, adapters: AdapterSize, remat: bool) -> Transfers:
    """Returns the bytes that a chip receives in a training step.

    Over `fsdp`, each micro-batch gathers the blocks' matrices for its forward and for its backward pass (a GPU gathers
    most of them again to recompute), the step gathers the head once, and the adapters' gradients are summed. Over
    `tensor`, each block's two sums are made forward, backward, and once more if blocks are recomputed, of which a GPU
    needs only the first.
    """
    mesh, itemsize = layout.mesh, layout.itemsize
    share, tensor = (mesh.fsdp - 1) / mesh.fsdp, (mesh.tensor - 1) / mesh.tensor
    passes = layout.parts * (2 + 0.75 * (remat and layout.is_gpu))
    weights = (passes * arch.layers * _block_parameters(arch) + arch.vocab * arch.hidden) * itemsize / mesh.tensor
    sizes = target_sizes(arch)
    adapter = arch.layers * adapters.rank * sum(sum(sizes[target]) for target in adapters.targets) * _FLOAT32
    recomputed = (0.5 if layout.is_gpu else 1) * remat
    sums = (2 + recomputed) * 2 * arch.layers * layout.positions_per_chip * arch.hidden * itemsize
    return {
        ("all-gather", "fsdp"): share * weights,
        ("all-reduce", "fsdp"): 2 * share * adapter * layout.models / mesh.adapter,
        ("all-reduce", "tensor"): 2 * tensor * sums,
    }


def states_transfers(arch: Architecture, layout: BatchLayout) -> Transfers:
    """Returns the bytes that a chip receives in one forward pass over a batch."""
    mesh, itemsize = layout.mesh, layout.itemsize
    share, tensor = (mesh.fsdp - 1) / mesh.fsdp, (mesh.tensor - 1) / mesh.tensor
    return {
        ("all-gather", "fsdp"): share * arch.layers * _block_parameters(arch) * itemsize / mesh.tensor,
        ("all-reduce", "tensor"): 2 * tensor * 2 * arch.layers * layout.positions_per_chip * arch.hidden * itemsize,
    }


def similarity_transfers(arch: Architecture, layout: BatchLayout) -> Transfers:
    """Returns the bytes that a chip receives while one task's rows are compared.

    Each layer is gathered once, its columns before its rows.
    """
    mesh = layout.mesh
    whole = (arch.layers + 2) * layout.models * layout.batch.rows * arch.hidden * _FLOAT32
    return {
        ("all-gather", "tensor"): whole / mesh.fsdp * (mesh.tensor - 1) / mesh.tensor,
        ("all-gather", "fsdp"): whole * (mesh.fsdp - 1) / mesh.fsdp,
    }


def score_transfers(arch: Architecture, layout: BatchLayout, new_tokens: int) -> Transfers:
    """Returns the bytes that a chip receives for greedy answers.

    They are those of the prompts' forward pass, and of one pass over a single position for each new token.
    """
    mesh = layout.mesh
    transfers = states_transfers(arch, layout)
    # A decoding step does not gather matrices: it sums the products of all rows.
    width = 5 * arch.hidden + 2 * arch.feed_forward
    sums = 2 * arch.layers * layout.models * layout.batch.rows * width * layout.itemsize
    decoding = new_tokens * sums / mesh.tensor * (mesh.fsdp - 1) / mesh.fsdp
    return transfers | {("all-reduce", "fsdp"): decoding}


def likelihood_transfers(arch: Architecture, layout: BatchLayout) -> Transfers:
    """Returns the bytes that a chip receives while a batch of given answers is read: a forward pass, and the head."""
    mesh, transfers = layout.mesh, states_transfers(arch, layout)
    head = (mesh.fsdp - 1) / mesh.fsdp * arch.vocab * arch.hidden * layout.itemsize / mesh.tensor
    return transfers | {("all-gather", "fsdp"): transfers["all-gather", "fsdp"] + head}


def _forward_bytes(arch: Architecture, layout: BatchLayout) -> float:
    """Returns the bytes of one block's activations in a forward pass without gradients.

    A GPU holds the hidden states in both types and the feed-forward columns of two products, and copies of the
    matrices.
    """
    if layout.is_gpu:
        whole, columns = (layout.itemsize + _FLOAT32) * arch.hidden, 2 * arch.feed_forward * layout.itemsize
        block = layout.positions_per_chip * (whole + columns / layout.mesh.tensor)
        return block + transposed_bytes(arch, layout)
    return layout.positions_per_chip * layout.itemsize * 6 * arch.hidden


def _block_parameters(arch: Architecture) -> int:
    return (arch.matrix_parameters - arch.vocab * arch.hidden) // arch.layers


def _activation_bytes(arch: Architecture, layout: BatchLayout) -> float:
    """Returns the bytes per position of a differentiated block's activations.

    On a TPU, over `tensor`, they include the partial results that are yet to be summed. A GPU keeps the hidden states
    four times in float32 and once in their own type, and two of the feed-forward columns.
    """
    heads = (arch.heads + arch.kv_heads) * arch.head_dim
    if layout.is_gpu:
        whole = 4 * _FLOAT32 + layout.itemsize
        return whole * arch.hidden + layout.itemsize * (2 * heads + 2 * arch.feed_forward) / layout.mesh.tensor
    whole = (9 if layout.mesh.tensor > 1 else 5) * arch.hidden
    return layout.itemsize * (whole + (2 * heads + 4 * arch.feed_forward) / layout.mesh.tensor)
