"""Files as life leaves them: values from the edge in JSON, and files that were cut, flipped, emptied or replaced."""

import gzip
import json
import os
import random
import shutil
from pathlib import Path

EXTREMES = (
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**400, 1e308, 1e-320, float("inf"), float("-inf"), float("nan"),
    0.5, -0.0, "", "x", "a\0b", "../../etc/passwd", "/etc/passwd", "a" * 5_000, "1e5", "\ud800", "é", "(a+)+$", "[",
    [], {}, [None], [[]], {"a": 1}, [1, "a"], ["q_proj"], [10**30],
)  # fmt: skip
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def mutate_value(value: object, rng: random.Random) -> object:
    """Returns a parsed JSON value with one thing changed at a random place in it."""
    is_inside = isinstance(value, dict | list) and value and rng.random() < 0.8
    if is_inside and isinstance(value, dict):
        key = rng.choice(list(value))
        chance = rng.random()
        if chance < 0.12:
            return {name: each for name, each in value.items() if name != key}
        if chance < 0.2:
            return {**value, rng.choice(["unknown", "", "x" * 300, key + " "]): rng.choice(EXTREMES)}
        return {**value, key: mutate_value(value[key], rng)}
    if is_inside and isinstance(value, list):
        at = rng.randrange(len(value))
        return [*value[:at], mutate_value(value[at], rng), *value[at + 1 :]]
    if rng.random() < 0.04:
        for _ in range(rng.choice([90, 150, 3_000])):
            value = [value]
        return value
    return rng.choice(EXTREMES)


def mutate_json(path: Path, rng: random.Random, times: int = 1) -> str:
    """Changes a JSON file at random places, and says how the text begins to differ."""
    value = json.loads(path.read_bytes())
    for _ in range(times):
        value = mutate_value(value, rng)
    path.write_text(as_json(value), encoding="utf-8", errors="surrogatepass")
    return f"{path.name}: a value changed"


def as_json(value: object) -> str:
    """Writes a value as JSON, or something as deep or long where Python's own writer gives up."""
    try:
        return json.dumps(value)
    except RecursionError:
        return "[" * 5_000 + "]" * 5_000
    except ValueError:
        return "9" * 9_000


def damage(path: Path, rng: random.Random) -> str:
    """Damages a file in one of many ways, and says which."""
    data = path.read_bytes()
    size = len(data)
    at = rng.randrange(size) if size else 0

    def flip() -> None:
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :] if size else b"\1")

    def replace_by(make) -> None:
        path.unlink()
        make()

    ways = {
        "a bit flipped": flip,
        "a bit flipped again": flip,
        "cut": lambda: path.write_bytes(data[:at]),
        "emptied": lambda: path.write_bytes(b""),
        "zeroed": lambda: path.write_bytes(data[:at] + bytes(min(64, size - at)) + data[at + 64 :]),
        "all zeros": lambda: path.write_bytes(bytes(size)),
        "appended": lambda: path.write_bytes(data + rng.randbytes(9)),
        "noise": lambda: path.write_bytes(rng.randbytes(max(size % 5_000, 1))),
        "a mark in front": lambda: path.write_bytes(b"\xef\xbb\xbf" + data),
        "UTF-16": lambda: path.write_bytes(data.decode("utf-8", "replace").encode("utf-16")),
        "CRLF": lambda: path.write_bytes(data.replace(b"\n", b"\r\n")),
        "compressed": lambda: path.write_bytes(gzip.compress(data)),
        "a pointer": lambda: path.write_bytes(POINTER),
        "deep": lambda: path.write_bytes(b"[" * 9_000 + b"]" * 9_000),
        "long number": lambda: path.write_bytes(b'{"a": ' + b"9" * 9_000 + b"}"),
        "deleted": path.unlink,
        "a pipe": lambda: replace_by(lambda: os.mkfifo(path)),
        "a folder": lambda: replace_by(path.mkdir),
        "a loop": lambda: replace_by(lambda: path.symlink_to(path.name)),
        "a dangling link": lambda: replace_by(lambda: path.symlink_to("nowhere")),
        "a device": lambda: replace_by(lambda: path.symlink_to("/dev/zero")),
        "null": lambda: path.write_bytes(b"null"),
    }
    way = rng.choice(list(ways))
    ways[way]()
    return f"{path.name}: {way}"


def fresh_copy(source: Path, target: Path) -> Path:
    """Returns a new copy of a folder at `target`, whatever lay there."""
    if target.exists() or target.is_symlink():
        shutil.rmtree(target)
    shutil.copytree(source, target)
    return target
