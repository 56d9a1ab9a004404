"""The record of losses in metrics.jsonl, and the speed of training in words."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from typing import Any

from mossa_jax.files.run_folder import RunFolder


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
        lines = run_folder.metrics() if exported and run_folder.writer else []
        self._run_folder = run_folder
        self._recorded = {(line["model"], line["step"]) for line in lines if line.get("model") in exported}

    def append(self, model: str, step: int, loss: float, *, skipped: int, spikes: int) -> None:
        """Records a step.

        Args:
          model: its name.
          step: from 1.
          loss: nats per answer token; recorded as null where it is not finite.
          skipped, spikes: counts so far; recorded where they are not 0.
        """
        if (model, step) in self._recorded:
            return
        record: dict[str, Any] = {"model": model, "step": step}
        # JSON has no NaN and no infinity.
        record["loss"] = round(loss, 6) if math.isfinite(loss) else None
        counts = {"skipped": skipped, "spikes": spikes}
        self._run_folder.append_metrics(record | {name: count for name, count in counts.items() if count})


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
        """Returns the speed since the last report as the end of a progress line; "" the first time."""
        now, text = time.monotonic(), ""
        if self._clock is not None:
            # Positions per second; with `flops`, the share of peak is model-FLOP utilisation
            # (recomputation does not count).
            rate = self._positions / max(now - self._clock, 1e-9)
            text = f", {rate:,.0f} tokens/s"
            if self._peak is not None:
                text += f" ({rate * self._flops / self._peak:.0%} of peak)"
        self._clock, self._positions = now, 0
        return text
