"""The sizes of `device`, and the random models, adapters, rows and prompts that it works on; weights are drawn on the
device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from mossa_jax.config import Schedule, Tuning
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.llama import adapters as adapters_lib
from mossa_jax.llama.adapters import Adapter, Adapters, HostAdapters
from mossa_jax.llama.architecture import Architecture, architecture_from_config
from mossa_jax.llama.files.load import Model
from mossa_jax.llama.placement import abstract_base, leaf_name
from mossa_jax.llama.published import PUBLISHED
from mossa_jax.tokens.encoded import Encoded, in_memory
from mossa_jax.tokens.rows import PackedExamples, TrainingRows, pack_examples
from mossa_jax.tuning import population
from mossa_jax.tuning.batch import Batch, place_batch

TINY = "tiny"
"""Name of the shape for a quick test on a CPU."""

SHAPES = {
    **PUBLISHED,
    TINY: PUBLISHED["llama-110m"]
    | {
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    },
}
"""Name -> config.json."""

_NORM_STD = 0.1


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of what is measured; rows, prompts and kept rows are halved until they fit the device.

    Attributes:
      rows: packed rows of a LoRA step of one adapter, and of a forward pass.
      many_rows: rows per adapter of a step of `adapters` adapters.
      row_length: S, positions of a row.
      adapters: adapters of the larger step.
      example: ids of a training example, which must divide `row_length`; a quarter of them are the answer.
      prompts: prompts of the passes that keep or stream states.
      batch_rows: packed rows per forward pass of these.
      shared, own: ids that prompts share, and those of their own, in the measurement of the shared prefix.
      kept: n, rows of the similarity that is measured by itself.
      permutations: its permutations, in the second of its two measurements; a run has ten times as many.
      answers: prompts that are answered at once.
      new_tokens: tokens of an answer.
      product: size of the square products that measure the peak.
      copy_bytes: bytes of the copy that measures the memory's speed.
      repeats: timed runs of each, after one that is not timed.
    """

    rows: int = 8
    many_rows: int = 2
    row_length: int = 1024
    adapters: int = 8
    example: int = 128
    prompts: int = 256
    batch_rows: int = 16
    shared: int = 133
    own: int = 60
    kept: int = 10240
    permutations: int = 20
    answers: int = 64
    new_tokens: int = 32
    product: int = 8192
    copy_bytes: int = 2**30
    repeats: int = 5


TINY_SIZES = Sizes(
    rows=2, many_rows=1, row_length=128, adapters=2, example=32, prompts=16, batch_rows=2, shared=20, own=12, kept=128,
    permutations=8, answers=4, new_tokens=4, product=256, copy_bytes=2**20, repeats=2,
)  # fmt: skip
"""The sizes that go with the shape `TINY`."""


def random_model(name: str, config: dict[str, Any], dtype: str, std: float = 0.02, seed: int = 0) -> Model:
    """Draws a model on this process's first device: normal weights, and norm weights around one.

    Nothing of it is ever on the host, and it has no folder.

    Args:
      name: of the model.
      config: its config.json.
      dtype: of the weights.
      std: standard deviation of the matrices.
      seed: of the weights.
    """
    arch = architecture_from_config(config, name)
    mesh = mesh_lib.single_device()
    # The device's own generator: the usual one takes many times as long, and twice the memory.
    key = jax.random.key(seed, impl="rbg")
    shapes = abstract_base(arch, mesh, dtype)
    leaves = []
    # Leaf by leaf, so that no more than one is there in a wider type.
    for index, (path, leaf) in enumerate(jax.tree.leaves_with_path(shapes)):
        is_norm = "norm" in leaf_name(path)
        spread = jnp.float32(_NORM_STD if is_norm else std)
        drawn = _draw(jax.random.fold_in(key, index), spread, leaf.shape, dtype, int(is_norm))
        leaves.append(jax.device_put(drawn, leaf.sharding))
    return Model(name, epath.Path(name), arch, jax.tree.unflatten(jax.tree.structure(shapes), leaves), mesh)


@partial(jax.jit, static_argnames=("shape", "dtype", "mean"))
def _draw(key: jax.Array, std: jax.Array, shape: tuple[int, ...], dtype: str, mean: int) -> jax.Array:
    """Draws a leaf; leaves of one shape share a program."""
    return mean + std.astype(dtype) * jax.random.normal(key, shape, dtype)


def random_adapters(arch: Architecture, count: int, tuning: Tuning, std: float = 0.02) -> list[Adapter]:
    """Draws adapters that change the model: as they are initialised, but with a `b` that is not zero."""
    rng = np.random.default_rng(count)
    adapters = []
    for number in range(count):
        adapter = adapters_lib.initial_adapter(arch, tuning.targets, tuning.rank, tuning.alpha, 0, (number,))
        for matrices in adapter.values():
            matrices["b"] = std * rng.standard_normal(matrices["b"].shape, np.float32)
        adapters.append(adapter)
    return adapters


def compared_adapters(arch: Architecture) -> HostAdapters:
    """Returns the three models of a comparison, stacked: the base itself, and two adapters."""
    return adapters_lib.stack(arch, [{}, *random_adapters(arch, 2, Tuning())])


def random_prompts(vocab: int, count: int, lengths: tuple[int, int], shared: int = 0) -> list[list[int]]:
    """Returns the ids of prompts that begin with the same `shared` ids.

    Args:
      vocab: size of the vocabulary.
      count: the number of prompts.
      lengths: fewest and most ids that a prompt has of its own.
      shared: ids that all begin with.
    """
    rng = np.random.default_rng(0)
    prefix = rng.integers(3, vocab, shared).tolist()
    return [prefix + rng.integers(3, vocab, rng.integers(lengths[0], lengths[1] + 1)).tolist() for _ in range(count)]


def full_rows(vocab: int, models: int, rows: int, sizes: Sizes) -> TrainingRows:
    """Returns packed rows without padding, fields [A, B, ...]: each example has `sizes.example` ids."""
    count, answer = rows * sizes.row_length // sizes.example, sizes.example // 4
    packed = []
    for model in range(models):
        ids = np.random.default_rng(model).integers(3, vocab, (count, sizes.example)).tolist()
        examples = in_memory(Encoded(row[:-answer], row[-answer:]) for row in ids)
        packed.append(pack_examples(examples, sizes.row_length)[0].take(np.arange(rows)))
    return stacked_rows(packed)


def stacked_rows(rows: Sequence[TrainingRows]) -> TrainingRows:
    """Stacks the rows of several models, fields [A, B, ...]."""
    return TrainingRows(*(np.stack([getattr(one, f.name) for one in rows]) for f in dataclasses.fields(TrainingRows)))


def widest(packed: Sequence[PackedExamples]) -> tuple[int, int, int]:
    """Returns the answer tokens of a row, the columns of the prefix and the most own ids, over all models."""
    return (
        max(rows.width for rows in packed),
        max(rows.prefix_length for rows in packed),
        max(rows.max_own for rows in packed),
    )


class Population:
    """A population's step on random adapters, with its state.

    Attributes:
      spec: what the step is compiled for.
    """

    def __init__(
        self, model: Model, adapters: Sequence[Adapter], tuning: Tuning, schedule: Schedule, prefix: int, max_own: int
    ):
        """Places the adapters; nothing is compiled.

        Args:
          model: the base.
          adapters: one per slot.
          tuning, schedule: of the optimizer.
          prefix, max_own: as in `population.StepSpec`.
        """
        optimizer = population.optimizer_for(tuning, schedule)
        self.spec = population.StepSpec(
            model.architecture, optimizer, model.mesh, remat=False, prefix=prefix, max_own=max_own
        )
        self._model, self._count = model, len(adapters)
        # Both functions only pick leaves, so they take arrays on the host as well.
        on_host: Any = adapters_lib.stack(model.architecture, adapters)
        self._matrices: Any = adapters_lib.matrices(on_host)
        scales: Any = adapters_lib.scales(on_host)
        self._scale = {target: self._place(scale, "adapter", "layers") for target, scale in scales.items()}

    def _place(self, array: np.ndarray, *axes: str) -> jax.Array:
        return mesh_lib.place(self._model.mesh, array, axes)

    def fresh(self) -> population.PopulationState:
        """Returns the state before the first step."""
        return population.initial_state(self._matrices, self.spec.optimizer, self._model.mesh)

    def arguments(self, state: population.PopulationState, rows: TrainingRows) -> tuple[Any, ...]:
        """Returns the arguments of a step on `rows`, fields [A, B, ...]."""
        total = self._place(np.full(self._count, 1000, np.int32), "adapter")
        active = self._place(np.ones(self._count, bool), "adapter")
        batch: Batch = place_batch(self._model.mesh, rows)
        return self._model.state, self._scale, total, state, batch, active


def gradients_in(moments: Any, beta1: float) -> Any:
    """Returns the gradients of the first step, which Adam's first moments hold times (1 - beta1)."""
    (adam,) = [
        part for part in jax.tree.leaves(moments, is_leaf=lambda part: hasattr(part, "mu")) if hasattr(part, "mu")
    ]
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64) / (1 - beta1), adam.mu)


def unstacked(adapters: Adapters, index: int) -> Any:
    """Returns one model's leaves of a stack [A, ...]."""
    return jax.tree.map(lambda leaf: np.asarray(leaf[index], np.float64), adapters)
