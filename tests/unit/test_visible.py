"""Characters that show nothing become signs; all others stay."""

import random
import sys
import unicodedata

from mossa_jax.foreign import escaped, is_hidden, visible


def test_hidden_characters_become_signs_and_others_stay():
    assert visible("a\u200bb\nc\td\x00\x7f\ufeff\u202e") == "a[U+200B]b↵c⇥d[U+0000][U+007F][U+FEFF][U+202E]"
    assert visible("\ud800 \udfff\u00a0\u3000\ufe0f") == "[U+D800] [U+DFFF][U+00A0][U+3000][U+FE0F]"
    plain = "plain; 日本 naïve e\u0301 עברית 😀 $x$ \\ <b>"
    assert visible(plain) == plain


def test_no_character_of_unicode_stays_hidden():
    for code in [*range(0x12000), *range(0xE0000, 0xE0200), sys.maxunicode]:
        char = chr(code)
        category = unicodedata.category(char)
        # Other, separators beside the space: what has no shape by its category.
        if category[0] in "CZ" and char != " ":
            assert is_hidden(char), hex(code)
    assert visible("".join(map(chr, range(0x3000)))).isprintable()


def test_different_names_stay_different():
    draw = random.Random(0)
    names = {"".join(draw.choices("ab\x00\u200b\n\t日", k=draw.randrange(8))) for _ in range(3000)}
    assert len({visible(name) for name in names}) == len(names) > 1000


def test_a_run_of_characters_is_spelt_out_up_to_the_fourth():
    assert escaped("日") == "[U+65E5]" and escaped("日本") == "[U+65E5 U+672C]"
    assert escaped("日" * 6) == "[U+65E5 U+65E5 U+65E5 U+65E5 +2]"
