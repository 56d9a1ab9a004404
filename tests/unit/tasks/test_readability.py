"""Reading grades against textstat itself, a count by hand, and a machine without a network."""

import nltk
import numpy as np
import pytest
from textstat.textstat import textstatistics

from mossa_jax.tasks.readability import GRADES, readability

TEXTS = [
    "The quick brown fox jumps over the lazy dog. It was never seen again in the neighbourhood.",
    "Answer the question. Which country has the larger population, India or Denmark?",
    "Summarize: Parliament yesterday approved extraordinary constitutional amendments!",
]


def test_grades_are_the_means_of_textstats():
    meter = textstatistics()
    meter.set_lang("en-US")
    grades = readability(TEXTS)
    assert tuple(grades) == GRADES
    assert grades["flesch_kincaid"] == pytest.approx(np.mean([meter.flesch_kincaid_grade(text) for text in TEXTS]))
    assert grades["coleman_liau"] == pytest.approx(np.mean([meter.coleman_liau_index(text) for text in TEXTS]))


def test_grades_are_those_of_a_count_by_hand():
    # 12 words in 2 sentences; 13 syllables; 38 letters.
    grades = readability(["The cat sat down on the mat. The dog ran in winter."])
    assert grades["flesch_kincaid"] == pytest.approx(0.39 * 12 / 2 + 11.8 * 13 / 12 - 15.59)
    assert grades["coleman_liau"] == pytest.approx(5.8 * 38 / 12 - 29.6 * 2 / 12 - 15.8)


def test_longer_words_and_sentences_are_harder_to_read():
    easy = readability(["The cat sat on the mat. The dog ran to it."])
    hard = readability(["Constitutional amendments necessitate extraordinary parliamentary majorities everywhere."])
    assert all(hard[name] > easy[name] + 5 for name in GRADES)


def test_no_dictionary_is_downloaded(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a download")

    monkeypatch.setattr(nltk, "download", refuse)
    assert np.isfinite(readability(["An entirely unprecedented circumstance arose."])["flesch_kincaid"])


def test_texts_without_a_word_do_not_count():
    assert readability(["", "  ", *TEXTS]) == readability(TEXTS)
    assert all(np.isnan(value) for value in readability(["", " "]).values())
