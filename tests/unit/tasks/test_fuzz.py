"""A thousand damaged JSONL files: each gives examples or names a line, never another error."""

import json
import random
import re

import pytest

from mossa_jax.config import Columns
from mossa_jax.errors import Refusal
from mossa_jax.tasks.row_files import read_examples
from mossa_jax.tasks.suite import Example

WORDS = ("plain", "naïve", "日本", "😀", 'a "quoted" one', "tab\tand\nline", "back\\slash", "\u2028", "{}", "0")


def good(rng: random.Random) -> dict:
    def text():
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 6))) + "."

    row = {"inputs": text(), "targets": text(), "task": text()}
    return row | rng.choice(({}, {"template": rng.randint(0, 9)}, {"more": [None, 1.5, {"x": -0.0}]}))


def encode(row, rng: random.Random) -> bytes:
    return json.dumps(row, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


# Each makes a line that is bad for certain.
SURE = {
    "no field": lambda row, rng: encode(
        {field: row[field] for field in (rng.choice(("inputs", "targets")), "task")}, rng
    ),
    "wrong type": lambda row, rng: encode(row | {"targets": rng.choice((3, None, ["x"], {"y": 1}, True, 1e300))}, rng),
    "empty": lambda row, rng: encode(row | {rng.choice(("inputs", "targets")): rng.choice(("", " ", "\n\t "))}, rng),
    "surrogate": lambda row, rng: encode(row | {"inputs": row["inputs"] + rng.choice(("\ud800", "\udfff"))}, rng),
    "template": lambda row, rng: encode(row | {"template": rng.choice((True, "1", 0.5, None, 10**12))}, rng),
    "not UTF-8": lambda row, rng: encode(row, rng)[:-3] + b"\xff" + encode(row, rng)[-3:],
    "cut": lambda row, rng: encode(row, rng)[: -rng.randint(1, 9)],
    "joined": lambda row, rng: encode(row, rng) + encode(row, rng),
    "no object": lambda row, rng: rng.choice((b"[1]", b"null", b'"text"', b"7", b"NaN", b"nonsense")),
    "null byte": lambda row, rng: b"\x00" + encode(row, rng),
    "mark inside": lambda row, rng: b"\xef\xbb\xbf\xef\xbb\xbf" + encode(row, rng),
    "deep": lambda row, rng: encode(row, rng)[:-1] + b', "z": ' + rng.choice((b"[", b'{"a":')) * 20_000,
    "huge number": lambda row, rng: encode(row, rng)[:-1] + b', "z": -' + b"9" * 5_000 + b"}",
    "UTF-16": lambda row, rng: '{"inputs": "a", "targets": "b"}'.encode(rng.choice(("utf-16-le", "utf-16-be"))),
}


def damage(line: bytes, rng: random.Random) -> bytes:
    """Changes bytes somewhere; nobody knows what comes of it."""
    start = rng.randrange(len(line))
    stop = min(len(line), start + rng.randint(1, 8))
    some = bytes(rng.randrange(256) for _ in range(rng.randint(1, 4)))
    return rng.choice(
        (
            line[:start] + bytes([line[start] ^ 1 << rng.randrange(8)]) + line[start + 1 :],
            line[:start] + line[stop:],
            line[:start] + some + line[start:],
            line[:start] + line[start:stop] * 3 + line[stop:],
        )
    )


def make(rng: random.Random) -> tuple[bytes, list[Example] | None, list[int] | None, int | None]:
    """A file; its examples and bad lines, or None where that cannot be told; the first bad line, if that can."""
    content, examples, bad, first, sure = b"", [], [], None, True
    for number in range(1, rng.randint(1, 8) + 1):
        row, kind = good(rng), rng.random()
        if kind < 0.12:
            line = SURE[rng.choice(sorted(SURE))](row, rng)
            bad.append(number)
            if sure and first is None:
                first = number
        elif kind < 0.2:
            line = damage(encode(row, rng), rng)
            sure = False
        elif kind < 0.28:
            line = rng.choice((b"", b" ", b"\t \t"))
        else:
            line = encode(row, rng)
            examples.append(Example(row["inputs"], row["targets"], row.get("template", -1)))
        content += line + rng.choice((b"\n", b"\r\n"))
    whole = rng.random()
    if whole < 0.1:
        content = b"\xef\xbb\xbf" + content
    elif whole < 0.15 and not content.startswith((b"\r", b"\n")):
        return '{"inputs": "a", "targets": "b"}\n'.encode("utf-16") + content, None, None, 1
    elif whole < 0.2:
        content, sure, first = content[: rng.randrange(len(content) + 1)], False, None
    elif whole < 0.22:
        content, sure, first = bytes(rng.randrange(256) for _ in range(rng.randint(1, 300))), False, None
    elif whole < 0.24:
        return b"", [], [], 1
    elif whole < 0.5:
        content = content.rstrip(b"\r\n") if not bad and sure else content
    return (content, examples, bad, first) if sure else (content, None, None, first)


@pytest.mark.parametrize("seed", range(10))
def test_a_damaged_file_gives_examples_or_names_a_line(tmp_path, seed):
    rng, path = random.Random(seed), tmp_path / "x.jsonl"
    outcomes = {"read": 0, "refused": 0, "known line": 0, "known rows": 0}
    for _ in range(100):
        content, examples, bad, first = make(rng)
        path.write_bytes(content)
        if examples == [] and first is None:
            first = 1  # blank lines alone
        try:
            rows = list(read_examples(path, Columns()))
        except Refusal as refusal:
            outcomes["refused"] += 1
            assert refusal.code == 3
            named = re.match(re.escape(str(path)) + r":(\d+): .", str(refusal))
            assert named and 1 <= int(named[1]) <= max(1, content.count(b"\n") + 1), refusal
            if examples is not None:
                assert first is not None, (refusal, content)
            if first is not None:
                assert int(named[1]) == first, (refusal, content)
                outcomes["known line"] += 1
        else:
            outcomes["read"] += 1
            assert first is None, (first, content)
            check(rows)
            if examples is not None:
                assert rows == examples, content
                outcomes["known rows"] += 1
        leave_out(path, examples, bad)
    assert min(outcomes.values()) >= 15, outcomes


def check(rows: list[Example]) -> None:
    assert rows
    for row in rows:
        assert row.inputs.strip() and row.targets.strip() and row.template >= -1
        (row.inputs + row.targets).encode("utf-8")


def leave_out(path, examples: list[Example] | None, bad: list[int] | None) -> None:
    count = []
    try:
        rows = list(read_examples(path, Columns(), lambda: count.append(1)))
    except Refusal as refusal:
        assert refusal.code == 3 and str(refusal).startswith(f"{path}:1: no usable row")
        assert not examples
    else:
        check(rows)
        assert examples is None or rows == examples
    assert bad is None or len(count) == len(bad)
