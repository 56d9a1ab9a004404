"""From text to token ids: tokenizer, prompt template, truncation. Everything is a pure function of its arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from etils import epath

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files.names import digest
from mossa_jax.tokens.chat import ChatTemplate
from mossa_jax.tokens.library import leading_ids, read_library

TEMPLATES = ("none", "llama2", "chat")
TRUNCATIONS = ("keep_end", "paper")

_CONTENT = "{content}"


@dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer with the template of its prompts.

    Attributes:
      library: the `transformers` tokenizer.
      template: `none` (the text as it is), `llama2` (instruction markers and the default system prompt, as in the
        authors' runs: 133 ids before the content) or `chat` (the tokenizer's own chat template).
      bos: id at the head of every prompt, exactly once, whether or not the tokenizer adds it too; None: no such id. A
        chat template says itself what stands in front: there it is not added.
      end: id at the end of every answer; None if the model names none, and has no answers.
      stops: ids at which a generated answer ends.
      rows: rows of the model's embedding, above all ids; None: not known, not checked.
    """

    library: Any
    template: str
    bos: int | None
    end: int | None
    stops: tuple[int, ...] = ()
    rows: int | None = None

    @property
    def eos(self) -> int:
        """The id at the end of every answer.

        Raises:
          Refusal: 3 if the model names none.
        """
        if self.end is None:
            raise Refusal(
                BAD_INPUT, f"{self.name} names no EOS token, in config.json or in the tokenizer; add eos_token_id"
            )
        return self.end

    @property
    def name(self) -> str:
        """The folder that it was read from."""
        return str(self.library.name_or_path)

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes whole prompts, BOS first.

        Args:
          texts: the prompts' content, before the template.

        Raises:
          Refusal: 3 for an id that the model's embedding does not have, and for a chat template that cannot be used.
        """
        prompts = self._ids([self._render(text) for text in texts])
        if self.bos is not None and self.template != "chat":
            bos = [self.bos]
            # A text may begin with BOS already.
            prompts = [ids if ids[:1] == bos else bos + ids for ids in prompts]
        return self._known(prompts)

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes answers, EOS last; raises what `prompts` raises, and `eos`."""
        eos = self.eos
        return self._known([[*ids, eos] for ids in self._ids(texts)])

    def text(self, ids: Sequence[int]) -> str:
        """Decodes an answer up to the id that ends it, without special tokens and surrounding white space."""
        stops = {self.end, *self.stops}
        end = next((place for place, each in enumerate(ids) if each in stops), len(ids))
        return self.library.decode(list(ids[:end]), skip_special_tokens=True).strip()

    def prompt_text(self, ids: Sequence[int]) -> str:
        """Decodes a prompt as a model reads it: after cutting, in the template, with its special tokens."""
        return self.library.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def same_ids(self, other: Any, texts: Sequence[str]) -> int | None:
        """Returns the number of the first of these prompts that another tokenizer reads as other ids; None if none.

        Args:
          other: a `transformers` tokenizer.
          texts: as in `prompts`; both sides read them in this tokenizer's template.
        """
        rendered = [self._render(text) for text in texts]
        both = zip(self._ids(rendered), _encode(other, rendered), strict=True)
        return next((number for number, (own, others) in enumerate(both) if own != others), None)

    @cached_property
    def record(self) -> dict[str, str]:
        """A record of the template, kept beside every model that is tuned with it.

        `name`; `text`, the whole prompt with `{content}` in place of the task's text; `digest`, which differs between
        templates.
        """
        text = self._render(_CONTENT)
        source = self.library.chat_template if self.template == "chat" else None
        return {"name": self.template, "text": text, "digest": digest([text, self._begins_with_bos, source])}

    @cached_property
    def identity(self) -> str:
        """A digest of vocabulary, rules, template, BOS and EOS: it changes whenever the ids of some text could."""
        fast = getattr(self.library, "backend_tokenizer", None)
        rules = fast.to_str() if fast is not None else sorted(self.library.get_vocab().items())
        return digest([type(self.library).__name__, rules, self.record["digest"], self.bos, self.end])

    @cached_property
    def _begins_with_bos(self) -> bool:
        """Whether prompts begin with BOS, be it put there here or by a chat template."""
        return self.bos is not None and self.prompts([_CONTENT])[0][:1] == [self.bos]

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
            return self._chat.text(text)
        if self.template == "llama2":
            from transformers.models.llama.tokenization_llama import DEFAULT_SYSTEM_PROMPT

            return f"[INST] <<SYS>>\n{DEFAULT_SYSTEM_PROMPT}\n<</SYS>>\n\n{text} [/INST]"
        return text

    @cached_property
    def _chat(self) -> ChatTemplate:
        return ChatTemplate(self.library, self.name)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes texts as they are."""
        return _encode(self.library, texts)

    def _known(self, lists: list[list[int]]) -> list[list[int]]:
        """Returns lists of ids; refuses an id that the model's embedding does not have."""
        # jax would read such an id as the last row, without a word.
        largest = max((max(ids, default=0) for ids in lists), default=0)
        if self.rows is not None and largest >= self.rows:
            token = self.library.convert_ids_to_tokens(largest)
            raise Refusal(
                BAD_INPUT,
                f"{self.name}: token {token!r} has id {largest:,}, but the model's embedding has {self.rows:,} rows "
                "(vocab_size): the tokenizer is of another model, or the model was not resized for its new tokens; "
                "use the tokenizer that belongs to it",
            )
        return lists


def _encode(library: Any, texts: Sequence[str]) -> list[list[int]]:
    """Encodes texts as they are, without ids in front or behind."""
    return library(list(texts), add_special_tokens=False, verbose=False).input_ids if texts else []


def load_tokenizer(
    folder: epath.PathLike, template: str, bos: int | None, eos: Sequence[int], rows: int | None = None
) -> Tokenizer:
    """Reads the tokenizer of a model folder.

    BOS is what the tokenizer itself puts in front of a text (`leading_ids`). Answers are trained to end in the
    tokenizer's EOS where the model's generation stops there, else in the first id at which it stops.

    Args:
      folder: Hugging Face model folder.
      template: one of `TEMPLATES`.
      bos: the model config's own BOS id.
      eos: ids at which the model's generation stops, from its generation_config.json or config.json.
      rows: rows of the model's embedding; ids beyond them are refused when a text has them.

    Raises:
      Refusal: 3 if there is no usable tokenizer, or template `chat` without a chat template that can be used.
    """
    library = read_library(folder)
    leading = leading_ids(library, folder, bos)
    own = library.eos_token_id
    end = own if own in eos or not eos else eos[0]
    tokenizer = Tokenizer(library, template, leading[0] if leading else None, end, tuple(eos), rows)
    if template == "chat":
        # It may stand in the template although the tokenizer puts none in front.
        tokenizer = replace(tokenizer, bos=library.bos_token_id)
        # A template that cannot be used is refused here, and not at the first prompt.
        _ = tokenizer.record
    return tokenizer


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
