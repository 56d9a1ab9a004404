"""From text to ids: tokenizer, prompt template, truncation. Everything here is a function of its arguments alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from mossa_jax.rundir import BAD_INPUT, Refusal
from mossa_jax.tasks.suite import Example

TEMPLATES = ("none", "llama2", "chat")
TRUNCATIONS = ("keep_end", "paper")


@dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer with the prompt template in which the model is asked.

    Attributes:
      library: the `transformers` tokenizer.
      template: `none` (the text as it is), `llama2` (instruction markers and the default system prompt, as in the
        authors' runs: 133 ids before the content) or `chat` (the tokenizer's own chat template).
      bos: put in front of every prompt exactly once, whether or not the tokenizer does so by itself; None: no.
      eos: put behind every answer.
    """

    library: Any
    template: str
    bos: int | None
    eos: int

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of whole prompts, BOS first."""
        if self.template == "chat":
            rendered = [self._chat(text) for text in texts]
        elif self.template == "llama2":
            from transformers.models.llama.tokenization_llama import DEFAULT_SYSTEM_PROMPT

            head = f"[INST] <<SYS>>\n{DEFAULT_SYSTEM_PROMPT}\n<</SYS>>\n\n"
            rendered = [f"{head}{text} [/INST]" for text in texts]
        else:
            rendered = list(texts)
        prefix = [] if self.bos is None else [self.bos]
        return [prefix + (ids[1:] if ids[:1] == prefix and prefix else ids) for ids in self._ids(rendered)]

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of answers, EOS last."""
        return [[*ids, self.eos] for ids in self._ids(texts)]

    def text(self, ids: Sequence[int]) -> str:
        """Decodes an answer: up to EOS, without special tokens, stripped."""
        ids = list(ids)
        ids = ids[: ids.index(self.eos)] if self.eos in ids else ids
        return self.library.decode(ids, skip_special_tokens=True).strip()

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self.library(list(texts), add_special_tokens=False).input_ids if texts else []

    def _chat(self, text: str) -> str:
        message = [{"role": "user", "content": text}]
        return self.library.apply_chat_template(message, tokenize=False, add_generation_prompt=True)


def load_tokenizer(folder: epath.PathLike, template: str, bos: int | None, eos: Sequence[int]) -> Tokenizer:
    """Reads the tokenizer of a model folder.

    Args:
      folder: Hugging Face model folder.
      template: one of `TEMPLATES`.
      bos, eos: the model config's own ids; they win over the tokenizer's. A tokenizer without any BOS token belongs
        to a model that was trained without one (Qwen), whatever its config.json says: then there is none.

    Raises:
      Refusal: 3 when there is no usable tokenizer, no EOS, or template `chat` without a chat template.
    """
    from transformers import AutoTokenizer

    try:
        library = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds for one cause: no usable tokenizer files
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Refusal(BAD_INPUT, f"{folder} has no usable tokenizer ({first}); add its tokenizer.json") from None
    bos = library.bos_token_id if bos is None or library.bos_token_id is None else bos
    end = eos[0] if eos else library.eos_token_id
    if end is None:
        raise Refusal(BAD_INPUT, f"{folder} names no EOS token, in config.json or in the tokenizer; add eos_token_id")
    if template == "chat" and not library.chat_template:
        raise Refusal(BAD_INPUT, f"{folder}: the tokenizer has no chat template; use --template=none or llama2")
    return Tokenizer(library, template, bos, end)


@dataclass(frozen=True)
class Encoded:
    """One training example: prompt and answer ids (EOS last)."""

    prompt: list[int]
    answer: list[int]


def cut_prompt(tokenizer: Tokenizer, ids: list[int], limit: int, truncation: str) -> list[int]:
    """A prompt's ids, cut to `limit`.

    `paper` cuts on the right, as the authors' code does, and so loses the question that often stands last and the
    template's closing marker. `keep_end` keeps the template's head (BOS, system prompt) and the end, and cuts the
    beginning of what is between.
    """
    if len(ids) <= limit:
        return ids
    if truncation == "paper":
        return ids[:limit]
    head = 0
    for ours, empty in zip(ids, tokenizer.prompts([""])[0], strict=False):
        if ours != empty:
            break
        head += 1
    head = min(head, limit // 2)
    return ids[:head] + ids[len(ids) - (limit - head) :]


def encode_examples(
    tokenizer: Tokenizer, examples: Sequence[Example], max_tokens: int, truncation: str = "keep_end"
) -> tuple[list[Encoded], int]:
    """Encodes rows for tuning; returns them with the number of rows that had to be cut.

    Of `max_tokens` the answer of a pair that is too long gets its proportional share, at least one id, and loses its
    right end, as in the authors' code; the prompt is cut as `truncation` says (`cut_prompt`).
    """
    prompts = tokenizer.prompts([example.inputs for example in examples])
    answers = tokenizer.answers([example.targets for example in examples])
    encoded, cut = [], 0
    for prompt, answer in zip(prompts, answers, strict=True):
        total = len(prompt) + len(answer)
        if total > max_tokens:
            cut += 1
            share = max(int(max_tokens * len(answer) / total), 1)
            prompt, answer = cut_prompt(tokenizer, prompt, max_tokens - share, truncation), answer[:share]
        encoded.append(Encoded(prompt, answer))
    return encoded, cut


def encode_prompts(
    tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int, truncation: str = "keep_end"
) -> tuple[list[list[int]], int]:
    """Encodes prompts alone; returns them with the number that had to be cut."""
    prompts = tokenizer.prompts(texts)
    cut = [cut_prompt(tokenizer, ids, max_tokens, truncation) for ids in prompts]
    return cut, sum(len(ids) > max_tokens for ids in prompts)
