"""The shapes of the compiled passes: chosen once for all lists of prompts of a run, so that these share programs.

Letters: B packed rows of a batch, P prompts per row, T columns of the shared prefix, n kept rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.tokens.batches import rows_per_batch
from mossa_jax.tokens.few_sizes import batch_sizes, batches_of, size_for, two_sizes
from mossa_jax.tokens.packing import PackedSizes
from mossa_jax.tokens.rows import most_prompts

PREFIX_MULTIPLE = 32
"""The shared ids are padded to a multiple of this."""

# Longer prompts get 0, "not known": attention then does not limit how far back a query looks.
_MAX_OWN_SIZES = (64, 128, 256, 384, 512, 768)


@dataclass(frozen=True)
class RowShape:
    """The batches of rows of one length.

    Attributes:
      length: positions of a row.
      prompts: P, room for the prompts of a row.
      batches: B, rows of a full batch and, in some runs, of a smaller one for what full batches leave.
    """

    length: int
    prompts: int
    batches: tuple[int, ...]

    def batches_of(self, rows: int) -> list[int]:
        """Returns the size of each batch that `rows` rows take."""
        return batches_of(rows, self.batches)


@dataclass(frozen=True)
class PassShape:
    """All sizes that the programs of a pass over prompts depend on, and those of the states that it keeps.

    Attributes:
      rows: one for each length of packed rows.
      prefix_length: T, columns for the ids that all prompts of a list share; 0 for lists that share none.
      max_own: no prompt has more ids after the shared ones than this; 0 if that is not known.
      kept: n, rows of kept states: one or two sizes, the smaller first. An array has the largest number of rows, and
        similarity looks at the first number that holds all prompts.
    """

    rows: tuple[RowShape, ...]
    prefix_length: int
    max_own: int
    kept: tuple[int, ...]

    def kept_for(self, prompts: int) -> int:
        """Returns how many kept rows similarity looks at, for a list of `prompts` prompts."""
        return size_for(prompts, self.kept)


def pass_shapes(
    lists: Sequence[PackedSizes], mesh: jax.sharding.Mesh, batch_rows: int, row_length: int
) -> tuple[PassShape, ...]:
    """Chooses the shapes for one or more lists of packed prompts.

    Lists that share a prefix and lists that share none have a program each: columns for a prefix cost attention, and
    keep it from its kernels. Where all lists are alike in that, and all rows have one length, there may instead be a
    second, smaller batch for what full ones leave. So there are at most two programs for each length of rows.

    Args:
      lists: the sizes of each, at least one list with prompts.
      mesh: that rows are spread over.
      batch_rows: rows of `row_length` positions per batch, at most.
      row_length: positions of a short row.

    Returns:
      One shape, or that for lists without a prefix and that for lists with one.
    """
    fsdp = mesh.shape["fsdp"]
    # All passes of a run write to an array of the same size, and the Gram matrices of similarity have n^2 entries.
    kept = two_sizes([row_slots(sizes.prompts, fsdp) for sizes in lists], lambda size: size**2)
    groups = [[sizes for sizes in lists if bool(sizes.prefix) == is_shared] for is_shared in (False, True)]
    groups = [group for group in groups if group]
    is_uniform = len(groups) == 1 and len({length for sizes in lists for length in sizes.rows}) == 1
    shapes = []
    for group in groups:
        rows = []
        for length in sorted({length for sizes in group for length in sizes.rows}):
            counts, prompts = zip(*(sizes.rows[length] for sizes in group if length in sizes.rows), strict=True)
            # A batch of long rows has fewer of them, for about the same number of positions and the same memory.
            most = rows_per_batch(batch_rows, row_length, length)
            # Whole rows per device: a batch that does not divide over `fsdp` would be computed by each of its devices.
            batches = batch_sizes(counts, most, fsdp, count=2 if is_uniform else 1)
            # P is rounded up, so that lists with about as many prompts per row share a program.
            room = min(1 << (max(prompts) - 1).bit_length(), most_prompts(length))
            rows.append(RowShape(length, room, batches))
        prefix = mesh_lib.round_up(max(sizes.prefix for sizes in group), PREFIX_MULTIPLE)
        shapes.append(PassShape(tuple(rows), prefix, rounded_max_own(max(s.max_own for s in group)), kept))
    return tuple(shapes)


def rounded_max_own(longest: int) -> int:
    """Returns `PassSpec.max_own` for prompts with at most `longest` ids of their own: one of a few sizes, or 0."""
    # A few sizes, since each is a program of its own.
    return next((size for size in _MAX_OWN_SIZES if size >= longest), 0)


def row_slots(prompts: int, devices: int) -> int:
    """Returns how many rows are kept for `prompts` prompts: rounded up, so that similar lists share their programs."""
    # Each number of rows is a program of its own. Small lists are padded by at most 127 rows, large
    # ones by at most 1,023.
    multiple = 128 if prompts <= 1024 else 1024
    return mesh_lib.round_up(mesh_lib.round_up(prompts, multiple), devices)
