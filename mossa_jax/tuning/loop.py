"""The loop that trains one group of models, from the last checkpoint to the last step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mossa_jax import mesh as mesh_lib
from mossa_jax.config import Schedule, Tuning
from mossa_jax.llama import adapters as adapters_lib
from mossa_jax.llama.architecture import Architecture
from mossa_jax.progress import Progress, Stop
from mossa_jax.rundir import NOT_FINITE, Refusal, RunDir
from mossa_jax.tokens.packing import Batches, PackedExamples, TrainingRows, batches_of
from mossa_jax.tuning import population
from mossa_jax.tuning.checkpoints import Checkpoints


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
      stop: asked after every step; on a request the state is saved first.
    """
    state, done = checkpoints.restore(state)
    progress = Progress(label, total, done)
    metrics, measured = None, done
    try:
        while done < total:
            state, new = step(state, done)
            done += 1
            if metrics is not None and (done % log_every == 0 or done == total):
                progress.line(done, report(measured, metrics))
            metrics, measured = new, done
            asked = stop.asked_anywhere() if done % log_every == 0 or jax.process_count() == 1 else False
            if asked or (done % checkpoint_every == 0 and done < total):
                report(measured, metrics)  # nothing that is not finite is ever saved
                checkpoints.save(done, state)
            if asked:
                stop.leave()
        if metrics is not None:
            report(measured, metrics)
            checkpoints.save(done, state)
    finally:
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
    rundir: RunDir,
    stop: Stop,
) -> list[dict[str, dict[str, np.ndarray]]]:
    """Trains all members together; returns their adapters in order, on the host.

    Raises:
      Refusal: 5, naming model and step, when a loss or gradient is not finite; 75 on a request to stop.
    """
    count = mesh_lib.round_up(len(members), mesh.shape["adapter"])
    # Slots beyond the members fill the mesh: they repeat the first member for zero steps.
    slots = [*members, *[members[0]] * (count - len(members))]
    totals = np.asarray([member.steps for member in members] + [0] * (count - len(members)), np.int32)
    starts = [
        adapters_lib.initial_adapter(
            arch, tuning.targets, tuning.rank, tuning.alpha, tuning.first_layer, (*member.seed, 1)
        )
        for member in slots
    ]
    stacked = adapters_lib.stack(arch, starts)
    optimizer = population.optimizer_for(tuning, schedule)
    state = population.start(adapters_lib.trainable(stacked), optimizer, mesh)
    scale = {
        target: mesh_lib.place(mesh, leaf, adapters_lib.AXES["scale"])
        for target, leaf in adapters_lib.scales(stacked).items()
    }
    total = mesh_lib.place(mesh, totals, ("adapter",))
    batches = [_batches(member, schedule.batch_rows) for member in slots]
    kinds = [_Kind.of([member.rows[kind : kind + 1] for member in slots], batches, kind) for kind in (0, 1)]
    jitted = population.make_step(arch, optimizer, mesh, tuning.remat)
    clock = {"time": None, "tokens": 0}

    def step(state, number):
        chosen = [batch.at(number) for batch in batches]
        metrics = None
        for which, kind in enumerate(kinds):
            active = np.asarray([here == which for here, _ in chosen])
            if not active.any():
                continue
            rows = kind.batch([index if here == which else None for here, index in chosen])
            clock["tokens"] += int((active & (totals > number)).sum()) * rows.tokens[0].size
            placed = population.place_batch(mesh, rows), mesh_lib.place(mesh, active, ("adapter",))
            state, found = jitted(base, scale, total, state, *placed)
            # What a model did not take part in says nothing about it.
            metrics = found if metrics is None else jax.tree.map(partial(jnp.where, active), found, metrics)
        return state, metrics

    def report(done, metrics):
        metrics = jax.tree.map(lambda leaf: np.asarray(leaf)[: len(members)], metrics)
        good = np.isfinite(metrics["loss"]) & np.isfinite(metrics["gradient_norm"])
        running = done <= totals[: len(members)]
        if not good[running].all():
            name = members[int(np.flatnonzero(~good & running)[0])].name
            raise Refusal(
                NOT_FINITE,
                f"{label}: loss or gradient of {name!r} is not finite at step {done}; lower tuning.*.learning_rate "
                "or look at its rows; the last checkpoint is kept",
            )
        for index in np.flatnonzero(running):
            rundir.append_metrics(
                {"model": members[index].name, "step": done, "loss": round(float(metrics["loss"][index]), 6)}
            )
        now, speed = time.monotonic(), ""
        if clock["time"] is not None:  # the first stretch holds the compilation
            speed = f", {clock['tokens'] / max(now - clock['time'], 1e-9):,.0f} tokens/s"
        clock["time"], clock["tokens"] = now, 0
        return f"loss {float(metrics['loss'][running].mean()):.3f}{speed}"

    state = train(
        label,
        int(totals.max()),
        state,
        step,
        report,
        checkpoints=Checkpoints(rundir / f"checkpoints/{label.replace(' ', '_')}"),
        checkpoint_every=tuning.checkpoint_every,
        log_every=tuning.log_every,
        stop=stop,
    )
    gathered = jax.tree.map(
        np.asarray, jax.jit(lambda tree: tree, out_shardings=mesh_lib.replicated(mesh))(state["adapters"])
    )
    joined = adapters_lib.join(gathered, adapters_lib.scales(stacked))
    return [adapters_lib.unstack(joined, index) for index in range(len(members))]


def _batches(member: Member, batch_rows: int) -> Batches:
    lengths = [rows.length for rows in member.rows]
    return batches_of([len(rows) for rows in member.rows], batch_rows, *lengths, seed=(*member.seed, 2))


@dataclass(frozen=True)
class _Kind:
    """The rows of one length of all slots.

    Attributes:
      rows: of each slot; None where it has none.
      size: rows in a batch.
      width: the most answer tokens in a row of any slot.
    """

    rows: list[PackedExamples | None]
    size: int
    width: int

    @classmethod
    def of(cls, rows: Sequence[Sequence[PackedExamples]], batches: Sequence[Batches], kind: int) -> _Kind:
        found = [part[0] if part else None for part in rows]
        sizes = [batch.sizes[kind] for part, batch in zip(found, batches, strict=True) if part is not None]
        return cls(found, max(sizes, default=0), max((part.width for part in found if part is not None), default=0))

    def batch(self, chosen: Sequence[np.ndarray | None]) -> TrainingRows:
        """Leading axes [A, B]: each slot's rows at its index, empty ones where that is None."""
        some = next(part for part in self.rows if part is not None)
        parts = [
            some.nothing(self.size, self.width) if index is None else part.take(index, self.width)
            for part, index in zip(self.rows, chosen, strict=True)
        ]
        return TrainingRows(*(np.stack([getattr(part, f.name) for part in parts]) for f in fields(TrainingRows)))
