"""The words of the page: each that is used is explained, each that is explained is used, and names stay text."""

import re
from pathlib import Path

import pytest

from mossa_jax.report import page as page_room
from mossa_jax.report.page.glossary import WORDS, Glossary, slug

TEMPLATES = "\n".join(path.read_text() for path in Path(page_room.__file__).parent.glob("*.j2"))


def test_every_word_of_the_templates_is_explained():
    used = set(re.findall(r'words\.term\("([^"]+)"', TEMPLATES))
    assert used <= set(WORDS)
    with pytest.raises(KeyError):
        Glossary().term("no such word")


def test_every_word_that_is_explained_is_one_that_the_page_uses():
    marked = set(re.findall(r'words\.term\("([^"]+)"', TEMPLATES))
    searched = {word for word in WORDS if word in Glossary().explain(word) and "definition" in Glossary().explain(word)}
    assert set(WORDS) == marked | searched


def test_meanings_are_plain_sentences():
    for word, meaning in WORDS.items():
        assert meaning.endswith(".") and "  " not in meaning and len(meaning) < 300, word


def test_a_word_is_explained_at_its_first_use_in_a_section():
    words = Glossary()
    first, again = words.term("ceiling"), words.term("ceiling", "ceilings")
    assert WORDS["ceiling"] in first and 'tabindex="0"' in first and again == "ceilings"
    place = re.search(r'aria-describedby="([^"]+)"', first).group(1)
    assert f'role="tooltip" id="{place}"' in first
    words.begin_section()
    anew = words.term("ceiling")
    assert WORDS["ceiling"] in anew and place not in anew
    assert words.used == ["ceiling"]


def test_running_text_is_escaped_and_its_words_are_found_whole():
    words = Glossary()
    text = words.explain("E <b> & the pre-trained model; NEEDLE, E-mail, debiased")
    assert "&lt;b&gt; &amp;" in text and "<b>" not in text
    assert words.used == ["E", "base", "debiased"]
    assert re.sub(r"<[^>]+>", "", words.explain("E and debiased")) == "E and debiased"
    # Signs that show nothing are shown.
    assert "\u202e" not in Glossary().explain("a\u202eb")


def test_the_list_at_the_end_holds_what_was_used_in_alphabetical_order():
    words = Glossary()
    words.explain("The twins of the base and E under CKA")
    assert [word for word, _ in words.meanings()] == ["base", "CKA", "E", "twin"]
    assert slug("held out") == "held-out"
