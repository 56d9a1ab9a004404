"""Names that nobody wants and somebody has: control and format characters, other scripts, markup, formulas."""

import random


def _chars(*spans):
    return [chr(code) for span in spans for code in (range(*span) if isinstance(span, tuple) else (span,))]


KINDS = {
    "control": _chars((0x00, 0x20), (0x7F, 0xA0)),
    "format": _chars((0x200B, 0x2010), (0x202A, 0x202F), (0x2060, 0x206A), 0xFEFF, 0xAD, 0x61C, 0x180E, 0xFFF9),
    "cjk": _chars((0x4E00, 0x4F00), (0xAC00, 0xAD00), (0x3040, 0x30FF), 0x20000),
    "emoji": [*_chars((0x1F600, 0x1F650), 0xFE0F, 0x1F1E9), "\U0001f468\u200d\U0001f469"],
    "right to left": _chars((0x5D0, 0x5EA), (0x621, 0x64A)),
    "combining": _chars((0x300, 0x36F), (0xE31, 0xE3B)),
    "markup": ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</title>", "</script>", "&lt;", "{{7*7}}"],
    "more markup": ["{% raw %}", "<b>", "]]>", "-->", "<a href='//x'>", "<!--", "javascript:alert(1)", "\u2028"],
    "formula": ["$\\frac{1}$", "$", "\\", "\\n", "%s", "%", "{}", "\\text{x}", "^_", "#", "&", "~"],
    "spreadsheet": ["=1+1", "+x", "-x", "@x", "\t=x", "\r=x", "'", '"', "`", ","],
    "nothing": _chars(0x378, 0xE000, 0xF8FF, 0x10FFFF, 0xFDD0, 0xFFFF),
    "plain": list("abcXYZ 09_.-"),
    "path": ["_x", "__", "../", "/", "C:\\", "CON"],
    "blank": _chars(0xA0, 0x3000, 0x2003, 0x2028, 0x2029, 0x85, 0x115F, 0x3164, 0x2800, 0xFFA0, 0x34F),
}


def hostile_names(count: int, seed: int = 0) -> list[str]:
    """Draws different names, of each kind in turn and mixed with another, of 1 to 300 pieces.

    Lone surrogates are not among them: no table, and no file name of UTF-8, can hold one.
    """
    draw, kinds = random.Random(seed), list(KINDS.values())
    names: dict[str, None] = {}
    while len(names) < count:
        own, other, mix = kinds[len(names) % len(kinds)], draw.choice(kinds), draw.random()
        pieces = draw.choice([1, 2, 5, 20, 300])
        name = "".join(draw.choice(own if draw.random() < mix else other) for _ in range(pieces))
        names[name if name not in names else f"{name}{len(names)}"] = None
    return list(names)
