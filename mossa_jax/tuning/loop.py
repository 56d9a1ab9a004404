"""The training loop: from the newest checkpoint to the last step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import jax

from mossa_jax.monitoring import goodput
from mossa_jax.monitoring.progress import Progress
from mossa_jax.processes.stop import Stop
from mossa_jax.processes.watchdog import sign
from mossa_jax.tuning.checkpoints import Checkpoints

State = TypeVar("State")
Metrics = TypeVar("Metrics")

_AGREE = 5.0  # seconds between two times that processes ask each other whether to stop, roughly


def train(
    label: str,
    total: int,
    state: State,
    step: Callable[[State, int], tuple[State, Metrics]],
    report: Callable[[int, Metrics], None],
    describe: Callable[[], str],
    *,
    checkpoints: Checkpoints,
    checkpoint_every: int,
    log_every: int,
    stop: Stop,
    alone: bool = False,
) -> State:
    """Trains from the newest checkpoint to step `total`; returns the last state, which is saved as well.

    Args:
      label: in front of progress lines.
      total: number of steps.
      state: before step 0; shapes with shardings will do where `step` makes the first state itself.
      step: (state, number) -> (state, metrics on the devices).
      report: (number of steps done, metrics): records a step. Called after every `log_every`-th step, once the next
        one is under way, so that the device is never waited for; before each save; and at the end. It may be called
        twice for a step. Raises to stop the run.
      describe: returns what a progress line says of the steps since the last line.
      checkpoints: where the state is saved; closed at the end.
      checkpoint_every: steps between two saves.
      log_every: steps between two progress lines.
      stop: asked after every step; on a request the state is saved first. If several processes have to agree, they
        do so every `_AGREE` seconds or `log_every` steps, whichever comes first.
      alone: only this process takes part, whatever the others do.

    Raises:
      Refusal: 75 on a request to stop; and whatever `report` or `checkpoints` raises.
    """
    # Places the restored arrays as `state` is placed, whatever mesh they were saved from.
    with goodput.lost("checkpoint"):
        state, done = checkpoints.restore(state)
    progress = Progress(label, total, done, "steps")
    metrics, measured = None, done
    together = jax.process_count() > 1 and not alone
    # The steps at which processes ask each other; the same on every process.
    began, asked_at, ask_at = time.monotonic(), done, done + 1
    try:
        while done < total:
            with goodput.useful(label, done), jax.profiler.StepTraceAnnotation("step", step_num=done):
                # JAX dispatches the step and returns before it is computed; `state` may be donated to the next one.
                state, new = step(state, done)
            goodput.running(new)
            done += 1
            sign()
            # Reads the metrics of the step before: those of this step would make the host wait for the device.
            if metrics is not None and measured % log_every == 0:
                report(measured, metrics)
                progress.line(measured, describe)
            metrics, measured = new, done
            # A single process decides by itself. Several have to stop at the same step, or the rest
            # would wait in a collective.
            asked = stop.asked and not together
            if together and done == ask_at:
                # A collective, so it is asked for at a step that all processes agree on: the slowest one's time
                # per step gives the next.
                asked, slowest = stop.asked_after((time.monotonic() - began) / (done - asked_at))
                began, asked_at = time.monotonic(), done
                ask_at = done + max(1, min(log_every, int(_AGREE / max(slowest, 1e-3))))
            if asked or (done % checkpoint_every == 0 and done < total):
                report(measured, metrics)  # refuses a state that is not finite before it is saved
                with goodput.lost("checkpoint"):
                    checkpoints.save(done, state)
            if asked:
                stop.leave()
        if metrics is not None:
            report(measured, metrics)
            progress.line(measured, describe)
            with goodput.lost("checkpoint"):
                checkpoints.save(done, state)
    finally:
        # Also after an error: a save that is under way is sealed before the process ends.
        with goodput.lost("checkpoint"):
            checkpoints.close()
    return state
