"""The record of losses in metrics.jsonl, and the loss and speed of training in words."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable
from typing import Any

from mossa_jax.files.run_folder import RunFolder
from mossa_jax.tuning.windows import Window

BASE_KIND = "base"
"""The `kind` of records of the base's pre-training; records of tuned models have none."""


AGAIN_KIND = "again"
"""The `kind` of a record that says that a model is tuned anew, from its first step."""


def begin_again(run_folder: RunFolder, models: Iterable[str]) -> None:
    """Records that models are tuned anew: what was recorded of them before is no longer theirs (writer only)."""
    known = recorded_losses(run_folder)
    for model in models:
        if model in known:
            run_folder.append_metrics({"model": model, "kind": AGAIN_KIND})


def recorded_losses(run_folder: RunFolder) -> dict[str, dict[int, dict[str, Any]]]:
    """Returns the records of tuned models in metrics.jsonl: model -> step -> record, models and steps in order.

    They are those of a run that was neither stopped nor asked again: a step that a restart repeated counts once, and
    of a model that was tuned anew nothing older counts. The base's pre-training is left out.
    """
    records: dict[str, dict[int, dict[str, Any]]] = {}
    for record in run_folder.metrics():
        kind, model = record.get("kind"), record.get("model")
        if model is None or kind == BASE_KIND:
            continue
        if kind == AGAIN_KIND:
            records.pop(model, None)
        else:
            records.setdefault(model, {})[record["step"]] = record
    return {model: dict(sorted(records[model].items())) for model in sorted(records)}


class LossCurves:
    """Appends each model's losses to metrics.jsonl. The keys of its lines are a file format."""

    def __init__(self, run_folder: RunFolder, exported: Collection[str] = ()):
        """Reads what is recorded of exported models, which is not recorded again.

        Args:
          run_folder: whose metrics.jsonl is written.
          exported: names of models that were exported before.
        """
        # Only the writer appends. A model that is trained again, from a checkpoint before its
        # export, gives the same losses.
        known = recorded_losses(run_folder) if exported and run_folder.writer else {}
        self._run_folder = run_folder
        self._recorded = {(model, step) for model in exported for step in known.get(model, {})}

    def append(self, model: str, step: int, window: Window, *, skipped: int, spikes: int) -> None:
        """Records the mean loss of a window.

        Args:
          model: its name.
          step: the last step of the window, from 1.
          window: on the host; its mean is recorded as null where it has no finite loss.
          skipped, spikes: counts so far; recorded where they are not 0.
        """
        if (model, step) in self._recorded:
            return
        record: dict[str, Any] = {"model": model, "step": step}
        # JSON has no NaN and no infinity.
        loss = mean_loss(window)
        record["loss"] = round(loss, 6) if math.isfinite(loss) else None
        counts = {"skipped": skipped, "spikes": spikes}
        self._run_folder.append_metrics(record | {name: count for name, count in counts.items() if count})


def mean_loss(window: Window) -> float:
    """Returns the mean of a window's finite losses, nats per answer token; NaN if it has none."""
    return float(window.total) / int(window.losses) if window.losses else math.nan


class LossSinceLine:
    """The mean loss since the last line of progress, over all models and steps."""

    def __init__(self) -> None:
        self._total, self._count = 0.0, 0

    def add(self, window: Window) -> None:
        """Counts the losses of a window of one model, on the host."""
        self._total, self._count = self._total + float(window.total), self._count + int(window.losses)

    def report(self) -> str:
        """Returns the mean in words, and begins anew; "" if no window has ended since the last line."""
        text = f"loss {self._total / self._count:.3f}" if self._count else ""
        self._total, self._count = 0.0, 0
        return text


class Throughput:
    """Positions per second between two reports, padding included."""

    def __init__(self, flops_per_position: float, peak: float | None):
        """Starts without a clock: the time before the first report holds the compilation.

        Args:
          flops_per_position: model FLOPs.
          peak: FLOPs per second of all devices together; None where it is not known.
        """
        self._flops, self._peak = flops_per_position, peak
        self._clock: float | None = None
        self._positions = 0

    def add(self, positions: int) -> None:
        """Counts positions that went through the model."""
        self._positions += positions

    def report(self) -> str:
        """Returns the speed since the last report in words; "" the first time."""
        now, text = time.monotonic(), ""
        if self._clock is not None:
            # Positions per second; with `flops`, the share of peak is model-FLOP utilisation
            # (recomputation does not count).
            rate = self._positions / max(now - self._clock, 1e-9)
            text = f"{rate:,.0f} tokens/s"
            if self._peak is not None:
                text += f" ({rate * self._flops / self._peak:.0%} of peak)"
        self._clock, self._positions = now, 0
        return text
