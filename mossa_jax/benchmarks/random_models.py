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


@dataclasses.dataclass(frozen=True)
class Workload:
    """The sizes of a measurement on random models.

    The models differ in their seeds. The feed-forward is 8/3 as wide as the states. A prompt has between `tokens` / 2
    and 3/2 `tokens` random ids.

    Attributes:
      hidden: D, width of the states.
      layers: the number of blocks.
      heads: attention heads.
      vocab: size of the vocabulary.
      prompts: the number of prompts, per device in `comparison_overhead`.
      tokens: mean length of a prompt.
      batch: prompts per batch of the loops over Hugging Face models.
      hook_batch: rows per batch of the tools that compare batch by batch.
      batch_rows: packed rows per forward pass of ours; as many as `mossa.compare` takes on a CPU.
      rounds: timed rounds.
      seed: of weights and prompts.
    """

    hidden: int = 256
    layers: int = 6
    heads: int = 4
    vocab: int = 1024
    prompts: int = 512
    tokens: int = 64
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
        lowest = {"prompts": MIN_ROWS, "tokens": 2, "vocab": 8, "seed": 0}
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

    def config(self) -> dict[str, Any]:
        """Returns the `config.json` of a Hugging Face folder with these sizes."""
        return PUBLISHED["llama-110m"] | {
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": -(-8 * self.hidden // 3 // 8) * 8,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
        }


PRESETS = {"110m": {"hidden": 768, "layers": 12, "heads": 12, "vocab": 32000, "prompts": 256}}


def draw_prompts(work: Workload) -> list[list[int]]:
    """Returns the ids of all prompts; the first id of each is BOS."""
    rng = np.random.default_rng(work.seed)
    lengths = rng.integers(max(work.tokens // 2, 2), work.tokens * 3 // 2 + 1, work.prompts)
    return [[1, *rng.integers(3, work.vocab, length - 1).tolist()] for length in lengths]


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
