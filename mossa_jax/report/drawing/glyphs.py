"""Names in static figures: every character is drawn as something that can be seen, whatever fonts there are.

A font has glyphs for some characters only, and a name may have any. The page leaves that to the browser; a figure has
to find a font among those that are installed, or else spells the character out, as `[U+4E00]`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from mossa_jax.foreign import escaped, is_hidden, visible
from mossa_jax.log import log

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

FAMILY = "DejaVu Sans"
"""The font of all figures; it comes with matplotlib."""

LONGEST = 140
"""Characters of a line of a figure, unless there is no room for so many."""

_LINE_END = 0.25  # share of them that the end of a longer line keeps: what stands behind a name is not part of it
_LISTED = 8  # characters that the log lists
# Fonts that are good for one purpose alone, or that draw a box for everything.
_UNSUITABLE = ("Last Resort", "LastResort", "STIX", "cm", "DejaVu")
_REGULAR = (400, "regular", "normal", "book")  # weights


def make_drawable(figure: Figure, longest: int = LONGEST) -> set[str]:
    """Replaces what no font can draw in all texts of a figure, sets the fonts of the rest, and cuts long lines.

    Args:
      figure: a finished figure, before it is laid out.
      longest: characters of a line, beyond which its middle is left out.

    Returns:
      The characters that no font has.
    """
    from matplotlib.text import Text

    missing: set[str] = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            missing |= _make_ticks_drawable(axis, longest)
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        content = text.get_text()
        if content.isascii() and content.isprintable() and len(content) <= longest:
            continue
        fonts, lacking = _fonts(_unusual([content]))
        missing |= lacking
        text.set_text(_drawable(content, lacking, None if text.get_wrap() else longest))
        if fonts:
            text.set_fontfamily([FAMILY, *fonts])
            # Most of them have no bold form, which matplotlib would complain about.
            text.set_fontweight("normal")
    return missing


def undrawable(texts: Iterable[str]) -> list[str]:
    """Returns the characters of these texts that can be seen but that no font here can draw, in order."""
    unusual = _unusual(texts)
    return sorted(_fonts(unusual)[1]) if unusual else []


def say_missing(missing: set[str]) -> None:
    """Says in one line which characters no font has; nothing if there are none."""
    if missing:
        log.info("figures: %s", missing_sentence(sorted(missing)))


def missing_sentence(missing: list[str]) -> str:
    """Says which characters no font has, and what is drawn instead."""
    first = ", ".join(f"{char} U+{ord(char):04X}" for char in missing[:_LISTED])
    more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
    return (
        f"no font here has {first}{more}, so static figures spell them out; install one that does, such as Noto Sans "
        "CJK or Noto Emoji, and run launch.report"
    )


def _make_ticks_drawable(axis: Axis, longest: int) -> frozenset[str]:
    """Does for labels at fixed places what `make_drawable` does for other texts: an axis writes them anew each time."""
    from matplotlib.ticker import FixedLocator

    locator = axis.get_major_locator()
    if not isinstance(locator, FixedLocator):
        return frozenset()
    labels = axis.get_major_formatter().format_ticks([float(place) for place in locator()])
    _, lacking = _fonts(_unusual(labels))
    drawable = [_drawable(label, lacking, longest) for label in labels]
    if drawable != labels:
        axis.set_ticklabels(drawable)
    return lacking


def _drawable(text: str, lacking: frozenset[str], longest: int | None) -> str:
    """Returns a text without characters that show nothing or that no font has.

    Args:
      text: to draw; its line ends are those of the figure, since `shorten` has replaced the ones of names.
      lacking: characters that no font has.
      longest: characters of a line, beyond which its middle is left out; None for any number.
    """
    lines = []
    for line in text.split("\n"):
        pieces, run = [], ""
        for char in [*visible(line), ""]:
            if char and char in lacking:
                run += char
                continue
            pieces += [escaped(run)] if run else []
            pieces.append(char)
            run = ""
        line = "".join(pieces)
        if longest is not None and len(line) > longest:
            end = int(longest * _LINE_END)
            line = f"{line[: longest - end - 1]}…{line[-end:]}"
        lines.append(line)
    return "\n".join(lines)


def _unusual(texts: Iterable[str]) -> frozenset[str]:
    """Returns the characters of texts that can be seen and that the figures' own font lacks."""
    own = _own_characters()
    return frozenset(char for text in texts for char in set(text) if ord(char) not in own and not is_hidden(char))


@lru_cache(maxsize=1)
def _own_characters() -> frozenset[int]:
    """Returns what the figures' own font can draw, also in its bold form: titles are bold."""
    from matplotlib.font_manager import FontProperties, findfont

    regular, bold = (_characters(findfont(FontProperties(family=FAMILY, weight=weight))) for weight in (400, 700))
    return regular & bold


def _characters(path: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(path).get_charmap())


@lru_cache(maxsize=4096)
def _fonts(wanted: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Finds installed fonts that together have the wanted characters, as many as possible.

    Returns:
      Names of the families, and the characters that none has.
    """
    families = []
    lacking = wanted
    for family, characters in _installed() if wanted else ():
        has = {char for char in lacking if ord(char) in characters}
        if has:
            families.append(family)
            lacking = lacking - has
        if not lacking:
            break
    return tuple(families), lacking


@lru_cache(maxsize=1)
def _installed() -> tuple[tuple[str, frozenset[int]], ...]:
    """Returns the upright fonts that are installed, with their characters; those with the most come first.

    Colour fonts, which matplotlib cannot draw, are left out.
    """
    from matplotlib.font_manager import fontManager

    fonts: dict[str, frozenset[int]] = {}
    for entry in fontManager.ttflist:
        is_upright = entry.style == "normal" and entry.weight in _REGULAR
        if not is_upright or entry.name.startswith(_UNSUITABLE) or entry.name in fonts:
            continue
        try:
            fonts[entry.name] = _characters(entry.fname)
        except (OSError, RuntimeError):  # deleted since matplotlib looked, or not scalable
            continue
    return tuple(sorted(fonts.items(), key=lambda font: (-len(font[1]), font[0])))
