"""The loop that trains one group of models, from the last checkpoint to the last step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
import numpy as np

from mossa_jax import mesh as mesh_lib
from mossa_jax.config import Schedule, Tuning
from mossa_jax.llama import adapters as adapters_lib
from mossa_jax.llama.architecture import Architecture
from mossa_jax.progress import Progress, Stop
from mossa_jax.rundir import NOT_FINITE, Refusal, RunDir
from mossa_jax.tokens.packing import TrainingRows, batch_index
from mossa_jax.tuning import population
from mossa_jax.tuning.checkpoints import Checkpoints


@dataclass(frozen=True)
class Member:
    """A model to be tuned.

    Attributes:
      name: its task, or "tuned" for E.
      rows: what it learns from.
      steps: optimizer steps.
      seed: what its start and its order of rows are drawn from; independent of the group it is trained in.
    """

    name: str
    rows: TrainingRows
    steps: int
    seed: tuple[int, ...]


def steps_for(schedule: Schedule, rows: int) -> int:
    """Steps that a schedule gives to a model with so many packed rows."""
    steps = max(1, int(np.ceil(schedule.epochs * rows / schedule.batch_rows)))
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
    width = max(member.rows.labels.shape[1] for member in members)
    rows = [member.rows.with_answers(width) for member in slots]
    batch_rows = schedule.batch_rows
    jitted = population.make_step(arch, optimizer, mesh, tuning.remat)
    clock = {"time": time.monotonic(), "step": None}

    def step(state, number):
        parts = [
            part.take(batch_index(len(part), batch_rows, (*member.seed, 2), number))
            for part, member in zip(rows, slots, strict=True)
        ]
        batch = TrainingRows(*(np.stack([getattr(p, f.name) for p in parts]) for f in fields(TrainingRows)))
        return jitted(base, scale, total, state, population.place_batch(mesh, batch))

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
        now, before = time.monotonic(), clock["step"]
        speed = ""
        if before is not None and done > before:
            tokens = int((totals >= done).sum()) * batch_rows * rows[0].tokens.shape[1] * (done - before)
            speed = f", {tokens / (now - clock['time']):,.0f} tokens/s"
        clock["time"], clock["step"] = now, done
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
