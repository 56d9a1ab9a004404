"""Passes of models that exist already: adapters on the host, batches that fit, and a sign of progress after each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from mossa_jax.llama.adapters import Adapter, HostAdapters, stack, zero_adapter
from mossa_jax.llama.files.about import check_files, read_about
from mossa_jax.llama.files.load import Model
from mossa_jax.llama.files.peft import is_adapter
from mossa_jax.monitoring.progress import Progress
from mossa_jax.states import PassConfig, PassShape
from mossa_jax.tokens.packing import PackedSizes, Packing

ALL = "all"
"""The pooling that makes every token a row."""

# States of every position and layer are on the devices at once: some two GB of them for a model of 7B.
TOKEN_POSITIONS = 4096
# Positions per forward pass on a CPU: the states of so few stay in its cache, which makes a pass a fifth faster.
_CPU_POSITIONS = 2048
_BATCH_ROWS = 32


class BatchProgress:
    """Progress over the batches of several passes."""

    def __init__(self, label: str, batches: int):
        """Starts the clock.

        Args:
          label: subject of the lines.
          batches: of all passes together.
        """
        self._progress = Progress(label, batches, unit="batches")
        self._done = 0

    def after_batch(self, name: str = "") -> Callable[[Any], None]:
        """Returns what a pass calls with its result so far after each batch; `name` stands in the lines."""

        def count(result: Any) -> None:
            # Devices may be many batches behind the program that feeds them.
            jax.block_until_ready(result)
            self._done += 1
            self._progress.line(self._done, name)

        return count


def stack_adapters(model: Model, adapters: Sequence[Adapter]) -> HostAdapters:
    """Stacks adapters [M, ...] on the host; empty ones become zeros."""
    arch = model.architecture
    return stack(arch, adapters if any(adapters) else [zero_adapter(arch) for _ in adapters])


def pass_config(
    model: Model, pool: str, lists: Sequence[Sequence[Sequence[int]]], most_positions: int = 0
) -> PassConfig:
    """Chooses rows that all prompts fit, and how many of them run at once.

    Args:
      model: that reads the prompts.
      pool: `last`, `mean` or `all`.
      lists: of prompts, each a list of token ids.
      most_positions: of a batch; 0 for no bound.
    """
    packing = Packing.fitting([ids for prompts in lists for ids in prompts])
    on_cpu = model.mesh.devices.flat[0].platform == "cpu"
    positions = _CPU_POSITIONS if on_cpu else most_positions
    return PassConfig(pool, max(positions // packing.row_length, 1) if positions else _BATCH_ROWS, packing)


def batch_count(shapes: Sequence[PassShape], sizes: PackedSizes) -> int:
    """Returns how many batches a list of packed prompts takes in the first of these shapes that it fits."""
    shape = next(shape for shape in shapes if shape.fits(sizes))
    return sum(len(rows.batches_of(sizes.rows[rows.length][0])) for rows in shape.rows if rows.length in sizes.rows)


def check_tuned(model: Model, name: str, template: str) -> None:
    """Refuses, with code 3, a model of a run whose files are not as they were written, or another template than its."""
    label, about = f"{'adapter' if is_adapter(name) else 'model'} {name}", read_about(name)
    check_files(name, about)
    model.tokenizer(template).check_record(about.get("template"), label)
