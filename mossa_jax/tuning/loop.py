"""The loop that trains one group of models, from the last checkpoint to the last step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mossa_jax.config import Schedule, Tuning
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.devices.chips import chip_of
from mossa_jax.devices.memory import compile_step
from mossa_jax.errors import NOT_FINITE, Refusal
from mossa_jax.files.names import digest, slug
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.llama import adapters as adapters_lib
from mossa_jax.llama.adapters import Adapter
from mossa_jax.llama.architecture import Architecture
from mossa_jax.log import log
from mossa_jax.monitoring import goodput
from mossa_jax.monitoring.progress import Progress
from mossa_jax.processes.stop import Stop
from mossa_jax.processes.watchdog import sign
from mossa_jax.tokens.packing import Batches, PackedExamples, TrainingRows, batches_of
from mossa_jax.tuning import population
from mossa_jax.tuning.checkpoints import Checkpoints
from mossa_jax.tuning.flops import step_flops
from mossa_jax.tuning.slots import plan_slots

_AGREE = 5.0  # seconds: about how often processes ask each other whether to stop


@dataclass(frozen=True)
class Member:
    """A model to be tuned.

    Attributes:
      name: its task, or "tuned" for E.
      rows: what it learns from: packed rows, and long ones where there are any.
      steps: optimizer steps.
      seed: what its start and its order of rows are drawn from; independent of the group it is trained in.
    """

    name: str
    rows: tuple[PackedExamples, ...]
    steps: int
    seed: tuple[int, ...]


def steps_for(schedule: Schedule, batches: Batches) -> int:
    """Steps that a schedule gives to a model with these batches."""
    steps = max(1, int(np.ceil(schedule.epochs * batches.per_epoch)))
    return min(steps, schedule.max_steps) if schedule.max_steps else steps


def train(
    label: str,
    total: int,
    state: Any,
    step: Callable[[Any, int], tuple[Any, Any]],
    report: Callable[[int, Any], str],
    *,
    checkpoints: Checkpoints,
    checkpoint_every: int,
    log_every: int,
    stop: Stop,
    alone: bool = False,
) -> Any:
    """Steps from the newest checkpoint to `total`; returns the last state, which is saved as well.

    Args:
      label: in front of progress lines.
      total: number of steps.
      state: the state before step 0.
      step: (state, number) -> (state, metrics on device).
      report: (number of steps done, metrics) -> text for the progress line; called every `log_every` steps with
        the metrics of the step before, so that the device is never waited for; raises to stop the run.
      checkpoints, checkpoint_every, log_every: where and how often.
      stop: on a request the state is saved first; asked after every step, and where several processes have to agree,
        every `_AGREE` seconds or `log_every` steps, whatever comes first.
      alone: only this process takes part, whatever the others do.
    """
    with goodput.lost("checkpoint"):
        state, done = checkpoints.restore(state)
    progress = Progress(label, total, done)
    metrics, measured = None, done
    together = jax.process_count() > 1 and not alone
    began, asked_at, ask_at = time.monotonic(), done, done + 1  # the same steps on every process
    try:
        while done < total:
            with goodput.useful(label, done), jax.profiler.StepTraceAnnotation("step", step_num=done):
                state, new = step(state, done)
            goodput.running(new)
            done += 1
            sign()
            if metrics is not None and (done % log_every == 0 or done == total):
                progress.line(done, report(measured, metrics))
            metrics, measured = new, done
            asked = stop.asked and not together
            if together and done == ask_at:
                asked, slowest = stop.asked_after((time.monotonic() - began) / (done - asked_at))
                began, asked_at = time.monotonic(), done
                ask_at = done + max(1, min(log_every, int(_AGREE / max(slowest, 1e-3))))
            if asked or (done % checkpoint_every == 0 and done < total):
                report(measured, metrics)  # nothing that is not finite is ever saved
                with goodput.lost("checkpoint"):
                    checkpoints.save(done, state)
            if asked:
                stop.leave()
        if metrics is not None:
            report(measured, metrics)
            with goodput.lost("checkpoint"):
                checkpoints.save(done, state)
    finally:
        with goodput.lost("checkpoint"):
            checkpoints.close()
    return state


def tune_population(
    label: str,
    members: Sequence[Member],
    base: Any,
    arch: Architecture,
    tuning: Tuning,
    schedule: Schedule,
    mesh: jax.sharding.Mesh,
    run_folder: RunFolder,
    stop: Stop,
    export: Callable[[Member, Adapter], None],
    exported: Collection[str] = (),
) -> None:
    """Trains all members, as many at once as there are slots; hands each over as soon as it is done.

    Every slot counts its own steps; one whose model is done begins the next one, in the same program. Who is trained
    where and when is a pure function of the members (`slots.plan_slots`), so that the number of steps done is all
    that a restart needs.

    Args:
      label: of progress lines and of the folder of checkpoints.
      members: the models; those that are exported already must be among them as long as others are not.
      base, arch: the frozen model, on `mesh`.
      tuning, schedule: how.
      mesh: with axes ('adapter', 'fsdp', 'tensor').
      run_folder: for metrics and checkpoints.
      stop: a polite request to stop.
      export: called on every process with a finished member and its adapter on the host; after a restart perhaps
        once more, with the same values.
      exported: members that were handed over before; losses of theirs that are recorded are not recorded again.

    Raises:
      Refusal: 5, naming model, step and rows, when a model has skipped `tuning.skips` updates in a row, or an adapter
        is not finite; 75 on a request to stop.
    """
    run = _Run(label, members, arch, tuning, schedule, mesh, run_folder, export, exported)
    log.info(
        "%s: models %d, slots %d, steps %d; slots %.1f %% full",
        label, len(members), run.timeline.slots, run.timeline.steps, 100 * run.timeline.utilisation,
    )  # fmt: skip
    if run.timeline.slots < min(run.places, len(members)):
        log.warning(
            "%s: tuning.slots=%d leaves places on the mesh's adapter axis empty; raise it to %d",
            label, tuning.slots, run.places,
        )  # fmt: skip
    train(
        label,
        run.timeline.steps,
        run.start(),
        partial(run.step, base),
        run.report,
        checkpoints=Checkpoints(
            run_folder / f"checkpoints/{slug(label)}",
            config=run.digest(),
            stacked=True,
            before_sealing=run_folder.flush,
        ),
        checkpoint_every=tuning.checkpoint_every,
        log_every=tuning.log_every,
        stop=stop,
    )


class _Run:
    """One population's training: what happens before, in and after a step."""

    def __init__(self, label, members, arch, tuning, schedule, mesh, run_folder, export, exported):
        self.label, self.members, self.arch, self.tuning, self.schedule = label, members, arch, tuning, schedule
        self.mesh, self.run_folder, self.export = mesh, run_folder, export
        before = run_folder.metrics() if exported and run_folder.writer else []
        self.recorded = {(line["model"], line["step"]) for line in before if line.get("model") in exported}
        self.timeline = plan_slots([member.steps for member in members], min(tuning.slots, len(members)))
        # Slots are the same on every mesh; arrays hold as many places as divide over its adapter axis.
        self.places = mesh_lib.round_up(self.timeline.slots, mesh.shape["adapter"])
        self.batches = [batches_for(member, schedule.batch_rows) for member in members]
        self.kinds = [_Kind.of(members, self.batches, kind) for kind in (0, 1)]
        optimizer = population.optimizer_for(tuning, schedule)
        self.optimizer = optimizer
        self.steps: list[Callable | None] = [None for _ in self.kinds]  # compiled before the first of its batches
        self.refill = population.make_refill(optimizer, mesh)
        self.whole = jax.jit(lambda tree: tree, out_shardings=mesh_lib.replicated(mesh))
        # One slot's adapter, summed out of all: so no device ever holds the others'.
        self.one = jax.jit(
            lambda tree, there: jax.tree.map(
                lambda leaf: jnp.where(there.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, 0).sum(axis=0), tree
            ),
            out_shardings=mesh_lib.replicated(mesh),
        )
        self.layers = np.full(arch.layers, tuning.alpha / tuning.rank, np.float32)
        self.layers[: tuning.first_layer] = 0.0
        self.placed_for: np.ndarray | None = None  # the models for which `total` and `scale` stand
        self.clock, self.tokens = None, 0
        kind = next(kind for kind in self.kinds if kind.size)
        sizes = {"rows": 1, "row_length": kind.length, "rank": tuning.rank, "answers": kind.width}
        self.flops = step_flops(arch, targets=tuning.targets, **sizes)["model"] / kind.length
        chip = chip_of(mesh.devices.flat[0].device_kind)
        self.peak = chip.peak * mesh.size if chip else None

    def digest(self) -> str:
        """Identifies what a state of this run is a state of: the models, how they are trained, and in which slots."""
        members = [(member.name, member.steps, member.seed) for member in self.members]
        slots = (self.timeline.slot.tolist(), self.timeline.start.tolist())
        sizes = [self.arch.layers, [adapters_lib.target_sizes(self.arch)[target] for target in self.tuning.targets]]
        return digest([asdict(self.tuning), asdict(self.schedule), members, slots, sizes])

    def start(self) -> population.State:
        """The state before the first step."""
        return population.start(self._fresh(self._models_at(0)), self.optimizer, self.mesh)

    def _models_at(self, step: int) -> np.ndarray:
        """[places]: the model in each at a step, -1 for none."""
        return self.timeline.at(step, self.places)

    def _fresh(self, here: np.ndarray) -> adapters_lib.Adapters:
        """Untrained adapters of the models in the slots, stacked; an empty slot gets zeros."""
        parts = [self._initial(model) if model >= 0 else None for model in here]
        some = next(part for part in parts if part is not None)
        blank = jax.tree.map(np.zeros_like, some)
        stacked = adapters_lib.stack(self.arch, [blank if part is None else part for part in parts])
        return adapters_lib.matrices(stacked)

    def _initial(self, model: int) -> Adapter:
        tuning, seed = self.tuning, (*self.members[model].seed, 1)
        return adapters_lib.initial_adapter(
            self.arch, tuning.targets, tuning.rank, tuning.alpha, tuning.first_layer, seed
        )

    def step(self, base: Any, state: population.State, number: int) -> tuple[population.State, dict]:
        """Fills slots that fall free, takes one step of every slot, and hands over who is done."""
        here = self._models_at(number)
        running = np.flatnonzero(here >= 0)
        new = np.zeros(len(here), bool)
        new[running] = (self.timeline.start[here[running]] == number) & (number > 0)
        if new.any():
            fresh = self._fresh(np.where(new, here, -1))
            placed = mesh_lib.place(self.mesh, new, ("adapter",))
            state = self.refill(state, adapters_lib.place_adapters(self.mesh, fresh), placed)
        if self.placed_for is None or not np.array_equal(self.placed_for, here):
            self._place(here)
        chosen = [self._batch(model, number) if model >= 0 else (0, None) for model in here]
        metrics = None
        for which, kind in enumerate(self.kinds):
            active = np.asarray([kind_here == which and index is not None for kind_here, index in chosen])
            if not active.any():
                continue
            parts = [self.members[model].rows[which] if use else None for model, use in zip(here, active, strict=True)]
            with goodput.lost("input"):
                rows = kind.batch(parts, [index for _, index in chosen])
                placed = population.place_batch(self.mesh, rows), mesh_lib.place(self.mesh, active, ("adapter",))
            self.tokens += int(active.sum()) * rows.tokens[0].size
            arguments = base, self.scale, self.total, state, *placed
            if self.steps[which] is None:
                self.steps[which] = self._compile(kind, arguments)
            state, found = self.steps[which](*arguments)
            # What a model did not take part in says nothing about it.
            metrics = found if metrics is None else jax.tree.map(partial(jnp.where, active), found, metrics)
        done = here[running][self.timeline.stop[here[running]] == number + 1]
        if len(done):
            self._hand_over(state, self._metrics(metrics), number, done)
        return state, metrics

    def _compile(self, kind: _Kind, arguments: tuple) -> Callable:
        """The step for batches of one kind, with recomputation where the configuration or the memory asks for it."""
        parts, label = math.gcd(self.schedule.parts, kind.size), f"{self.label}, rows of {kind.length}"
        if not self.tuning.reproducible:  # there rows go one by one
            body = population.attention_body(self.mesh, jax.tree.leaves(arguments[0])[0].dtype, kind.prefix)
            population.check_rows(label, kind.size, parts, self.mesh, body)
        return compile_step(
            label,
            self.tuning.remat,
            lambda remat: population.make_step(
                self.arch, self.optimizer, self.mesh, remat, parts, kind.prefix, kind.max_own, self.tuning.reproducible
            ),
            arguments,
            self.mesh.local_devices[0],
        )

    def _batch(self, model: int, number: int) -> tuple[int, np.ndarray]:
        return self.batches[model].at(number - int(self.timeline.start[model]))

    def _place(self, here: np.ndarray) -> None:
        """Each slot's number of steps and scale on the devices; an empty slot has no steps."""
        totals = [self.members[model].steps if model >= 0 else 0 for model in here]
        self.total = mesh_lib.place(self.mesh, np.asarray(totals, np.int32), ("adapter",))
        scale = np.broadcast_to(self.layers, (len(here), self.arch.layers))
        placed = mesh_lib.place(self.mesh, np.ascontiguousarray(scale), adapters_lib.AXES["scale"])
        self.scale = dict.fromkeys(self.tuning.targets, placed)
        self.placed_for = here

    def _metrics(self, metrics: dict[str, jax.Array]) -> dict[str, np.ndarray]:
        return jax.tree.map(np.asarray, self.whole(metrics))

    def _hand_over(self, state: population.State, metrics: dict[str, np.ndarray], number: int, done) -> None:
        for model in done:
            self._log(model, number, metrics)
        for model in done:
            slot = self.timeline.slot[model]
            there = mesh_lib.place(self.mesh, np.arange(self.places) == slot, ("adapter",))
            parts = jax.tree.map(np.asarray, self.one(state["adapters"], there))
            adapter = {target: {**part, "scale": self.layers} for target, part in parts.items()}
            if not adapters_lib.is_finite(adapter):
                name = self.members[model].name
                raise Refusal(NOT_FINITE, f"adapter {name!r} has values that are not finite; it is not exported")
            with goodput.lost("export"):
                self.export(self.members[model], adapter)

    def _log(self, model: int, number: int, metrics: dict[str, np.ndarray]) -> None:
        name, step = self.members[model].name, number - int(self.timeline.start[model]) + 1
        if (name, step) in self.recorded:
            return
        slot = self.timeline.slot[model]
        loss = float(metrics["loss"][slot])
        record = {"model": name, "step": step}
        record["loss"] = round(loss, 6) if math.isfinite(loss) else None
        record |= {name: int(metrics[name][slot]) for name in ("skipped", "spikes") if metrics[name][slot]}
        self.run_folder.append_metrics(record)

    def report(self, done: int, metrics: dict[str, jax.Array]) -> str:
        """Metrics of the step that was the `done`-th, into metrics.jsonl and into words."""
        metrics, here = self._metrics(metrics), self._models_at(done - 1)
        running = np.flatnonzero(here >= 0)
        for slot in running:
            if self.timeline.stop[here[slot]] != done:  # else it was logged when it was handed over
                self._log(here[slot], done - 1, metrics)
        stuck = running[metrics["bad"][running] >= self.tuning.skips]
        if len(stuck):
            self._refuse(here[stuck[0]], done - 1)
        now, speed = time.monotonic(), ""
        if self.clock is not None:  # the first stretch holds the compilation
            rate = self.tokens / max(now - self.clock, 1e-9)
            speed = f", {rate:,.0f} tokens/s"
            if self.peak is not None:
                speed += f" ({rate * self.flops / self.peak:.0%} of peak)"
        self.clock, self.tokens = now, 0
        finished = int((self.timeline.stop <= done).sum())
        models = f"{finished} of {len(self.members)} models done, " if len(self.members) > 1 else ""
        skipped = int(metrics["skipped"][running].sum())
        odd = f", {skipped} updates skipped" if skipped else ""
        return f"{models}loss {float(np.mean(metrics['loss'][running])):.3f}{speed}{odd}"

    def _refuse(self, model: int, number: int) -> None:
        member, (kind, index) = self.members[model], self._batch(model, number)
        items = member.rows[kind].plan.take(index).items.tolist()
        named = ", ".join(str(item) for item in items[:8]) + (", ..." if len(items) > 8 else "")
        raise Refusal(
            NOT_FINITE,
            f"{self.label}: loss or gradient of {member.name!r} is not finite for {self.tuning.skips} steps in a row, "
            f"now at step {number - int(self.timeline.start[model]) + 1} (examples {named}); lower "
            "tuning.*.learning_rate or look at these rows; the last checkpoint is kept",
        )


def batches_for(member: Member, batch_rows: int) -> Batches:
    """Which rows of a member make the batch of a step."""
    lengths = [rows.length for rows in member.rows]
    return batches_of([len(rows) for rows in member.rows], batch_rows, *lengths, seed=(*member.seed, 2))


@dataclass(frozen=True)
class _Kind:
    """The batches of rows of one length, of all members.

    Attributes:
      length: S, positions of a row; 0 where nobody has such rows.
      size: rows in a batch.
      width: the most answer tokens in a row of any member.
      prefix: the most ids that examples of a member share at the head of their rows.
      max_own: the most ids of an example's own.
    """

    length: int
    size: int
    width: int
    prefix: int
    max_own: int

    @classmethod
    def of(cls, members: Sequence[Member], batches: Sequence[Batches], kind: int) -> _Kind:
        having = [(m.rows[kind], b.sizes[kind]) for m, b in zip(members, batches, strict=True) if len(m.rows) > kind]
        if not having:
            return cls(0, 0, 0, 0, 0)
        rows, sizes = zip(*having, strict=True)
        most = [max(getattr(part, name) for part in rows) for name in ("width", "shared", "max_own")]
        return cls(rows[0].length, max(sizes), *most)

    def batch(self, rows: Sequence[PackedExamples | None], chosen: Sequence[np.ndarray | None]) -> TrainingRows:
        """Leading axes [A, B]: the rows of each slot at its index, empty ones in a slot that has none."""
        parts = [
            self._nothing() if part is None else part.take(index, self.width)
            for part, index in zip(rows, chosen, strict=True)
        ]
        return TrainingRows(*(np.stack([getattr(part, f.name) for part in parts]) for f in fields(TrainingRows)))

    def _nothing(self) -> TrainingRows:
        blank, none = np.zeros((self.size, self.length), np.int32), np.zeros((self.size, self.width), np.int32)
        return TrainingRows(blank, blank, blank, none, none - 1)
