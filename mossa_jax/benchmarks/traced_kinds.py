"""Where the time of a compiled program goes, by kinds of work: read from a trace of one run and the program's text.

A trace names the instructions of the compiled program (XLA's HLO). The program's text says of each what it computes and
in which named scope it was written: `attention` and `feed_forward` in `llama.layers.Block`, within these `scores` and
`adapter`, besides them `head` and `optimizer`. A fusion that multiplies matrices belongs where its product does, any
other one where its last instruction does. Some products lose their scope when the compiler rewrites them; these belong
to the scope of the nearest instruction that reads their result, or else of the nearest one that they read.

At any moment the time of a device goes to the innermost instruction that is under way there; several share it evenly.
Loops are not instructions in this sense, only what they repeat is.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

KINDS = {
    "projections": "products with the base's matrices in attention and feed-forward",
    "scores": "attention's scores, softmax and weighted values",
    "head": "final norm, products with the vocabulary and softmax",
    "adapter": "the low-rank updates of LoRA",
    "optimizer": "clipping, moments and update",
    "elementwise": "norms, rotation, gates, sums",
    "moves": "copies, slices, gathers and broadcasts outside the parts above",
    "transfers": "between devices, waiting for one another included",
    "other": "what cannot be told",
    "outside": "no instruction under way: host, dispatch, the runtime between instructions",
}
"""Kind of work -> what it holds, in the order of tables."""

ANNOTATION = "token_cost"
"""The name under which a run stands in its trace."""

_BLOCK_SCOPES = ("attention", "feed_forward")
# Kinds that are scopes. The first one on a path decides.
_SCOPES = ("scores", "head", "adapter", "optimizer")
# The product of `llama.layers.Projection`. The compiler may merge several products, and joins their paths.
_BASE_PRODUCT = "bsi,oi->bso"
# How many instructions away a scope is looked for.
_NEAR = 3
_PRODUCTS = {"dot", "convolution", "ragged-dot"}
_TRANSFERS = {
    "all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute", "reduce-scatter",
}  # fmt: skip
_MOVES = {
    "bitcast", "broadcast", "concatenate", "constant", "copy", "dynamic-slice", "dynamic-update-slice", "gather",
    "get-tuple-element", "iota", "pad", "parameter", "partition-id", "replica-id", "reshape", "reverse", "scatter",
    "slice", "transpose", "tuple",
}  # fmt: skip
_LOOPS = {"while", "conditional"}
_HOLDERS = {"fusion", "call", *_LOOPS}

_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.-]+) .*\{$")
_INSTRUCTION = re.compile(r"^ +(?:ROOT )?%?([\w.-]+) = (.+?) ([a-z][\w-]*)\(")
_CALLEES = re.compile(r"(?:calls|to_apply|body|branch_computations)=\{?((?:%?[\w.-]+(?:, )?)+)")
_OPERAND = re.compile(r"%([\w.-]+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
# Positions in an array, such as the number of a loop's turn.
_INDEX = re.compile(r"(?:pred|[su]\d+)\[\]")


@dataclass(frozen=True)
class Instruction:
    """An instruction of a compiled program.

    Attributes:
      opcode: in HLO.
      result: its type.
      scope: the path of functions and scopes that it was written in; "" if the compiler made it.
      callees: the computations that it runs.
      operands: the instructions that it reads.
    """

    opcode: str
    result: str
    scope: str
    callees: tuple[str, ...]
    operands: tuple[str, ...]


class Occurrence(NamedTuple):
    """One execution of an instruction on one device, in ns."""

    start: float
    end: float
    name: str


@dataclass(frozen=True)
class Trace:
    """What a trace says of one run of a program.

    Attributes:
      start, end: of the run, in ns.
      devices: the occurrences of instructions on each device.
    """

    start: float
    end: float
    devices: tuple[tuple[Occurrence, ...], ...]


class ProgramText:
    """The text of a compiled program, from `compiled.as_text()`.

    Attributes:
      name: of the program.
      instructions: name -> instruction, of all computations.
    """

    def __init__(self, text: str) -> None:
        """Reads the instructions."""
        match = re.match(r"HloModule ([\w.-]+)", text)
        self.name = match[1] if match else ""
        self.instructions: dict[str, Instruction] = {}
        self._computations: dict[str, list[str]] = defaultdict(list)
        self._users: dict[str, list[str]] = defaultdict(list)
        computation = ""
        for line in text.splitlines():
            if match := _INSTRUCTION.match(line):
                name, result, opcode = match.groups()
                scope = _OP_NAME.search(line)
                callees = [name.lstrip("%") for names in _CALLEES.findall(line) for name in names.split(", ")]
                operands = tuple(_OPERAND.findall(line[match.end() :].partition(")")[0]))
                own = Instruction(opcode, result, scope[1] if scope else "", tuple(callees), operands)
                self.instructions[name] = own
                self._computations[computation].append(name)
                for operand in operands:
                    self._users[operand].append(name)
            elif match := _COMPUTATION.match(line):
                computation = match[1]

    def kind(self, name: str) -> str:
        """Returns the kind of work of an instruction, one of `KINDS`; `other` if the program does not have it."""
        if name not in self.instructions:
            return "other"
        parts = self._parts(name)
        opcodes = {part.opcode.removesuffix("-start").removesuffix("-done") for part in parts}
        if opcodes & _TRANSFERS:
            return "transfers"
        multiplies, scope = bool(opcodes & _PRODUCTS), self._scope(name)
        is_move = all(part.opcode in _MOVES or _INDEX.fullmatch(part.result) for part in parts)
        if not scope and not is_move:
            scope = self._near_scope(name)
        for kind in _SCOPES:
            if _stands_in(kind, scope):
                return "projections" if multiplies and _BASE_PRODUCT in scope else kind
        if multiplies:
            return "projections" if any(_stands_in(word, scope) for word in _BLOCK_SCOPES) else "other"
        if is_move:
            return "moves"
        return "elementwise" if scope else "other"

    def _scope(self, name: str) -> str:
        """Returns the path of an instruction: that of its product, its own, or one of those inside; "" for none."""
        parts = self._parts(name)
        products = [part for part in parts if part.opcode in _PRODUCTS]
        if products:
            return products[0].scope
        return self.instructions[name].scope or next((part.scope for part in parts if part.scope), "")

    def _near_scope(self, name: str) -> str:
        """Returns the path of the nearest instruction that is in a named scope, among readers first; "" for none."""
        for neighbours in (self._users, {each: own.operands for each, own in self.instructions.items()}):
            reached, seen = [name], {name}
            for _ in range(_NEAR):
                reached = [near for each in reached for near in neighbours.get(each, ()) if near in self.instructions]
                reached = [each for each in dict.fromkeys(reached) if each not in seen]
                seen.update(reached)
                for each in reached:
                    scope = self._scope(each)
                    if any(_stands_in(word, scope) for word in (*_SCOPES, *_BLOCK_SCOPES)):
                        return scope
        return ""

    def is_backward(self, name: str) -> bool:
        """Whether an instruction belongs to the backward pass."""
        return name in self.instructions and any("transpose(" in part.scope for part in self._parts(name))

    def is_loop(self, name: str) -> bool:
        """Whether an instruction only repeats or chooses others."""
        return name in self.instructions and self.instructions[name].opcode in _LOOPS

    def is_call(self, name: str) -> bool:
        """Whether an instruction runs others, which may occur in a trace by themselves."""
        return name in self.instructions and self.instructions[name].opcode == "call"

    def _parts(self, name: str) -> list[Instruction]:
        """Returns an instruction, or all those that it is made of."""
        instruction = self.instructions[name]
        if instruction.opcode not in _HOLDERS:
            return [instruction]
        inner = [part for callee in instruction.callees for part in self._computations[callee]]
        return [each for part in inner for each in self._parts(part)] or [instruction]


def _stands_in(word: str, scope: str) -> bool:
    """Whether a scope has this name on its path, which may read `attention/...` or `transpose(jvp(attention))/...`."""
    return re.search(rf"(?<![\w.-]){word}(?![\w.-])", scope) is not None


def read_trace(folder: str | Path, program: str) -> Trace | None:
    """Reads what `jax.profiler.trace` has written of runs, each inside a `TraceAnnotation` called `ANNOTATION`.

    An instruction may hand its work to other threads and return; its end is then marked by an event of its own. Of
    several runs the shortest is taken, which other work on the machine has disturbed least.

    Args:
      folder: that the trace was written to.
      program: the name of the program.

    Returns:
      The trace; None if it names no instructions of the program.
    """
    from jax.profiler import ProfileData

    (path,) = Path(folder).rglob("*.xplane.pb")
    windows: list[tuple[float, float]] = []
    starts: dict[tuple[str, str], list[tuple[float, float, str, int | None]]] = defaultdict(list)
    ends: dict[int, float] = {}
    for plane in ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                if event.name == ANNOTATION:
                    windows.append((event.start_ns, event.end_ns))
                    continue
                values = dict(event.stats)
                if values.get("hlo_module") == program and "hlo_op" in values:
                    device = plane.name, str(values.get("device_ordinal", ""))
                    starts[device].append((event.start_ns, event.end_ns, str(values["hlo_op"]), values.get("_p")))
                elif event.name.startswith("end: ") and "_c" in values:
                    ends[values["_c"]] = event.start_ns
    if not windows or not starts:
        return None
    first, last = min(windows, key=lambda window: window[1] - window[0])
    devices = (
        tuple(
            Occurrence(start, end if mark is None else max(end, ends.get(mark, end)), name)
            for start, end, name, mark in sorted(own)
            if first <= start < last
        )
        for own in starts.values()
    )
    return Trace(first, last, tuple(devices))


def time_by_name(
    occurrences: Iterable[Occurrence], ranks: Mapping[str, int], start: float, end: float
) -> dict[str, float]:
    """Divides the time of one device among the instructions that are under way.

    Args:
      occurrences: of instructions.
      ranks: of the instructions; at any moment those of the lowest rank share the time evenly. Those without a rank
        take none.
      start, end: only the time in between counts.

    Returns:
      Name -> ns.
    """
    changes: list[tuple[float, int, int]] = []
    ranked = [occurrence for occurrence in occurrences if occurrence.name in ranks]
    for number, occurrence in enumerate(ranked):
        changes += [(max(occurrence.start, start), 1, number), (min(occurrence.end, end), 0, number)]
    # At the same moment, what ends comes first, unless it begins there too.
    changes.sort()
    times: dict[str, float] = defaultdict(float)
    active: set[int] = set()
    finished: set[int] = set()
    before = start
    for moment, begins, number in changes:
        if active and moment > before:
            lowest = min(ranks[ranked[each].name] for each in active)
            innermost = [each for each in active if ranks[ranked[each].name] == lowest]
            for each in innermost:
                times[ranked[each].name] += (moment - before) / len(innermost)
        before = max(before, moment)
        if not begins:
            active.discard(number)
            finished.add(number)
        elif number not in finished:
            active.add(number)
    return dict(times)


def shares(text: ProgramText, trace: Trace) -> dict[str, float]:
    """Returns the share of each kind in the time of all devices, `KINDS` in order; they sum to 1.

    `backward`, behind them, is the share of the instructions of the backward pass, which other kinds hold as well.
    """
    sums = dict.fromkeys([*KINDS, "backward"], 0.0)
    for name, time in _times(text, trace).items():
        sums[text.kind(name)] += time
        sums["backward"] += time * text.is_backward(name)
    whole = (trace.end - trace.start) * len(trace.devices)
    sums["outside"] = whole - sum(sums[kind] for kind in KINDS)
    return {name: time / whole for name, time in sums.items()}


def longest(text: ProgramText, trace: Trace, count: int) -> Sequence[tuple[str, str, float]]:
    """Returns path, kind and share of the paths that take the most time, the longest first.

    A path is that of functions and scopes that instructions were written in, or the name of one that has none.
    """
    sums: dict[tuple[str, str], float] = defaultdict(float)
    for name, time in _times(text, trace).items():
        scope = text.instructions[name].scope if name in text.instructions else ""
        sums[scope or name, text.kind(name)] += time
    whole = (trace.end - trace.start) * len(trace.devices)
    ordered = sorted(sums.items(), key=lambda item: -item[1])[:count]
    return [(scope, kind, time / whole) for (scope, kind), time in ordered]


def _times(text: ProgramText, trace: Trace) -> dict[str, float]:
    """Returns the ns of each instruction, summed over devices."""
    names = {occurrence.name for device in trace.devices for occurrence in device}
    # What a call runs may occur by itself; loops take no time of their own.
    ranks = {name: int(text.is_call(name)) for name in names if not text.is_loop(name)}
    times: dict[str, float] = defaultdict(float)
    for device in trace.devices:
        for name, time in time_by_name(device, ranks, trace.start, trace.end).items():
            times[name] += time
    return times
