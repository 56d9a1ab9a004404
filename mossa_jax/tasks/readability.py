"""How hard a task's prompts are to read: grade levels of English text by textstat."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

GRADES = ("flesch_kincaid", "coleman_liau")

# With "en" textstat looks syllables up in a dictionary that NLTK downloads at run time. Under this name of the same
# language it counts them by the hyphenation patterns that come with it, which needs no network.
_ENGLISH = "en-US"


def readability(texts: Sequence[str]) -> dict[str, float]:
    """Computes the mean Flesch-Kincaid grade and the mean Coleman-Liau index of texts.

    Both are school grades: the higher, the harder to read. Flesch-Kincaid counts words per sentence and syllables per
    word, Coleman-Liau letters and sentences per word. Texts without a word count for neither.

    Args:
      texts: English texts; other languages get numbers without a meaning.

    Returns:
      One value per name of `GRADES`; NaN without any text that has a word.

    References:
      Kincaid et al. 1975, "Derivation of new readability formulas"; Coleman and Liau 1975, "A computer readability
      formula designed for machine scoring".
    """
    meter = _meter()
    worded = [text for text in texts if meter.lexicon_count(text)]
    if not worded:
        return dict.fromkeys(GRADES, float("nan"))
    return {
        "flesch_kincaid": float(np.mean([meter.flesch_kincaid_grade(text) for text in worded])),
        "coleman_liau": float(np.mean([meter.coleman_liau_index(text) for text in worded])),
    }


@functools.cache
def _meter() -> Any:
    from textstat.textstat import textstatistics

    meter = textstatistics()
    meter.set_lang(_ENGLISH)
    return meter
