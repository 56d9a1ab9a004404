"""The words of the page in plain English: shown where a word is used, and all together at the end of the page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mossa_jax.findings.claims import MARGIN
from mossa_jax.foreign import visible

if TYPE_CHECKING:
    from markupsafe import Markup

WORDS: Mapping[str, str] = {
    "CKA": (
        "Centred kernel alignment: how alike the states of two models vary over the same prompts. 1 means that they "
        "vary alike up to rotation and scale, 0 that they have nothing in common."
    ),
    "specialist": (
        "The base model tuned on one task alone (the paper's control model C_t). Its states show what a model that "
        "knows this task looks like inside."
    ),
    "E": "The experimental model: the base model tuned on all tasks of the mixture at once.",
    "base": "The pre-trained model before any tuning. All other models are tuned from it.",
    "change": (
        "d, the similarity of E with a task's specialist minus that of the base with the same specialist. Above "
        "zero, tuning on all tasks has brought this layer nearer to the specialist."
    ),
    "ceiling": (
        "How similar two seeds of one specialist are: the highest similarity that another model can be expected to "
        "reach."
    ),
    "competent": (
        "A specialist is competent if it is shown to use its prompts. One that learned nothing stays near the base "
        "for that reason alone, so findings rest on tasks with a competent specialist."
    ),
    "information": (
        "How much the loss of the answer falls, in nats per prompt, when a model sees the prompt that belongs to it "
        "instead of another prompt. 0 for a model that ignores its prompts."
    ),
    "debiased": (
        "An estimator of CKA that does not depend on the number of prompts. It can fall below zero; all findings "
        "rest on it."
    ),
    "biased": (
        "The estimator of CKA that the paper uses. It is too high where there are few prompts for the width of the "
        "states."
    ),
    "pooling": "Which states of a prompt are compared: that of its last token, their mean, or all of them.",
    "units": (
        "What counts as independent: whole clusters of tasks, since tasks of one cluster share data and skills; "
        "tasks where a suite has no clusters."
    ),
    "mixture": "The tasks that E was tuned on.",
    "held out": "Not in the mixture: E has never seen the task, but the task has a specialist of its own.",
    "transition": (
        "The layers in which the change rises from one level to another. The layers before it are called shared, "
        "those behind it refinement."
    ),
    "upper half": "The second half of the layers, fixed before any result was seen.",
    "equivalence margin": (
        f"The largest change that counts as none, {MARGIN} CKA. A test against it can show that nothing changes, which "
        "a test against zero cannot."
    ),
    "interval": (
        "A 95 % interval: made in this way, 19 of 20 such intervals contain the true value. Those of means are t "
        "intervals over units."
    ),
    "p": "How often chance alone would give a result at least as far from zero.",
    "corrected": (
        "Made larger for the number of claims that are tested (Holm's method), so that testing many claims does not "
        "make one of them true by chance."
    ),
    "q": (
        "A p value corrected for the number of cells: among all cells with q below 0.05, about 5 % are false alarms."
    ),
    "twin": (
        "A model tuned on a task's prompts with the answers permuted: it knows the format and the answers, but not "
        "which belongs to which prompt."
    ),
    "exploratory": "A claim of less weight. Primary claims are tested first, at 5 %; exploratory ones at 2.5 %.",
    "undefined": "A cell without a value, since the states do not vary there or too few prompts are left.",
}
"""Word -> what it means."""

_FORMS = {
    "specialist": ("specialists",),
    "change": ("mean change",),
    "units": ("unit",),
    "information": (),
    "twin": ("twins",),
    "interval": ("intervals",),
    "base": ("base", "pre-trained model"),
}
"""Word -> its other forms in running text. A text is searched for all words but those of everyday English."""

_NOT_SEARCHED = ("change", "p", "q", "corrected", "information", "pooling", "exploratory", "undefined")
"""Words that mean something else in other sentences; templates mark them where they are meant."""

_PATTERN = re.compile(
    r"(?<![\w-])(?:"
    + "|".join(
        f"(?P<w{number}>{'|'.join(re.escape(form) for form in sorted((word, *_FORMS.get(word, ())), key=len)[::-1])})"
        for number, word in enumerate(WORDS)
        if word not in _NOT_SEARCHED
    )
    + r")(?![\w-])"
)


class Glossary:
    """The words of one page as it is written: each is explained where a section uses it first.

    Attributes:
      used: words that the page uses, in the order of their first use.
    """

    def __init__(self) -> None:
        """Begins a page."""
        self.used: list[str] = []
        self._in_section: set[str] = set()
        self._count = 0

    def begin_section(self) -> str:
        """Begins a section, in which each word is explained anew; returns nothing to show."""
        self._in_section.clear()
        return ""

    def term(self, word: str, text: str = "") -> Markup:
        """Returns a word, with its meaning on hover and on focus where it is the first one of its section.

        Args:
          word: a key of `WORDS`.
          text: how it is written here; the word itself, if empty.
        """
        from markupsafe import Markup, escape

        shown = escape(visible(text or word))
        if word not in self.used:
            # A word that nobody explained is a fault of the page's own.
            _ = WORDS[word]
            self.used.append(word)
        if word in self._in_section:
            return shown
        self._in_section.add(word)
        self._count += 1
        place = f"term-{slug(word)}-{self._count}"
        return Markup(
            '<span class="term" tabindex="0" aria-describedby="{place}">{shown}'
            '<span class="definition" role="tooltip" id="{place}">{meaning}</span></span>'
        ).format(place=place, shown=shown, meaning=WORDS[word])

    def explain(self, text: str) -> Markup:
        """Returns a text, escaped, in which the words that a section has not yet explained are explained."""
        from markupsafe import Markup, escape

        parts: list[Markup] = []
        end = 0
        for match in _PATTERN.finditer(text):
            word = list(WORDS)[int(str(match.lastgroup).removeprefix("w"))]
            parts += [escape(visible(text[end : match.start()])), self.term(word, match.group())]
            end = match.end()
        return Markup("").join([*parts, escape(visible(text[end:]))])

    def meanings(self) -> list[tuple[str, str]]:
        """Returns the words that were used with their meanings, in alphabetical order."""
        return [(word, WORDS[word]) for word in sorted(self.used, key=str.lower)]


def slug(word: str) -> str:
    """Returns a word as part of an anchor."""
    return word.lower().replace(" ", "-")
