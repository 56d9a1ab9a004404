"""From text to ids: tokenizer, prompt template, truncation. Everything here is a function of its arguments alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from etils import epath

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files.names import digest

TEMPLATES = ("none", "llama2", "chat")
TRUNCATIONS = ("keep_end", "paper")

_CONTENT = "{content}"
# Some chat templates print the day; a prompt must not change overnight.
_DATE = "26 Jul 2024"


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
        prefix = [] if self.bos is None else [self.bos]
        found = self._ids([self._render(text) for text in texts])
        return [prefix + (ids[1:] if ids[:1] == prefix and prefix else ids) for ids in found]

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of answers, EOS last."""
        return [[*ids, self.eos] for ids in self._ids(texts)]

    def text(self, ids: Sequence[int]) -> str:
        """Decodes an answer: up to EOS, without special tokens, stripped."""
        ids = list(ids)
        ids = ids[: ids.index(self.eos)] if self.eos in ids else ids
        return self.library.decode(ids, skip_special_tokens=True).strip()

    @cached_property
    def record(self) -> dict[str, str]:
        """What a prompt looks like, to be kept with whatever is made from prompts.

        `name`; `text`, the whole prompt with `{content}` for the task's own; `digest`, which tells two templates apart.
        """
        text = self._render(_CONTENT)
        source = self.library.chat_template if self.template == "chat" else None
        return {"name": self.template, "text": text, "digest": digest([text, self.bos is not None, source])}

    @cached_property
    def identity(self) -> str:
        """Changes whenever the ids of some text could: a digest of vocabulary, rules, template, BOS and EOS."""
        fast = getattr(self.library, "backend_tokenizer", None)
        rules = fast.to_str() if fast is not None else sorted(self.library.get_vocab().items())
        return digest([type(self.library).__name__, rules, self.record["digest"], self.bos, self.eos])

    @cached_property
    def head(self) -> tuple[int, ...]:
        """The leading ids that all prompts share: BOS, and what the template puts in front of the content."""
        empty, other = self.prompts(["", "a"])
        same = next((i for i, (x, y) in enumerate(zip(empty, other, strict=False)) if x != y), len(empty))
        return tuple(empty[:same])

    def check_record(self, record: Mapping[str, str] | None, whose: str) -> None:
        """Refuses to ask a model in other words than it was tuned with; `record` None (unknown) passes.

        Raises:
          Refusal: 3 when `record`, from `whose` tuning, is of another template.
        """
        if record is None or record["digest"] == self.record["digest"]:
            return
        same_name = record["name"] == self.template
        what = f"another version of template {self.template!r}" if same_name else f"template {record['name']!r}"
        raise Refusal(
            BAD_INPUT,
            f"{whose} was tuned with {what} ({record['text'][:60]!r}...), not {self.record['text'][:60]!r}...: states "
            f"would not compare; {'restore that version' if same_name else 'ask with the template it was tuned with'}",
        )

    def _render(self, text: str) -> str:
        if self.template == "chat":
            message = [{"role": "user", "content": text}]
            return self.library.apply_chat_template(
                message, tokenize=False, add_generation_prompt=True, date_string=_DATE
            )
        if self.template == "llama2":
            from transformers.models.llama.tokenization_llama import DEFAULT_SYSTEM_PROMPT

            return f"[INST] <<SYS>>\n{DEFAULT_SYSTEM_PROMPT}\n<</SYS>>\n\n{text} [/INST]"
        return text

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self.library(list(texts), add_special_tokens=False, verbose=False).input_ids if texts else []


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


def cut_prompt(tokenizer: Tokenizer, ids: list[int], limit: int, truncation: str) -> list[int]:
    """A prompt's ids, cut to `limit`.

    `paper` cuts on the right, as the authors' code does, and so loses the question that often stands last and the
    template's closing marker. `keep_end` keeps the template's head (BOS, system prompt) and the end with the closing
    marker, and cuts the beginning of the content between them. A head takes at most three quarters of the limit.
    """
    if len(ids) <= limit:
        return ids
    if truncation == "paper":
        return ids[:limit]
    head = min(len(tokenizer.head), 3 * limit // 4)
    return ids[:head] + ids[len(ids) - (limit - head) :]


def cut_pair(
    tokenizer: Tokenizer, prompt: list[int], answer: list[int], limit: int, truncation: str
) -> tuple[list[int], list[int]]:
    """A prompt with its answer, cut to `limit` ids together.

    The answer of a pair that is too long gets its proportional share, at least one id, and loses its right end, as in
    the authors' code; the prompt is cut as `truncation` says (`cut_prompt`).
    """
    total = len(prompt) + len(answer)
    if total <= limit:
        return prompt, answer
    share = max(int(limit * len(answer) / total), 1)
    return cut_prompt(tokenizer, prompt, limit - share, truncation), answer[:share]


def encode_prompts(
    tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int, truncation: str = "keep_end"
) -> tuple[list[list[int]], int]:
    """Encodes prompts alone; returns them with the number that had to be cut."""
    prompts = tokenizer.prompts(texts)
    cut = [cut_prompt(tokenizer, ids, max_tokens, truncation) for ids in prompts]
    return cut, sum(len(ids) > max_tokens for ids in prompts)
