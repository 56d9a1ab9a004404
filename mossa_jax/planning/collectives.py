"""Transfers between devices in a compiled program, read from its text (XLA's HLO)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_COLLECTIVE = re.compile(
    r"^ *(?:ROOT )?%?[\w.-]+ = (.+?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)
_SHAPE = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_CALLS = re.compile(r"(?:calls|to_apply|branch_computations|(?:true|false)_computation)=\{?((?:%?[\w.-]+(?:, )?)+)")


def collectives(text: str, axes: Mapping[str, int], open_iterations: int = 1) -> list[dict[str, Any]]:
    """Lists the transfers between chips in a compiled program, by kind and mesh axes.

    An instruction in a loop counts once per iteration. A transfer that the TPU compiler splits into several fusions,
    which share its channel, counts once.

    Args:
      text: the program, from `compiled.as_text()`.
      axes: the mesh, axis name -> size.
      open_iterations: of loops whose number of iterations is not known before the program runs.

    Returns:
      A list of {"kind", "axes" (names, joined by "+"), "count", "bytes"}. `count` is how often the transfer happens in
      one run of the program. `bytes` is what one chip receives then, if n chips form a ring: (n - 1) / n of the whole
      array for all-gather and all-to-all, the same share of the operand for reduce-scatter, twice that for all-reduce.
    """
    bodies = _computations(text)
    counts: Counter[tuple[str, str]] = Counter()
    sizes: dict[tuple[str, str], float] = {}
    counted_channels: set[tuple[str, str]] = set()

    def visit(name: str, host: str, iterations: int) -> None:
        """Counts what computation `name` transfers; `host` is the loop body (or entry) that it belongs to."""
        for line in bodies.get(name, ()):
            if match := _COLLECTIVE.match(line):
                channel = re.search(r"channel_id=\d+", line)
                if name != host and channel:
                    if (host, channel[0]) in counted_channels:
                        continue
                    counted_channels.add((host, channel[0]))
                kind, group_axes = match[2], _group_axes(line, axes)
                group_size = int(np.prod([axes[axis] for axis in group_axes]))
                if group_size > 1:
                    key = kind, "+".join(group_axes)
                    counts[key] += iterations
                    received = _received_bytes(kind, match[1], bool(match[3]), group_size)
                    sizes[key] = sizes.get(key, 0.0) + iterations * received
            elif " while(" in line:
                condition, body = _attribute(line, "condition"), _attribute(line, "body")
                visit(body, body, iterations * _iterations(line, bodies[condition], open_iterations))
            for names in _CALLS.findall(line):
                for callee in names.split(", "):
                    visit(callee.lstrip("%"), host, iterations)

    visit("ENTRY", "ENTRY", 1)
    return [
        {"kind": kind, "axes": joined, "count": counts[kind, joined], "bytes": int(sizes[kind, joined])}
        for kind, joined in sorted(counts)
    ]


def _computations(text: str) -> dict[str, list[str]]:
    """Splits a program into its computations, name -> lines; the entry is called ENTRY."""
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
            lines = computations.setdefault("ENTRY" if header[1] else header[2], [])
        else:
            lines.append(line)
    return computations


def _attribute(line: str, name: str) -> str:
    """Returns the computation that an instruction names as its `name`."""
    match = re.search(rf"{name}=%?([\w.-]+)", line)
    if match is None:
        raise ValueError(f"the instruction has no {name}: {line}")
    return match[1]


def _iterations(line: str, condition: Sequence[str], unknown: int) -> int:
    """Returns how often a loop's body runs: the noted count, the only number in its condition, or else `unknown`."""
    if trip_count := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
        return int(trip_count[1])
    limits = [int(number) for line in condition for number in re.findall(r"= s32\[\]\S* constant\((\d+)\)", line)]
    return limits[0] if len(limits) == 1 else unknown


def _group_axes(line: str, axes: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the mesh axes that a transfer runs over: those whose index differs within its first group of devices."""
    devices = np.arange(int(np.prod(list(axes.values()))))
    if named := re.search(r"replica_groups=mesh\[([^\]]+)\](?:, device_ids=\((.+?)\))? ?\{([^}]*)\}", line):
        # As in mesh['a'=4,'b'=2] {'b'}, or mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}.
        names, group_names = (re.findall(r"'(\w+)'", text) for text in (named[1], named[3]))
        sizes = [int(size) for size in re.findall(r"=(\d+)", named[1])]
        grid = (_reordered(devices, named[2]) if named[2] else devices).reshape(sizes)
        group = grid[tuple(slice(None) if name in group_names else 0 for name in names)].ravel()
    elif iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", line):
        # As in [4,2]<=[2,4]T(1,0): device numbers in another order, cut into groups.
        group = _reordered(devices, iota[3]).reshape(int(iota[1]), int(iota[2]))[0]
    elif listed := re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}", line):
        group = np.asarray([int(device) for device in listed[1].split(",")])
    else:
        group = devices
    places = np.unravel_index(group, list(axes.values()))
    return tuple(axis for axis, place in zip(axes, places, strict=True) if len(set(place.tolist())) > 1)


def _reordered(devices: np.ndarray, order: str) -> np.ndarray:
    """Returns device numbers [n], reshaped and transposed as in [2,4]T(1,0)."""
    sizes, _, axes = order.partition("T")
    grid = devices.reshape([int(size) for size in sizes.strip("[]").split(",")])
    return grid.transpose([int(axis) for axis in axes.strip("()").split(",")]) if axes else grid


def _received_bytes(kind: str, result: str, is_asynchronous: bool, group_size: int) -> float:
    """Returns the bytes that a chip receives in one transfer.

    Args:
      kind: of the transfer.
      result: its result type, as the text has it.
      is_asynchronous: whether it is the `-start` half of a pair, whose result type holds the operands too, except for
        all-reduce.
      group_size: the number of chips that take part.
    """
    shapes = [
        (1.0 if name == "pred" else int(bits) / 8) * float(np.prod([int(size) for size in dims.split(",") if size]))
        for name, bits, dims in _SHAPE.findall(result)
        # Scalars of this type are the runtime's own marks beside an asynchronous transfer.
        if dims or name != "u32"
    ]
    if is_asynchronous and kind != "all-reduce":
        # Operands stand before results.
        shapes = shapes[len(shapes) // 2 :]
    other_chips = group_size - 1
    share = {"all-reduce": 2 * other_chips / group_size, "reduce-scatter": other_chips, "collective-permute": 1.0}
    return sum(shapes) * share.get(kind, other_chips / group_size)
