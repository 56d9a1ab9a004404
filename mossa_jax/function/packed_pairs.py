"""Packed pairs of prompt and answer: their batches, and the sums of their answers' losses.

Shape letters: A models, n pairs, B packed rows of a batch, S positions, M answer tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import jax
import numpy as np
from jaxtyping import Array, Float

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.files.load import Model
from mossa_jax.llama.model import can_share_prefix
from mossa_jax.processes.watchdog import sign
from mossa_jax.states.shapes import PREFIX_MULTIPLE, rounded_max_own
from mossa_jax.tokens.batches import rows_per_batch
from mossa_jax.tokens.encoded import Examples
from mossa_jax.tokens.few_sizes import batch_sizes
from mossa_jax.tokens.packing import Packing
from mossa_jax.tokens.rows import PackedExamples, TrainingRows
from mossa_jax.tuning.batch import Batch, place_batch

# M is rounded up to this, so that lists of similar answers share a program.
_ANSWERS_MULTIPLE = 32


@dataclass(frozen=True)
class PairRows:
    """The batches of packed rows of one length.

    Attributes:
      length: S, positions of a row.
      rows: B, rows of a batch.
      answers: M, answer tokens that a row has room for.
    """

    length: int
    rows: int
    answers: int


@dataclass(frozen=True)
class PairShape:
    """All sizes that the programs of `log_likelihoods` depend on.

    Attributes:
      rows: one for each length of packed rows.
      prefix: columns at the head of rows that may hold ids which all pairs share.
      max_own: no pair has more ids of its own than this; 0 if that is not known.
    """

    rows: tuple[PairRows, ...]
    prefix: int
    max_own: int


@dataclass(frozen=True)
class PackedSize:
    """The sizes of packed pairs of one row length: all that shapes depend on.

    Attributes:
      length: S.
      rows: how many there are.
      answers: the most answer tokens of a row.
      prefix: ids that all pairs share.
      max_own: the most ids of a pair besides them.
    """

    length: int
    rows: int
    answers: int
    prefix: int
    max_own: int

    @classmethod
    def of(cls, packed: PackedExamples) -> PackedSize:
        """Returns the sizes of packed pairs."""
        return cls(packed.length, len(packed), packed.width, packed.prefix_length, packed.max_own)


@dataclass(frozen=True)
class PairConfig:
    """How pairs are packed and read.

    Attributes:
      packing: the rows that pairs are packed into.
      batch_rows: rows of `packing.row_length` positions in a batch, at most.
    """

    packing: Packing
    batch_rows: int

    def pack(self, arch: Architecture, pairs: Examples) -> tuple[PackedExamples, ...]:
        """Packs pairs of prompt and answer for a model of this architecture, each of equal ones once.

        Raises:
          ValueError: a pair fits no row.
        """
        packed = self.packing.examples(pairs.select(_distinct(pairs)[0]), can_share_prefix(arch))
        return tuple(rows for rows in packed if len(rows))

    def shape(self, lists: Sequence[Sequence[PackedSize]], mesh: jax.sharding.Mesh) -> PairShape:
        """Chooses the shape that serves several lists of packed pairs: one program for each length of rows.

        Args:
          lists: the sizes of each list, at least one with pairs.
          mesh: that rows are spread over.
        """
        fsdp, sizes = mesh.shape["fsdp"], [size for sizes in lists for size in sizes]
        rows = []
        for length in sorted({size.length for size in sizes}):
            own = [size for size in sizes if size.length == length]
            most = rows_per_batch(self.batch_rows, self.packing.row_length, length)
            (batch,) = batch_sizes([size.rows for size in own], most, fsdp, count=1)
            answers = mesh_lib.round_up(max(size.answers for size in own), _ANSWERS_MULTIPLE)
            rows.append(PairRows(length, batch, answers))
        prefix = mesh_lib.round_up(max(size.prefix for size in sizes), PREFIX_MULTIPLE)
        return PairShape(tuple(rows), min(prefix, rows[0].length), rounded_max_own(max(s.max_own for s in sizes)))


def sum_by_pair(
    losses: Callable[[Batch], Float[Array, "A B M"]],
    models: int,
    model: Model,
    pairs: Examples,
    config: PairConfig,
    shape: PairShape,
) -> Float[np.ndarray, "A n"]:
    """Runs a program over all batches of packed pairs, and sums up what it says of each pair's answer tokens.

    Args:
      losses: batch -> the loss of every answer token by each of A models, in nats.
      models: A.
      model: the base model, for its architecture and mesh.
      pairs: prompts and answers; the last id of a whole answer is EOS.
      config: how pairs are packed and read.
      shape: of the batches.

    Returns:
      [A, n] float64, the log probability of each pair's answer, in nats.
    """
    mesh = model.mesh
    different, index_of = _distinct(pairs)
    result = np.zeros((models, len(different)))
    room = {rows.length: rows for rows in shape.rows}
    for rows in config.pack(model.architecture, pairs):
        size = room[rows.length]
        for start in range(0, len(rows), size.rows):
            sign()
            index = np.arange(start, min(start + size.rows, len(rows)))
            batch = _fill(rows.take(index, size.answers), size.rows)
            # [A, B, M], whole on every process. Labels stand in the order of the rows' answers.
            nats = jax.device_put(losses(place_batch(mesh, batch)), mesh_lib.replicated(mesh))
            nats = np.asarray(nats, np.float64)[:, batch.labels >= 0]
            items = rows.plan.take(index).items
            lengths = rows.examples.answer_lengths[items]
            result[:, items] = -np.add.reduceat(nats, np.cumsum(lengths) - lengths, axis=1)
    return result[:, index_of]  # [A, n]


def _distinct(pairs: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first place of each different pair, and which of them every pair is: two [n or fewer] int64.

    In tasks with few answers, a prompt's own answer and those of others are often the same.
    """
    place_of: dict[tuple[int, bytes], int] = {}
    lengths = pairs.prompt_lengths.tolist()
    keys = [(lengths[i], pairs.gather(np.asarray([i])).tobytes()) for i in range(len(pairs))]
    first = [place_of.setdefault(key, i) for i, key in enumerate(keys)]
    return np.unique(np.asarray(first, np.int64), return_inverse=True)


def _fill(rows: TrainingRows, count: int) -> TrainingRows:
    """Adds rows without a label, up to `count`."""
    pad = ((0, count - len(rows)), (0, 0))
    return TrainingRows(
        **{f.name: np.pad(getattr(rows, f.name), pad, constant_values=-(f.name == "labels")) for f in fields(rows)}
    )
