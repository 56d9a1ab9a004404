"""One group's training: members take turns in slots, and each is exported as soon as it is done.

Shape letters: A places (slots, rounded up to the mesh's adapter axis), B rows, S positions, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from mossa_jax.config import Schedule, Tuning
from mossa_jax.devices.chips import chip_of
from mossa_jax.errors import NOT_FINITE, Refusal
from mossa_jax.llama import adapters as adapters_lib
from mossa_jax.llama.adapters import Adapter, HostAdapters
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.files.load import Model
from mossa_jax.log import log
from mossa_jax.monitoring import goodput
from mossa_jax.tuning import batch as batch_lib
from mossa_jax.tuning import population
from mossa_jax.tuning.checkpoints import Checkpoints, checkpoint_folder
from mossa_jax.tuning.curves import LossCurves, LossSinceLine, Throughput
from mossa_jax.tuning.flops import step_flops
from mossa_jax.tuning.loop import train
from mossa_jax.tuning.members import Member, TuningContext, not_finite
from mossa_jax.tuning.population import Metrics, PopulationState, Scale
from mossa_jax.tuning.population_programs import compile_step_for
from mossa_jax.tuning.roster import Roster
from mossa_jax.tuning.slot_arrays import SlotArrays
from mossa_jax.tuning.windows import Window

Export = Callable[[Member, Adapter], None]
KeepSnapshot = Callable[[Member, int, Adapter], None]


def tune_population(
    label: str,
    members: Sequence[Member],
    model: Model,
    schedule: Schedule,
    context: TuningContext,
    export: Export,
    exported: Collection[str] = (),
    keep_snapshot: KeepSnapshot | None = None,
    alike: Sequence[Member] = (),
) -> None:
    """Trains all members, as many at once as there are slots, and exports each as soon as it is done.

    Every slot counts its own steps. A slot whose model is done begins the next one, in the same program. Which model is
    trained where and when is a pure function of the members (`slots.plan_slots`), so the number of steps done is all
    that a restart needs.

    Args:
      label: of progress lines and of the folder of checkpoints.
      members: the models; exported ones must be among them as long as others are not done.
      model: the frozen base, on a mesh with axes ('adapter', 'fsdp', 'tensor').
      schedule: of every member.
      context: of the run.
      export: called on every process with a finished member and its adapter on the host; after a restart it may be
        called again, with the same values.
      exported: names of members that were exported before; their recorded losses are not recorded again.
      keep_snapshot: called on every process with a member, the number of steps that it has taken and its adapter on the
        host, after each step of `snapshot_steps`; after a restart it may be called again, with the same values. None
        for no snapshots, whatever `tuning.snapshots` says.
      alike: all models of the group, those that are tuned already too; `members` by default. They decide the shapes of
        the rows. With `tuning.reproducible` they decide all shapes: a model that is tuned again by itself is then the
        same to the bit.

    Raises:
      Refusal: 5, naming model, step and rows, when a model has skipped `tuning.skips` updates in a row, or an adapter
        is not finite; 75 on a request to stop.
    """
    tuning = context.tuning
    multiple = model.mesh.shape["adapter"]
    roster = Roster.of(members, schedule.batch_rows, tuning.slots, multiple, alike, tuning.reproducible)
    timeline = roster.timeline
    log.debug(
        "%s: training %d models in %d slots for %d steps; slots are %.1f %% full",
        label, len(members), timeline.slots, timeline.steps, 100 * timeline.utilisation,
    )  # fmt: skip
    # Devices of an empty place compute a step like the others, for nothing.
    if timeline.slots < min(roster.places, len(members)):
        log.warning(
            "%s: tuning.slots=%d leaves places on the mesh's adapter axis empty; raise it to %d",
            label, tuning.slots, roster.places,
        )  # fmt: skip
    curves = LossCurves(context.run_folder, exported)
    run = PopulationRun(label, roster, model, schedule, tuning, export, curves, keep_snapshot)
    train(
        label,
        timeline.steps,
        run.initial_state(),
        run.step,
        run.report,
        run.describe,
        checkpoints=Checkpoints(
            checkpoint_folder(context.run_folder, label),
            config=roster.digest(model.architecture, tuning, schedule),
            # A restart on another mesh may round the slots up to another number of places.
            stacked=True,
            before_sealing=context.run_folder.flush,
        ),
        checkpoint_every=tuning.checkpoint_every,
        log_every=tuning.log_every,
        stop=context.stop,
    )


@dataclass(frozen=True)
class _Occupancy:
    """The models in the slots, and the arrays on the devices that belong to them.

    Attributes:
      models: [A], the model in each place, -1 for none.
      scale: LoRA scales, target -> [A, L].
      total: [A] int32, each model's number of steps; 0 for an empty place.
    """

    models: Int[np.ndarray, " A"]
    scale: Scale
    total: Int[jax.Array, " A"]


class PopulationRun:
    """One group's training: the work before, in and after each step."""

    def __init__(
        self,
        label: str,
        roster: Roster,
        model: Model,
        schedule: Schedule,
        tuning: Tuning,
        export: Export,
        curves: LossCurves,
        keep_snapshot: KeepSnapshot | None = None,
    ):
        """Prepares the training; nothing is compiled yet. Arguments as in `tune_population`."""
        self.roster = roster
        self._label, self._model, self._tuning, self._schedule = label, model, tuning, schedule
        self._export, self._keep_snapshot, self._curves = export, keep_snapshot, curves
        self._optimizer = population.optimizer_for(tuning, schedule)
        self._arrays = SlotArrays(model.mesh, roster.places)
        self._refill = population.make_refill(self._optimizer, model.mesh)
        # A compiled step by row length (0 short, 1 long), from its first batch on.
        self._steps: dict[int, jax.stages.Compiled] = {}
        self._layer_scale = _layer_scale(model.architecture, tuning)
        self._occupancy: _Occupancy | None = None
        self._throughput = _throughput(roster, model, tuning)
        # (step of the group, its metrics on the devices) where a window ended that is not recorded yet.
        self._unrecorded: list[tuple[int, Metrics]] = []
        self._loss = LossSinceLine()
        self._done = self._skipped = 0

    def initial_state(self) -> PopulationState:
        """Returns the state before the first step."""
        # Models that come later get their adapters in `_fill_slots`.
        fresh = self._fresh(self.roster.models_at(0))
        return population.initial_state(fresh, self._optimizer, self._model.mesh)

    def _fresh(self, models: Int[np.ndarray, " A"]) -> HostAdapters:
        """Returns untrained adapters for the models in the slots, stacked; zeros for an empty slot."""
        arch, tuning = self._model.architecture, self._tuning
        untrained = [
            adapters_lib.initial_adapter(
                arch,
                tuning.targets,
                tuning.rank,
                tuning.alpha,
                tuning.first_layer,
                # The 1 keeps this stream of random numbers apart from the order of rows, whose seed ends in 2.
                (*self.roster.members[model].seed, 1),
            )
            if model >= 0
            else None
            for model in models
        ]
        example = next(adapter for adapter in untrained if adapter is not None)
        # An empty slot has matrices of zeros, [L, D_in, r] and [L, r, D_out]: finite, and never trained.
        blank = jax.tree.map(np.zeros_like, example)
        stacked = adapters_lib.stack(arch, [blank if adapter is None else adapter for adapter in untrained])
        # Scales [A, L] are placed by themselves: they are the same for all models and are not trained.
        return {target: {name: leaves[name] for name in ("a", "b")} for target, leaves in stacked.items()}

    def step(self, state: PopulationState, number: int) -> tuple[PopulationState, Metrics]:
        """Fills slots that are free, takes one step in every slot, and exports members that are done."""
        roster = self.roster
        models = roster.models_at(number)
        state = self._fill_slots(state, models, number)
        occupancy = self._occupy(models)
        # Per slot (row length, which rows), None for an empty one.
        batches = [roster.batch(model, number) if model >= 0 else None for model in models]
        metrics: Metrics = {}
        # Rows of one length per program. Each model has a batch of one length, so it is active in one of the two and
        # stays as it is in the other.
        for which in range(len(roster.row_lengths)):
            active = np.asarray([batch is not None and batch[0] == which for batch in batches])
            if not active.any():
                continue
            state, new = self._step_rows(state, occupancy, which, active, batches)
            # The metrics of a model that takes no part in a batch mean nothing.
            metrics = jax.tree.map(partial(jnp.where, active), new, metrics) if metrics else new
        if roster.at_window_ends(number, self._tuning.log_every):
            self._unrecorded.append((number, metrics))
        # On disk before any checkpoint behind them: a run that resumes never passes this step again.
        if self._keep_snapshot is not None:
            for model in roster.at_snapshots(number, self._tuning.snapshots):
                self._take_snapshot(state, number, model, self._keep_snapshot)
        # Exported right away: in the next step the slot may belong to another model.
        done = roster.ending_at(number)
        if done:
            self._export_done(state, number, done)
        return state, metrics

    def _fill_slots(self, state: PopulationState, models: Int[np.ndarray, " A"], number: int) -> PopulationState:
        """Gives the slots whose model takes its first step their untrained adapters."""
        is_new = self.roster.starts_at(number, models)
        # Step 0 finds the adapters of `initial_state`.
        if number == 0 or not is_new.any():
            return state
        # Zeros in the slots that keep their model; the refill does not look at them.
        fresh = self._fresh(np.where(is_new, models, -1))
        placed = self._arrays.place(is_new)
        return self._refill(state, adapters_lib.place_adapters(self._model.mesh, fresh), placed)

    def _occupy(self, models: Int[np.ndarray, " A"]) -> _Occupancy:
        """Places what the models in the slots need, where they have changed since the last step."""
        if self._occupancy is None or not np.array_equal(self._occupancy.models, models):
            # A total of 0 makes the step leave an empty place as it is.
            totals = [self.roster.members[model].steps if model >= 0 else 0 for model in models]
            self._occupancy = _Occupancy(
                models,
                scale=self._arrays.place_scale(self._layer_scale, self._tuning.targets),
                total=self._arrays.place(np.asarray(totals, np.int32)),
            )
        return self._occupancy

    def _step_rows(
        self,
        state: PopulationState,
        occupancy: _Occupancy,
        which: int,
        active: Bool[np.ndarray, " A"],
        batches: Sequence[tuple[int, np.ndarray] | None],
    ) -> tuple[PopulationState, Metrics]:
        """Steps the active slots, all of which have a batch of rows of one length."""
        members = self.roster.members
        with goodput.lost("input"):
            # [A, B, ...] on the host, the same on every process; slots that are not active get empty rows.
            rows = self.roster.row_lengths[which].stack(
                [
                    members[model].rows[which] if use else None
                    for model, use in zip(occupancy.models, active, strict=True)
                ],
                [batch and batch[1] for batch in batches],
            )
            placed = batch_lib.place_batch(self._model.mesh, rows), self._arrays.place(active)
        # B * S positions for each active slot, padding included.
        self._throughput.add(int(active.sum()) * rows.tokens[0].size)
        arguments = self._model.state, occupancy.scale, occupancy.total, state, *placed
        if which not in self._steps:
            # Compiled with the first real arguments, whose shapes and shardings are those of all later steps.
            rows_of_length = self.roster.row_lengths[which]
            label = f"{self._label}, rows of {rows_of_length.length}"
            self._steps[which] = compile_step_for(
                label, rows_of_length, self._model, self._schedule, self._tuning, arguments
            )
        return self._steps[which](*arguments)

    def _export_done(self, state: PopulationState, number: int, models: Sequence[int]) -> None:
        """Records the losses of members that are done, then exports their adapters."""
        # Records come first: an exported model is not trained again, so a loss that is missing then stays missing.
        self._record_windows(number)
        for model in models:
            member = self.roster.members[model]
            adapter = self._fetch(state, model)
            if not adapters_lib.is_finite(adapter):
                raise Refusal(NOT_FINITE, f"adapter {member.name!r} has values that are not finite; it is not exported")
            with goodput.lost("export"):
                self._export(member, adapter)

    def _take_snapshot(self, state: PopulationState, number: int, model: int, keep: KeepSnapshot) -> None:
        """Hands on the adapter of a member that is still being trained."""
        # Fetched first: that waits for the step that is being computed, and is no time lost.
        adapter = self._fetch(state, model)
        with goodput.lost("export"):
            keep(self.roster.members[model], self.roster.own_step(model, number) + 1, adapter)

    def _fetch(self, state: PopulationState, model: int) -> Adapter:
        """Returns a member's adapter on every host: [L, D_in, r], [L, r, D_out] and [L]."""
        # The model's place among the slots is on one group of devices only.
        trained = self._arrays.fetch_adapter(state.adapters, int(self.roster.timeline.slot[model]))
        return {target: {**leaves, "scale": self._layer_scale} for target, leaves in trained.items()}

    def _record_windows(self, number: int) -> None:
        """Records the windows that ended at or before a step of the group."""
        roster = self.roster
        while self._unrecorded and self._unrecorded[0][0] <= number:
            step, metrics = self._unrecorded.pop(0)
            on_host = self._fetch_metrics(metrics)
            for model in roster.at_window_ends(step, self._tuning.log_every):
                slot = roster.timeline.slot[model]
                window = Window(*(field[slot] for field in on_host["window"]))
                self._loss.add(window)
                self._curves.append(
                    roster.members[model].name,
                    roster.own_step(model, step) + 1,
                    window,
                    skipped=int(on_host["skipped"][slot]),
                    spikes=int(on_host["spikes"][slot]),
                )

    def _fetch_metrics(self, metrics: Metrics) -> dict[str, Any]:
        """Returns what is recorded of a step's metrics, on the host of every process."""
        return self._arrays.fetch({name: metrics[name] for name in ("bad", "skipped", "spikes", "window")})

    def report(self, done: int, metrics: Metrics) -> None:
        """Records the windows of losses that have ended, and looks for models that do not recover.

        Args:
          done: number of steps done; the step was the last of them.
          metrics: of that step, on the devices.

        Raises:
          Refusal: 5 when a model has skipped `tuning.skips` updates in a row.
        """
        # This waits for the step. `loop.train` passes the metrics of the step before, so the device has work meanwhile.
        on_host, roster = self._fetch_metrics(metrics), self.roster
        models = roster.models_at(done - 1)
        running = np.flatnonzero(models >= 0)
        self._record_windows(done - 1)
        self._done, self._skipped = done, int(on_host["skipped"][running].sum())
        # One bad batch is skipped and counted. Several in a row mean that the model does not recover.
        stuck = running[on_host["bad"][running] >= self._tuning.skips]
        if len(stuck):
            model = models[stuck[0]]
            batch, own_step = roster.batch(model, done - 1), roster.own_step(model, done - 1) + 1
            raise not_finite(self._label, roster.members[model], batch, own_step, self._tuning.skips, self._model)

    def describe(self) -> str:
        """Says how many models are done, and loss and speed since the last line of progress."""
        finished, count = int((self.roster.timeline.stop <= self._done).sum()), len(self.roster.members)
        return ", ".join(
            filter(
                None,
                (
                    f"{finished} of {count} models done" if count > 1 else "",
                    self._loss.report(),
                    self._throughput.report(),
                    f"{self._skipped} updates skipped" if self._skipped else "",
                ),
            )
        )


def _layer_scale(arch: Architecture, tuning: Tuning) -> Float[np.ndarray, " L"]:
    """Returns the LoRA scale of each layer: alpha / rank, and 0 below `first_layer`."""
    scale = np.full(arch.layers, tuning.alpha / tuning.rank, np.float32)
    # A scale of 0 makes update and gradient exactly zero, so these blocks stay those of the base.
    scale[: tuning.first_layer] = 0.0
    return scale


def _throughput(roster: Roster, model: Model, tuning: Tuning) -> Throughput:
    """Returns the meter of a group's speed, by the FLOPs of its shortest rows."""
    # Attention's share grows with the row length, so long rows cost somewhat more per position than this says.
    rows = next(rows for rows in roster.row_lengths if rows.batch_rows)
    flops = step_flops(
        model.architecture,
        rows=1,
        row_length=rows.length,
        rank=tuning.rank,
        targets=tuning.targets,
        answers=rows.width,
    )
    chip = chip_of(model.mesh.devices.flat[0].device_kind)
    return Throughput(flops["model"] / rows.length, chip.peak * model.mesh.size if chip else None)
