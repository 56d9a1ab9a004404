"""From text to token ids: tokenizer, prompt template, truncation. Everything is a pure function of its arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from etils import epath

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files.names import digest
from mossa_jax.log import without_advice

TEMPLATES = ("none", "llama2", "chat")
TRUNCATIONS = ("keep_end", "paper")

_CONTENT = "{content}"
# Some chat templates print today's date; a prompt must not change overnight.
_DATE = "26 Jul 2024"


@dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer with the template of its prompts.

    Attributes:
      library: the `transformers` tokenizer.
      template: `none` (the text as it is), `llama2` (instruction markers and the default system prompt, as in the
        authors' runs: 133 ids before the content) or `chat` (the tokenizer's own chat template).
      bos: id at the head of every prompt, exactly once, whether or not the tokenizer adds it too; None: no such id.
      eos: id at the end of every answer.
    """

    library: Any
    template: str
    bos: int | None
    eos: int

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes whole prompts, BOS first.

        Args:
          texts: the prompts' content, before the template.
        """
        bos = [] if self.bos is None else [self.bos]
        rendered = self._ids([self._render(text) for text in texts])
        # A template may have put a BOS in front already.
        return [bos + (ids[1:] if bos and ids[:1] == bos else ids) for ids in rendered]

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes answers, EOS last."""
        return [[*ids, self.eos] for ids in self._ids(texts)]

    def text(self, ids: Sequence[int]) -> str:
        """Decodes an answer up to its EOS, without special tokens and surrounding white space."""
        ids = list(ids)
        ids = ids[: ids.index(self.eos)] if self.eos in ids else ids
        return self.library.decode(ids, skip_special_tokens=True).strip()

    @cached_property
    def record(self) -> dict[str, str]:
        """A record of the template, kept beside every model that is tuned with it.

        `name`; `text`, the whole prompt with `{content}` in place of the task's text; `digest`, which differs between
        templates.
        """
        text = self._render(_CONTENT)
        source = self.library.chat_template if self.template == "chat" else None
        return {"name": self.template, "text": text, "digest": digest([text, self.bos is not None, source])}

    @cached_property
    def identity(self) -> str:
        """A digest of vocabulary, rules, template, BOS and EOS: it changes whenever the ids of some text could."""
        fast = getattr(self.library, "backend_tokenizer", None)
        rules = fast.to_str() if fast is not None else sorted(self.library.get_vocab().items())
        return digest([type(self.library).__name__, rules, self.record["digest"], self.bos, self.eos])

    @cached_property
    def head(self) -> tuple[int, ...]:
        """The leading ids that all prompts share: BOS, and the template's ids before the content."""
        empty, letter = self.prompts(["", "a"])
        length = next((i for i, (x, y) in enumerate(zip(empty, letter, strict=False)) if x != y), len(empty))
        return tuple(empty[:length])

    def check_record(self, record: Mapping[str, str] | None, owner: str) -> None:
        """Checks that a model is prompted with the template that it was tuned with.

        Args:
          record: the template's record from its tuning; None (unknown) passes.
          owner: whose record it is, for the message.

        Raises:
          Refusal: 3 if the record is of another template.
        """
        if record is None or record["digest"] == self.record["digest"]:
            return
        same_name = record["name"] == self.template
        other = f"another version of template {self.template!r}" if same_name else f"template {record['name']!r}"
        remedy = "restore that version" if same_name else "use the template it was tuned with"
        raise Refusal(
            BAD_INPUT,
            f"{owner} was tuned with {other} ({record['text'][:60]!r}...), not {self.record['text'][:60]!r}...: states "
            f"would not be comparable; {remedy}",
        )

    def _render(self, text: str) -> str:
        """Puts a text into the template."""
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
        """Encodes texts as they are."""
        return self.library(list(texts), add_special_tokens=False, verbose=False).input_ids if texts else []


def load_tokenizer(folder: epath.PathLike, template: str, bos: int | None, eos: Sequence[int]) -> Tokenizer:
    """Reads the tokenizer of a model folder.

    Args:
      folder: Hugging Face model folder.
      template: one of `TEMPLATES`.
      bos: the model config's own BOS id, which takes precedence over the tokenizer's. A tokenizer without any BOS
        token belongs to a model that was trained without one (Qwen), whatever its config.json says: then none is used.
      eos: the model config's own EOS ids, which take precedence over the tokenizer's; the first one ends answers.

    Raises:
      Refusal: 3 if there is no usable tokenizer, no EOS, or template `chat` without a chat template.
    """
    with without_advice():
        from transformers import AutoTokenizer

    try:
        library = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    # transformers raises many kinds of errors for one cause: no usable tokenizer files.
    except Exception as error:
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
    """Cuts a prompt to `limit` ids.

    Args:
      tokenizer: of the prompt, for its template's head.
      ids: the whole prompt.
      limit: ids that it may have.
      truncation: `paper` cuts on the right, as the authors' code does, and so loses the question that often stands
        last, and the template's closing marker. `keep_end` keeps the template's head (BOS, system prompt) and the end
        with the closing marker, and cuts the beginning of the content between them; the head takes at most three
        quarters of the limit.
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
    """Cuts a prompt and its answer to `limit` ids together.

    In a pair that is too long, the answer gets its proportional share of the limit, at least one id, and loses its
    right end, as in the authors' code. The prompt is cut as in `cut_prompt`.
    """
    total = len(prompt) + len(answer)
    if total <= limit:
        return prompt, answer
    share = max(int(limit * len(answer) / total), 1)
    return cut_prompt(tokenizer, prompt, limit - share, truncation), answer[:share]


def encode_prompts(
    tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int, truncation: str = "keep_end"
) -> tuple[list[list[int]], int]:
    """Encodes prompts without answers.

    Returns:
      The ids of each, at most `max_tokens`, and how many prompts were cut.
    """
    whole = tokenizer.prompts(texts)
    prompts = [cut_prompt(tokenizer, ids, max_tokens, truncation) for ids in whole]
    return prompts, sum(len(ids) > max_tokens for ids in whole)
