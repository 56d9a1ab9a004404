"""Transfers between devices in a compiled program, read off its text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

_COLLECTIVE = re.compile(
    r"^ *(?:ROOT )?%?[\w.-]+ = (.+?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)
_SHAPE = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|branch_computations|(?:true|false)_computation)=\{?((?:%?[\w.-]+(?:, )?)+)")


def collectives(text: str, axes: dict[str, int]) -> list[dict[str, Any]]:
    """Transfers between chips in a compiled program, by kind and mesh axes.

    Args:
      text: the program, as `compiled.as_text()` gives it.
      axes: of its mesh, name -> size.

    Returns:
      A list of {"kind", "axes" (names, joined by "+"), "count", "bytes"}: how often in one run of the program, and what
      one chip receives, with rings of n chips: (n - 1) / n of the whole array for all-gather and all-to-all, as much of
      the operand for reduce-scatter, twice that for all-reduce. What stands in a loop counts once a turn, in a loop
      whose turns are not known before it runs once. A transfer that TPUs cut into several fusions (which share its
      channel) counts once.
    """
    bodies = _computations(text)
    counts, sizes, seen = Counter(), Counter(), set()

    def visit(name: str, host: str, turns: int) -> None:
        for line in bodies.get(name, ()):
            if match := _COLLECTIVE.match(line):
                channel = re.search(r"channel_id=\d+", line)
                if name != host and channel:
                    if (host, channel[0]) in seen:
                        continue
                    seen.add((host, channel[0]))
                kind, together = match[2], _together(line, axes)
                number = int(np.prod([axes[axis] for axis in together]))
                if number > 1:
                    key = kind, "+".join(together)
                    counts[key] += turns
                    sizes[key] += turns * _received(kind, match[1], bool(match[3]), number)
            elif " while(" in line:
                condition, body = (re.search(rf"{part}=%?([\w.-]+)", line)[1] for part in ("condition", "body"))
                visit(body, body, turns * _turns(line, bodies[condition]))
            for called in _CALLED.findall(line):
                for callee in called.split(", "):
                    visit(callee.lstrip("%"), host, turns)

    visit("ENTRY", "ENTRY", 1)
    return [
        {"kind": kind, "axes": together, "count": counts[kind, together], "bytes": int(sizes[kind, together])}
        for kind, together in sorted(counts)
    ]


def _computations(text: str) -> dict[str, list[str]]:
    """Name -> lines; the entry is called ENTRY."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
            lines = found.setdefault("ENTRY" if header[1] else header[2], [])
        else:
            lines.append(line)
    return found


def _turns(line: str, condition: Sequence[str]) -> int:
    """How often a loop's body runs: as noted, or the only number that its condition holds; else 1."""
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
        return int(noted[1])
    limits = [int(number) for line in condition for number in re.findall(r"= s32\[\]\S* constant\((\d+)\)", line)]
    return limits[0] if len(limits) == 1 else 1


def _together(line: str, axes: dict[str, int]) -> tuple[str, ...]:
    """The mesh axes over which a transfer runs: those that differ within its first group of devices."""
    every = np.arange(int(np.prod(list(axes.values()))))
    if named := re.search(r"replica_groups=mesh\[([^\]]+)\] ?\{([^}]*)\}", line):  # mesh['a'=4,'b'=2] {'b'}
        names, inside = (re.findall(r"'(\w+)'", part) for part in named.groups())
        sizes = [int(size) for size in re.findall(r"=(\d+)", named[1])]
        group = every.reshape(sizes)[tuple(slice(None) if name in inside else 0 for name in names)].ravel()
    elif iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        grid = every.reshape([int(size) for size in iota[3].split(",")])
        if iota[4]:
            grid = grid.transpose([int(axis) for axis in iota[4].split(",")])
        group = grid.reshape(int(iota[1]), int(iota[2]))[0]
    elif listed := re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}", line):
        group = np.asarray([int(device) for device in listed[1].split(",")])
    else:
        group = every
    places = np.unravel_index(group, list(axes.values()))
    return tuple(axis for axis, place in zip(axes, places, strict=True) if len(set(place.tolist())) > 1)


def _received(kind: str, result: str, started: bool, number: int) -> float:
    """Bytes that a chip receives, from the transfer's result type and the size of its group."""
    shapes = [
        (1.0 if name == "pred" else int(bits) / 8) * np.prod([int(size) for size in dims.split(",") if size])
        for name, bits, dims in _SHAPE.findall(result)
    ]
    if started and kind == "all-gather":
        shapes = shapes[len(shapes) // 2 :]  # operands stand before results
    if kind == "collective-permute":
        return shapes[-3] if started and len(shapes) > 3 else shapes[0]
    share = {"all-reduce": 2 * (number - 1) / number, "reduce-scatter": number - 1}.get(kind, (number - 1) / number)
    return sum(shapes) * share
