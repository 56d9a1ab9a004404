"""The models of a group: what each learns from, for how long, and which rows make its batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Int

from mossa_jax.config import Schedule, Tuning
from mossa_jax.errors import NOT_FINITE, Refusal
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.llama.files.load import Model
from mossa_jax.llama.files.weights import first_not_finite
from mossa_jax.processes.stop import Stop
from mossa_jax.tokens.batches import Batches
from mossa_jax.tokens.rows import PackedExamples, TrainingRows

_NAMED = 8  # examples that a refusal names


@dataclass(frozen=True)
class TuningContext:
    """Everything that the groups of a run share while they are tuned.

    Attributes:
      tuning: the configuration of adapters, optimizer, checkpoints and log.
      run_folder: for metrics.jsonl and checkpoints.
      stop: asked after every step; on a request the state is saved first.
    """

    tuning: Tuning
    run_folder: RunFolder
    stop: Stop


@dataclass(frozen=True)
class Member:
    """A model to be tuned.

    Attributes:
      name: its task, or "tuned" for E.
      rows: what it learns from: packed short rows, and long ones where there are any.
      steps: optimizer steps.
      seed: what its initial adapter and its order of rows are drawn from; independent of its group.
      rests_on: digest of everything that the tuned model follows from; checkpoints of another one are refused.
    """

    name: str
    rows: tuple[PackedExamples, ...]
    steps: int
    seed: tuple[int, ...]
    rests_on: str = ""


def steps_for(schedule: Schedule, batches: Batches) -> int:
    """Returns the number of steps that a schedule gives to a model with these batches; at least one."""
    steps = max(1, int(np.ceil(schedule.epochs * batches.per_epoch)))
    return min(steps, schedule.max_steps) if schedule.max_steps else steps


def batches_for(member: Member, batch_rows: int) -> Batches:
    """Returns which rows of a member make the batch of each step, with `batch_rows` short rows per batch."""
    # Another stream than the initial adapter, whose seed ends in 1.
    return Batches.of(member.rows, batch_rows, seed=(*member.seed, 2))


def not_finite(
    label: str, member: Member, batch: tuple[int, np.ndarray], step: int, skips: int, base: Model
) -> Refusal:
    """Returns the refusal of a model that skipped too many updates in a row.

    It names the examples of the last batch, or the weight of the base model that is not finite.

    Args:
      label: of the group.
      member: whose loss or gradient is not finite.
      batch: of its last step, as `Batches.at` returns it.
      step: the number of that step, from 1.
      skips: the number of updates skipped in a row.
      base: the model that is tuned, as it was loaded.
    """
    which, index = batch
    # Names examples rather than packed rows, which a user never sees.
    items = member.rows[which].plan.take(index).items.tolist()
    examples = ", ".join(map(str, items[:_NAMED])) + (", ..." if len(items) > _NAMED else "")
    tensor = first_not_finite(base.state, base.architecture)
    way_out = "lower tuning.*.learning_rate or look at these rows"
    if tensor is not None:
        way_out = f"{tensor} of {base.name} holds NaN or infinity: copy the model again"
    return Refusal(
        NOT_FINITE,
        f"{label}: loss or gradient of {member.name!r} is not finite for {skips} steps in a row, now at step {step} "
        f"(examples {examples}); {way_out}; the last checkpoint is kept",
    )


@dataclass(frozen=True)
class RowLength:
    """The batches of rows of one length, over all members of a group: one compiled step serves them all.

    Attributes:
      length: S, positions of a row; 0 where no member has such rows.
      batch_rows: B, rows in a batch; 0 where no member has such rows.
      width: M, the most answer tokens in a row of any member.
      prefix: the most ids that the examples of a member share at the head of their rows.
      max_own: the most ids of an example's own.
    """

    length: int
    batch_rows: int
    width: int
    prefix: int
    max_own: int

    @classmethod
    def of(cls, members: Sequence[Member], batches: Sequence[Batches], which: int) -> RowLength:
        """Returns the short rows of a group, `which` 0, or its long rows, `which` 1."""
        # A member without long rows takes no part in their batches.
        having = [
            (member.rows[which], of_member.sizes[which])
            for member, of_member in zip(members, batches, strict=True)
            if len(member.rows) > which
        ]
        if not having:
            return cls(0, 0, 0, 0, 0)
        rows, sizes = zip(*having, strict=True)
        return cls(
            # All members have rows of the configured length. The other sizes are the largest of any member, because one
            # program serves them all.
            length=rows[0].length,
            batch_rows=max(sizes),
            width=max(packed.width for packed in rows),
            prefix=max(packed.prefix_length for packed in rows),
            max_own=max(packed.max_own for packed in rows),
        )

    def micro_batches(self, schedule: Schedule) -> int:
        """Returns into how many micro-batches `schedule.parts` cuts a batch: as many as its rows divide into."""
        # Batches of long rows have fewer rows, which `parts` may not divide.
        return math.gcd(schedule.parts, self.batch_rows)

    def stack(
        self, rows: Sequence[PackedExamples | None], indices: Sequence[Int[np.ndarray, " B"] | None]
    ) -> TrainingRows:
        """Stacks one batch per slot: fields [A, B, ...], int32.

        Args:
          rows: of the member in each slot; None for a slot without a batch, which gets empty rows.
          indices: which of its rows, for each slot.
        """
        slots = [
            self._empty() if packed is None or index is None else packed.take(index, self.width)
            for packed, index in zip(rows, indices, strict=True)
        ]
        # A x [B, ...] -> [A, B, ...], field by field.
        return TrainingRows(*(np.stack([getattr(slot, f.name) for slot in slots]) for f in fields(TrainingRows)))

    def _empty(self) -> TrainingRows:
        # [B, S] and [B, M]. Segment 0 is padding and label -1 is none: such rows have no loss and no gradient.
        blank = np.zeros((self.batch_rows, self.length), np.int32)
        none = np.zeros((self.batch_rows, self.width), np.int32)
        return TrainingRows(tokens=blank, segments=blank, positions=blank, predict=none, labels=none - 1)
