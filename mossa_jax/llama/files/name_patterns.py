"""Regular expressions that others wrote, matched against names of modules in bounded time.

Python's own matcher tries one way after another, and takes years for `(a+)+$`. Here a part of a pattern maps the set of
places that are reached before it to the set reached behind it, so that no place is tried twice. Python's own parser
reads the pattern, and whether a name matches is the same; what needs to know how a name matched (back-references,
atomic groups, conditions) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from re import _constants as op  # type: ignore[attr-defined]  # the same modules in Python 3.11 to 3.13
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from mossa_jax.foreign import short

LONGEST = 4000
"""Characters that a pattern may have."""
STEPS = 2000
"""Parts of patterns that are tried at places, per name; patterns that people write take some hundreds."""

# A pattern without repetitions and alternatives has one way to match, for which Python's own matcher is quick.
_PLAIN = re.compile(r"[\w.-]*")

_Places = frozenset[int]
_CATEGORIES: dict[Any, Callable[[str], bool]] = {
    op.CATEGORY_DIGIT: str.isdecimal,
    op.CATEGORY_NOT_DIGIT: lambda sign: not sign.isdecimal(),
    op.CATEGORY_SPACE: str.isspace,
    op.CATEGORY_NOT_SPACE: lambda sign: not sign.isspace(),
    op.CATEGORY_WORD: lambda sign: sign.isalnum() or sign == "_",
    op.CATEGORY_NOT_WORD: lambda sign: not (sign.isalnum() or sign == "_"),
}


class PatternError(ValueError):
    """A pattern that is no regular expression, or one that is not matched here; the message says which and why."""


class Budget:
    """Steps that patterns may still take over names; several patterns can share one.

    Attributes:
      left: the steps.
    """

    def __init__(self, names: int):
        """Allows `STEPS` for each of so many names."""
        self.left = STEPS * names


class NamePattern:
    """A pattern that names are compared with."""

    def __init__(self, pattern: str, budget: Budget, before: str = "", behind: str = ""):
        """Reads the pattern.

        Args:
          pattern: in Python's syntax, of at most `LONGEST` characters.
          budget: of the steps that it may take.
          before, behind: what the library that the pattern is for writes around it.

        Raises:
          PatternError: the pattern is no regular expression, or is too long.
        """
        self._text, self._budget = pattern, budget
        whole = f"{before}{pattern}{behind}"
        self._plain = re.compile(whole) if _PLAIN.fullmatch(pattern) and len(pattern) <= LONGEST else None
        self._parsed = None if self._plain else _parse(whole)

    def matches(self, name: str, *, is_whole: bool = True) -> bool:
        """Tells whether the pattern matches a name, as `re.fullmatch` or `re.match` would.

        Args:
          name: not empty, without line breaks.
          is_whole: whether the pattern has to match to the end of the name.

        Raises:
          PatternError: the pattern is too intricate, or needs what is not known here.
        """
        if self._plain:
            return bool(self._plain.fullmatch(name) if is_whole else self._plain.match(name))
        try:
            ends = _Matcher(name, self._budget).ends(self._parsed)
        except (RecursionError, _TooManyStepsError):
            raise PatternError(f"{short(self._text)}, which is too intricate; write a plainer expression") from None
        except _UnknownError as error:
            raise PatternError(f"{short(self._text)} with {error}, which is not supported here") from None
        return len(name) in ends if is_whole else bool(ends)


@lru_cache(maxsize=256)
def _parse(pattern: str) -> Any:
    if len(pattern) > LONGEST:
        raise PatternError(f"a pattern of {len(pattern):,} characters; {LONGEST:,} are the most")
    try:
        return _parser.parse(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise PatternError(f"{short(pattern)}, no valid regular expression ({reason})") from None


class _Matcher:
    """Matches patterns against one name."""

    def __init__(self, name: str, budget: Budget):
        self._name, self._budget = name, budget
        self._reached: dict[tuple[int, int, int, bool], _Places] = {}

    def ends(self, parsed: Any) -> _Places:
        """Returns the places at which the pattern can end when it begins at the start of the name."""
        return self._sequence(parsed, frozenset({0}), parsed.state.flags, False)

    def _sequence(self, parts: Iterable[Any], places: _Places, flags: int, is_back: bool) -> _Places:
        """Returns the places behind parts that follow one another, or before them where `is_back`."""
        for part in reversed(list(parts)) if is_back else parts:
            places = frozenset().union(*(self._part(part, place, flags, is_back) for place in places))
            if not places:
                break
        return places

    def _part(self, part: Any, place: int, flags: int, is_back: bool) -> _Places:
        """Returns the places behind one part that begins at a place."""
        # The parsed pattern lives as long as this object: `id` names a part.
        key = (id(part), place, flags, is_back)
        if key not in self._reached:
            self._budget.left -= 1
            if self._budget.left < 0:
                raise _TooManyStepsError
            self._reached[key] = self._evaluate(part, place, flags, is_back)
        return self._reached[key]

    def _evaluate(self, part: Any, place: int, flags: int, is_back: bool) -> _Places:
        code, value = part
        here = frozenset({place})
        if code in (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN):
            index = place - 1 if is_back else place
            if 0 <= index < len(self._name) and _fits(part, self._name[index], flags):
                return frozenset({index if is_back else place + 1})
            return frozenset()
        if code is op.SUBPATTERN:
            _, added, removed, inside = value
            return self._sequence(inside, here, (flags | added) & ~removed, is_back)
        if code is op.BRANCH:
            return frozenset().union(*(self._sequence(branch, here, flags, is_back) for branch in value[1]))
        if code in (op.MAX_REPEAT, op.MIN_REPEAT):
            return self._repeated(value, here, flags, is_back)
        if code in (op.ASSERT, op.ASSERT_NOT):
            direction, inside = value
            is_there = bool(self._sequence(inside, here, flags, direction < 0))
            return here if is_there == (code is op.ASSERT) else frozenset()
        if code is op.AT:
            return here if self._is_at(value, place) else frozenset()
        if code is op.FAILURE:
            return frozenset()
        raise _UnknownError(str(code).lower())

    def _repeated(self, value: Any, places: _Places, flags: int, is_back: bool) -> _Places:
        """Returns the places behind `least` to `most` repetitions."""
        least, most, inside = value
        reached = places if least == 0 else frozenset()
        # Behind as many repetitions as the name has places, nothing new can come: each moves on, or stands still.
        for count in range(1, min(int(most), int(least) + len(self._name) + 1) + 1):
            before, places = places, self._sequence(inside, places, flags, is_back)
            self._budget.left -= 1
            if count >= least:
                places, before = places - reached, frozenset()
                reached |= places
            if not places or places == before:
                # Without a change, repetitions up to `least` change nothing either.
                return reached | places
        return reached

    def _is_at(self, what: Any, place: int) -> bool:
        if what in (op.AT_BEGINNING, op.AT_BEGINNING_STRING):
            return place == 0
        if what in (op.AT_END, op.AT_END_STRING):
            return place == len(self._name)
        if what in (op.AT_BOUNDARY, op.AT_NON_BOUNDARY):
            is_word = _CATEGORIES[op.CATEGORY_WORD]
            before, behind = (0 <= i < len(self._name) and is_word(self._name[i]) for i in (place - 1, place))
            return (before != behind) == (what is op.AT_BOUNDARY)
        raise _UnknownError(str(what).lower())


class _TooManyStepsError(Exception):
    pass


class _UnknownError(Exception):
    pass


def _fits(part: Any, sign: str, flags: int) -> bool:
    """Tells whether one character is what a part stands for; a name has no line breaks, so that `.` is any."""
    code, value = part
    if code is op.ANY:
        return True
    # Names are plain letters: the two cases are all that a letter has.
    signs = {sign, sign.lower(), sign.upper()} if flags & re.IGNORECASE else {sign}
    if code is op.LITERAL:
        return value in map(ord, signs)
    if code is op.NOT_LITERAL:
        return value not in map(ord, signs)
    is_negated = value[0][0] is op.NEGATE
    return is_negated != any(_is_in(item, one) for item in value for one in signs)


def _is_in(item: Any, sign: str) -> bool:
    """Tells whether an item of a character set holds a character."""
    code, value = item
    if code is op.LITERAL:
        return ord(sign) == value
    if code is op.RANGE:
        return value[0] <= ord(sign) <= value[1]
    return code is op.CATEGORY and _CATEGORIES[value](sign)
