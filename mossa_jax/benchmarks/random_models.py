"""Random Llamas and random prompts, which `end_to_end`, `shared_prefix` and `comparison_overhead` measure on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.llama.adapters import stack, zero_adapter
from mossa_jax.llama.files.load import Model
from mossa_jax.llama.published import PUBLISHED, write_config
from mossa_jax.similarity.estimators import MIN_ROWS
from mossa_jax.states import KeptStates, PassConfig, keep_states
from mossa_jax.tokens.packing import Packing

_SHAPE = "llama-110m"
"""The published config that all models take their other fields from: their embedding is their head, too."""

_MAY_BE_ZERO = ("kv_heads", "feed_forward", "shared", "generated", "seed")


@dataclasses.dataclass(frozen=True)
class Workload:
    """The sizes of a measurement on random models.

    The models differ in their seeds. All prompts begin with the same `shared` ids. After them a prompt has between
    `tokens` / 2 and 3/2 `tokens` random ids of its own.

    Attributes:
      hidden: D, width of the states.
      layers: the number of blocks.
      heads: attention heads.
      kv_heads: heads of keys and values; 0 for as many as `heads`.
      feed_forward: width of the feed-forward; 0 for 8/3 of `hidden`.
      vocab: size of the vocabulary.
      prompts: the number of prompts, per device in `comparison_overhead`.
      shared: ids that all prompts begin with, BOS included.
      tokens: mean number of a prompt's own ids.
      generated: in `end_to_end`, prompts that the paper's procedure answers; 0 leaves its generation out.
      new_tokens: tokens of each of these answers.
      batch: prompts per batch of the loops over Hugging Face models.
      hook_batch: rows per batch of the tools that compare batch by batch.
      batch_rows: packed rows per forward pass of ours; as many as `mossa.compare` takes on a CPU for rows of 128.
      rounds: timed rounds.
      seed: of weights and prompts.
    """

    hidden: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 0
    feed_forward: int = 0
    vocab: int = 1024
    prompts: int = 512
    shared: int = 0
    tokens: int = 64
    generated: int = 2
    new_tokens: int = 512
    batch: int = 32
    hook_batch: int = 128
    batch_rows: int = 16
    rounds: int = 5
    seed: int = 0

    def check(self) -> None:
        """Refuses sizes that cannot be measured.

        Raises:
          Refusal: 2.
        """
        lowest = {"prompts": MIN_ROWS, "tokens": 2, "vocab": 8} | dict.fromkeys(_MAY_BE_ZERO, 0)
        for field in dataclasses.fields(self):
            value, bound = getattr(self, field.name), lowest.get(field.name, 1)
            if value < bound:
                raise Refusal(BAD_CONFIG, f"{field.name} is {value}; give at least {bound}")
        if self.hidden % (2 * self.heads):
            raise Refusal(
                BAD_CONFIG,
                f"hidden is {self.hidden}, which does not divide into {self.heads} heads of even width; "
                f"give a multiple of {2 * self.heads}",
            )
        if self.kv_heads and self.heads % self.kv_heads:
            raise Refusal(
                BAD_CONFIG,
                f"kv_heads is {self.kv_heads}, which does not divide {self.heads} heads; give a divisor, or 0 for as "
                "many as heads",
            )
        self._check_positions(0)

    def check_generation(self) -> None:
        """Refuses answers that cannot be measured in `end_to_end`.

        Raises:
          Refusal: 2.
        """
        if self.generated > self.prompts:
            raise Refusal(BAD_CONFIG, f"generated is {self.generated} of {self.prompts} prompts; give at most as many")
        if self.generated:
            self._check_positions(self.new_tokens)

    def _check_positions(self, new_tokens: int) -> None:
        positions = PUBLISHED[_SHAPE]["max_position_embeddings"]
        needed = self.shared + self.own_bounds[1] + new_tokens
        if needed > positions:
            generated = f" + {new_tokens} new tokens (new_tokens)" if new_tokens else ""
            raise Refusal(
                BAD_CONFIG,
                f"shared is {self.shared}, tokens is {self.tokens}: {self.shared} shared ids + up to "
                f"{self.own_bounds[1]} own ones{generated} are {needed} positions, and the models have {positions}; "
                "give fewer",
            )

    @property
    def own_bounds(self) -> tuple[int, int]:
        """The fewest and the most ids that a prompt may have of its own."""
        return max(self.tokens // 2, 2), self.tokens * 3 // 2

    def config(self) -> dict[str, Any]:
        """Returns the `config.json` of a Hugging Face folder with these sizes."""
        return PUBLISHED[_SHAPE] | {
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.feed_forward or -(-8 * self.hidden // 3 // 8) * 8,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads or self.heads,
        }


PRESETS = {
    "110m": {"hidden": 768, "layers": 12, "heads": 12, "vocab": 32000, "prompts": 256},
    # SmolLM2-135M behind a template as long as Llama-2's with its system prompt. The loops take short batches, which
    # suits a CPU; ours takes rows of 192 positions, ten of them per pass as in `mossa.compare`.
    "smollm2": {
        "hidden": 576,
        "layers": 30,
        "heads": 9,
        "kv_heads": 3,
        "feed_forward": 1536,
        "vocab": 49152,
        "prompts": 20,
        "shared": 133,
        "tokens": 36,
        "batch": 8,
        "batch_rows": 10,
    },
}
"""Name -> fields of a `Workload`."""


def draw_prompts(work: Workload) -> list[list[int]]:
    """Returns the ids of all prompts; the first id of each is BOS."""
    rng = np.random.default_rng(work.seed)
    shortest, longest = work.own_bounds
    lengths = rng.integers(shortest, longest + 1, work.prompts)
    if not work.shared:
        return [[1, *rng.integers(3, work.vocab, length - 1).tolist()] for length in lengths]
    shared = [1, *rng.integers(3, work.vocab, work.shared - 1).tolist()]
    return [shared + rng.integers(3, work.vocab, length).tolist() for length in lengths]


def write_models(work: Workload, scratch: str, count: int = 2) -> list[str]:
    """Writes `count` random models below the folder `scratch`, and returns their folders."""
    folders = [f"{scratch}/model_{index}" for index in range(count)]
    for index, folder in enumerate(folders):
        write_config(folder, work.config(), f"{index + 1} of {count}", "float32", seed=count * work.seed + index)
    return folders


def base_states(model: Model, prompts: Sequence[Sequence[int]], batch_rows: int, packing: Packing) -> KeptStates:
    """Returns the states of the prompts' last tokens in a model by itself, as `mossa.compare` computes them.

    Args:
      model: the loaded model.
      prompts: ids of each prompt.
      batch_rows: packed rows per forward pass.
      packing: the rows that prompts are packed into.
    """
    adapters = stack(model.architecture, [zero_adapter(model.architecture)])
    return keep_states(model, adapters, prompts, PassConfig("last", batch_rows, packing))
