"""A tokenizer's own chat template: the text that it makes of one user message, the same on every day.

A template is a program that a stranger wrote. It runs in the sandbox of transformers; here its clock stands still, its
errors become one line, and one that leaves the message out, draws lots or does not end is refused when it is read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import datetime
from types import FrameType
from typing import Any

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.foreign import short

# Some templates print today's date; a prompt must not change overnight.
_TODAY = datetime(2024, 7, 26)
_DATE = "%d %b %Y"
# Lines of a template that may run for one message when it is tried.
_MOST_LINES = 1_000_000
# A template that draws lots gives the same text this often only by a rare chance.
_TRIES = 6
# Jinja compiles a template's lines under this name.
_TEMPLATE_CODE = "<template>"


class ChatTemplate:
    """The chat template of a tokenizer."""

    def __init__(self, library: Any, name: str):
        """Tries the template.

        Args:
          library: the `transformers` tokenizer.
          name: of the model, for refusals.

        Raises:
          Refusal: 3 if there is no template or several without a default; if it raises an error, does not end, leaves
            the message out, or gives another text each time.
        """
        if not library.chat_template:
            raise Refusal(BAD_INPUT, f"{name}: the tokenizer has no chat template; use --template=none or llama2")
        self._library, self._name = library, name
        self._compiled = self._guarded(self._compile)
        texts = {self._guarded(lambda: _bounded(lambda: self._render("a"))) for _ in range(_TRIES)}
        if len(texts) > 1:
            raise self._refusal("gives another text each time")
        if texts == {self.text("b")}:
            raise self._refusal("leaves the user's message out")

    def text(self, message: str) -> str:
        """Returns the prompt that holds a user's message and asks for the answer.

        Raises:
          Refusal: 3 if the template raises an error for it.
        """
        return self._guarded(lambda: self._render(message))

    def _compile(self) -> Any:
        from transformers.utils.chat_template_utils import _compile_jinja_template

        templates = self._library.chat_template
        if isinstance(templates, dict) and "default" not in templates:
            raise self._refusal(f"is one of several ({short(sorted(templates))}), and none of them is called 'default'")
        return _compile_jinja_template(self._library.get_chat_template())

    def _render(self, message: str) -> str:
        # As `apply_chat_template` does, which would let no function of ours through to stop the clock.
        return self._compiled.render(
            **{**self._library.special_tokens_map, "date_string": _TODAY.strftime(_DATE)},
            messages=[{"role": "user", "content": message}],
            tools=None,
            documents=None,
            add_generation_prompt=True,
            strftime_now=_TODAY.strftime,
        )

    def _guarded(self, action: Callable[[], Any]) -> Any:
        """Calls `action`; whatever a template raises becomes a refusal."""
        try:
            return action()
        except Refusal:
            raise
        # Templates raise errors of Jinja, of Python, and those that they ask for themselves.
        except Exception as error:
            raise self._refusal(f"cannot be used ({type(error).__name__}: {short(str(error))})") from None

    def _refusal(self, what: str) -> Refusal:
        return Refusal(BAD_INPUT, f"{self._name}: its chat template {what}; mend it, or use --template=none or llama2")


def _bounded(render: Callable[[], str]) -> str:
    """Renders a template, and raises a RuntimeError if it runs through too many lines."""
    lines = 0

    def count(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        lines += 1
        if lines > _MOST_LINES:
            raise RuntimeError("it does not end")
        return count

    def enter(frame: FrameType, event: str, argument: object) -> Any:
        return count if frame.f_code.co_filename == _TEMPLATE_CODE else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        return render()
    finally:
        sys.settrace(before)
