"""From texts to token ids: the options, checks and warnings that the functions of the Python API share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mossa_jax.errors import BAD_CONFIG, BAD_INPUT, Refusal
from mossa_jax.llama.files.load import Model
from mossa_jax.log import log
from mossa_jax.tasks.items import guess_items
from mossa_jax.tokens.library import has_tokenizer, read_library
from mossa_jax.tokens.tokenizer import TEMPLATES, TRUNCATIONS, encode_prompts

GUESS = "guess"
"""In place of items: prompts that share long texts count as one item, as in a run whose rows name no items."""

_LOST = {"keep_end": "the beginning of their content", "paper": "their right end"}


@dataclass(frozen=True)
class Reading:
    """How prompts are read: the options of `layer_states` of the same names."""

    template: str
    max_tokens: int | None
    truncation: str

    def __post_init__(self):
        """Refuses, with code 2, an option that does not exist."""
        check_choice("template", self.template, TEMPLATES)
        check_choice("truncation", self.truncation, TRUNCATIONS)
        if self.max_tokens is not None and self.max_tokens < 1:
            raise Refusal(BAD_CONFIG, f"max_tokens={self.max_tokens} leaves nothing to read; give at least 1")

    def encode(self, model: Model, lists: Mapping[str, Sequence[str]]) -> dict[str, list[list[int]]]:
        """Encodes lists of prompts, each with its name; warns once of all prompts that are cut.

        Raises:
          Refusal: 3 for a template that the tokenizer lacks, and for a prompt without tokens.
        """
        limit = model.architecture.positions if self.max_tokens is None else self.max_tokens
        tokenizer = model.tokenizer(self.template)
        ids, cut = {}, {}
        for name, prompts in lists.items():
            ids[name], count = encode_prompts(tokenizer, prompts, limit, self.truncation)
            if count:
                cut[name] = f"{count} of {len(prompts)} prompts" + (f" of {name}" if name else "")
            empty = [index for index, prompt in enumerate(ids[name]) if not prompt]
            if empty:
                raise Refusal(BAD_INPUT, f"prompt {empty[0]} has no tokens and the model has no BOS; leave it out")
        if cut:
            positions = model.architecture.positions
            log.warning(
                "%s are longer than %d tokens and lose %s (truncation %s): their states are those of the rest%s",
                ", ".join(cut.values()),
                limit,
                _LOST[self.truncation],
                self.truncation,
                f"; the model has {positions} positions (max_tokens)" if limit < positions else "",
            )
        return ids

    def check_other(
        self, model: Model, other: Model, lists: Mapping[str, Sequence[str]], ids: Mapping[str, Sequence[Sequence[int]]]
    ) -> None:
        """Checks that another model reads these prompts as the same ids.

        Vocabularies may differ in what the prompts do not use. A folder without a tokenizer reads any.

        Args:
          model: that encodes the prompts for both.
          other: the other one.
          lists: prompts by the name of their list.
          ids: of each, from `encode`.

        Raises:
          Refusal: 3 for an id that the other model's embedding does not have, or a prompt of which its own tokenizer
            makes other ids.
        """
        rows = other.architecture.vocab
        largest = max((max(prompt) for prompts in ids.values() for prompt in prompts), default=0)
        if largest >= rows:
            raise Refusal(
                BAD_INPUT,
                f"the prompts have id {largest:,} in the tokenizer of {model.name}, and {other.name} has {rows:,} rows "
                "in its embedding (its vocabulary); both sides must read the same ids",
            )
        if not has_tokenizer(other.folder):
            return
        tokenizer, theirs = model.tokenizer(self.template), read_library(other.folder)
        for name, prompts in lists.items():
            number = tokenizer.same_ids(theirs, prompts)
            if number is not None:
                raise Refusal(
                    BAD_INPUT,
                    f"prompt {number}{name and f' of {name}'} has other ids in the vocabulary of {other.name} than in "
                    f"that of {model.name}; both sides must read the same ids",
                )


def check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    """Refuses, with code 2, a word that is not among the choices of an option."""
    if value not in choices:
        raise Refusal(BAD_CONFIG, f"{option} {value!r} is unknown; give one of {', '.join(choices)}")


def check_draws(permutations: int, seed: int) -> None:
    """Refuses, with code 2, negative numbers of permutations and negative seeds."""
    for option, value in (("permutations", permutations), ("seed", seed)):
        if value < 0:
            raise Refusal(BAD_CONFIG, f"{option}={value}: must be at least 0")


def check_texts(prompts: Sequence[str]) -> None:
    """Refuses, with code 3, what is no list of texts, and an empty list."""
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise Refusal(BAD_INPUT, "prompts are not a list of texts; give a list, one text per prompt")
    if len(prompts) == 0:
        raise Refusal(BAD_INPUT, "there are no prompts; similarity needs at least 4")


def items_of_prompts(items: Sequence | np.ndarray | str | None, prompts: Sequence[str]) -> np.ndarray | None:
    """Numbers the items of prompts, or guesses them from their texts: [n] int, the same for prompts of one item."""
    if items is None:
        return None
    if isinstance(items, str):
        check_choice("items", items, (GUESS,))
        return guess_items(prompts)
    return np.asarray(items)


def warn_of_repeats(ids: Mapping[str, Sequence[Sequence[int]]]) -> None:
    """Warns, for each list of prompts by its name, of those that repeat others once they are encoded and cut."""
    for name, prompts in ids.items():
        if repeats := len(prompts) - len(set(map(tuple, prompts))):
            log.warning(
                "%d of %d prompts%s repeat others, which raises debiased values and narrows intervals; leave them out",
                repeats,
                len(prompts),
                f" of {name}" if name else "",
            )
