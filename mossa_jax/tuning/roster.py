"""The members of a group, and where and when each of them is trained.

Shape letters: A places (slots, rounded up to the mesh's adapter axis), B rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Bool, Int

from mossa_jax.config import Schedule, Tuning
from mossa_jax.config.kinds import tuning_identity
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.files.names import digest
from mossa_jax.llama.adapters import target_sizes
from mossa_jax.llama.architecture import Architecture
from mossa_jax.tokens.batches import Batches
from mossa_jax.tuning.members import Member, RowLength, batches_for
from mossa_jax.tuning.slots import Timeline, plan_slots
from mossa_jax.tuning.snapshots import snapshot_steps
from mossa_jax.tuning.windows import ends_window


@dataclass(frozen=True)
class Roster:
    """The members of a group, and where and when each is trained.

    Attributes:
      members: the models.
      batches: of each member.
      row_lengths: the group's short rows and its long ones.
      timeline: the plan of slots, the same on every mesh.
      places: A, slots rounded up to a multiple of the mesh's adapter axis: the first axis of arrays on the devices.
    """

    members: Sequence[Member]
    batches: Sequence[Batches]
    row_lengths: tuple[RowLength, RowLength]
    timeline: Timeline
    places: int

    @classmethod
    def of(
        cls,
        members: Sequence[Member],
        batch_rows: int,
        slots: int,
        multiple: int,
        alike: Sequence[Member] = (),
        has_all_places: bool = False,
    ) -> Roster:
        """Plans a group.

        Args:
          members: the models.
          batch_rows: short rows per batch.
          slots: the most models that are trained at once.
          multiple: that places are rounded up to.
          alike: all models whose rows and steps are to have one shape; `members` by default. A model that is tuned
            again by itself then goes through the products that it went through among the others.
          has_all_places: whether there are as many places as for all models of `alike`.
        """
        alike = alike or members
        batches = [batches_for(member, batch_rows) for member in members]
        # The mesh plays no part in the plan. It only decides how many places, beyond the slots, stay empty.
        timeline = plan_slots([member.steps for member in members], min(slots, len(members)))
        # Index 0 is short rows and index 1 long ones, here and in `Batches.at`.
        of_alike = [batches_for(member, batch_rows) for member in alike]
        row_lengths = RowLength.of(alike, of_alike, 0), RowLength.of(alike, of_alike, 1)
        places = min(slots, len(alike)) if has_all_places else timeline.slots
        return cls(members, batches, row_lengths, timeline, mesh_lib.round_up(places, multiple))

    def models_at(self, step: int) -> Int[np.ndarray, " A"]:
        """Returns the model in each place at a step, -1 for none."""
        return self.timeline.at(step, self.places)

    def starts_at(self, step: int, models: Int[np.ndarray, " A"]) -> Bool[np.ndarray, " A"]:
        """Returns the places whose model takes its first step at a step."""
        # An empty place has -1, which indexes the last model; the first condition takes it out again.
        return (models >= 0) & (self.timeline.start[models] == step)

    def ending_at(self, step: int) -> list[int]:
        """Returns the models that take their last step at a step, in the order of their slots."""
        models = self.models_at(step)
        # [running models], in the order of their slots.
        running = models[models >= 0]
        return running[self.timeline.stop[running] == step + 1].tolist()

    def at_snapshots(self, step: int, count: int) -> list[int]:
        """Returns the models that a step of the group brings to one of their `count` snapshots, in slot order."""
        models = self.models_at(step)
        return [
            model
            for model in models[models >= 0].tolist()
            if self.own_step(model, step) + 1 in snapshot_steps(self.members[model].steps, count)
        ]

    def at_window_ends(self, step: int, length: int) -> list[int]:
        """Returns the models whose window of `length` losses ends with a step of the group, in slot order."""
        models = self.models_at(step)
        return [
            model
            for model in models[models >= 0].tolist()
            if ends_window(self.own_step(model, step) + 1, length, self.members[model].steps)
        ]

    def own_step(self, model: int, step: int) -> int:
        """Returns the number of a model's own step, from 0, at a step of the group."""
        return step - int(self.timeline.start[model])

    def batch(self, model: int, step: int) -> tuple[int, Int[np.ndarray, " B"]]:
        """Returns a model's batch at a step of the group, as `Batches.at` does: 0 short or 1 long rows, and which."""
        return self.batches[model].at(self.own_step(model, step))

    def digest(self, arch: Architecture, tuning: Tuning, schedule: Schedule) -> str:
        """Identifies what a checkpoint belongs to: the models, how they are trained, and in which slots."""
        members = [(member.name, member.steps, member.seed, member.rests_on) for member in self.members]
        slots = (self.timeline.slot.tolist(), self.timeline.start.tolist())
        # Shapes of the adapters follow from these, but for the number of places, which a restart may change.
        sizes = [arch.layers, [target_sizes(arch)[target] for target in tuning.targets]]
        return digest([tuning_identity(tuning), asdict(schedule), members, slots, sizes])
