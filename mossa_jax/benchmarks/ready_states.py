"""Part `states`: CKA of states that lie ready in memory, at matching layers and of every layer against every other."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mossa_jax.benchmarks import machine
from mossa_jax.benchmarks import plain_cka as plain
from mossa_jax.benchmarks.cka_tools import DIAGONAL, MATRIX, Tool
from mossa_jax.errors import Refusal
from mossa_jax.log import log
from mossa_jax.similarity.estimators import MIN_ROWS

CHILD = "import sys; from mossa_jax.benchmarks import ready_states; ready_states.write_extra_peak(*sys.argv[1:])"
PARTS = {"matching layers": DIAGONAL, "layer x layer": MATRIX}


@dataclasses.dataclass(frozen=True)
class Workload:
    """Two models' states: `layers` layers of `n` rows of width `d`, float32, a constant offset `offset` times the
    signal, drawn from `seed`; timed `rounds` times; `batch` rows a batch for tools that average over batches; `memory`
    measures each contestant once more in a process of its own.
    """

    n: int = 2048
    d: int = 1024
    layers: int = 12
    rounds: int = 5
    offset: float = 0.0
    seed: int = 0
    batch: int = 256
    memory: bool = True

    def check(self) -> None:
        """Refuses, with code 2, sizes that cannot be measured."""
        for name, least in (("n", MIN_ROWS), ("d", 1), ("layers", 1), ("rounds", 1), ("batch", MIN_ROWS)):
            if getattr(self, name) < least:
                raise Refusal(2, f"{name} is {getattr(self, name)}; give at least {least}")


def draw(work: Workload) -> np.ndarray:
    """[2, layers, n, d] float32 states that share a part of their factors, over layers and over models.

    All values are then well above 0, so that tools which clamp there are not wrong for that.
    """
    rng = np.random.default_rng(work.seed)
    rank = max(2, work.d // 8)
    states = np.empty((2, work.layers, work.n, work.d), np.float32)
    common = 2 * rng.standard_normal((work.n, rank), np.float32)
    for state in states.reshape(-1, work.n, work.d):
        mixing = rng.standard_normal((rank, work.d)) / np.sqrt(np.arange(1, rank + 1))[:, None]
        own = common + rng.standard_normal((work.n, rank), np.float32)
        noise = rng.standard_normal((work.n, work.d), np.float32)
        state[:] = own @ mixing + noise + work.offset * rng.standard_normal(work.d)
    return states


def least_gflop(work: Workload, whole: bool) -> float:
    """GFLOP of the cheapest exact route, the same for all contestants: shares of the peak then count method and code.

    Features: `X^T Y` and the upper halves of `X^T X`, `Y^T Y`. Grams: upper halves, then their inner products.
    """
    pairs = work.layers**2 if whole else work.layers
    states = 2 * work.layers
    features = (2 * pairs + states) * work.n * work.d**2
    grams = states * work.n**2 * work.d + (pairs + states) * work.n**2
    return min(features, grams) / 1e9


def exact_values(states: np.ndarray, estimator: str, whole: bool) -> np.ndarray:
    """Float64 values: [L], or [L, L] from the products of all centred states (one Gram at a time in memory)."""
    if not whole:
        return np.array([plain.ORACLES[estimator](x, y) for x, y in zip(*states, strict=True)])
    n, layers = states.shape[2], states.shape[1]
    z = states.reshape(-1, *states.shape[2:]).astype(np.float64)
    z -= z.mean(1, keepdims=True)
    square = np.square(z).sum(2)
    h = np.empty((len(z), len(z)))
    for i, x in enumerate(z):
        for j, y in enumerate(z[: i + 1]):
            h[i, j] = h[j, i] = np.square(x.T @ y).sum()
    if estimator == "debiased":
        trace = square.sum(1)
        h += np.outer(trace, trace) / ((n - 1) * (n - 2)) - n / (n - 2) * (square @ square.T)
    return (h / np.sqrt(np.outer(h.diagonal(), h.diagonal())))[:layers, layers:]


def measure(work: Workload, peak: float) -> dict[str, Any]:
    """Times every contestant in turn after a warm-up call each.

    Args:
      work: sizes.
      peak: GFLOP/s of a matrix product on this machine.

    Returns:
      A JSON-ready record: sizes, and per part a row per contestant: seconds, ratio to the first one (over rounds),
      GFLOP/s of the least work, share of the peak, largest error against float64 of its estimator, extra peak memory;
      or why it was left out.

    Raises:
      Refusal: 2 for sizes that cannot be measured.
    """
    work.check()
    states = draw(work)
    rows = [
        row
        for part, tools in PARTS.items()
        for row in _part(part, tools, states, work, least_gflop(work, part == "layer x layer"), peak)
    ]
    return {**dataclasses.asdict(work), "rows": rows}


def _part(
    part: str, tools: tuple[Tool, ...], states: np.ndarray, work: Workload, gflop: float, peak: float
) -> list[dict[str, Any]]:
    exact = {name: exact_values(states, name, part == "layer x layer") for name in {tool.estimator for tool in tools}}
    rows, runs, errors = [], {}, {}
    for tool in tools:
        row = {"part": part, "name": tool.name, "estimator": tool.estimator, "exact": tool.exact}
        rows.append(row | {"absent": tool.absent()})
        if rows[-1]["absent"]:
            continue
        with machine.quiet():
            runs[tool.name] = tool.prepare(states, work.batch)
            try:
                errors[tool.name] = machine.or_none(np.abs(runs[tool.name]() - exact[tool.estimator]).max())
            except Exception as error:  # a tool that fails is a result
                rows[-1]["absent"] = f"fails ({type(error).__name__}: {error})"
                del runs[tool.name]
    times = machine.in_turns(runs, work.rounds)
    for row in rows:
        name = row["name"]
        if name not in runs:
            continue
        row |= machine.summary(times[name], times[next(iter(runs))]) | {"error": errors[name]}
        row["gflop_per_s"] = gflop / row["seconds"]
        row["share_of_peak"] = row["gflop_per_s"] / peak
        row["extra_peak_bytes"] = _in_a_process(part, name, work) if work.memory else None
        log.info("%s, %s: %.0f ms", part, name, 1e3 * row["seconds"])
    return rows


def _in_a_process(part: str, name: str, work: Workload) -> int | None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "bytes.json")
        arguments = [part, name, json.dumps(dataclasses.asdict(work)), str(out)]
        done = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, check=False)
        return json.loads(out.read_text()) if done.returncode == 0 else None


def write_extra_peak(part: str, name: str, work: str, out: str) -> None:
    """The child of a memory measurement: prepares one contestant, calls it twice, writes the bytes to `out`."""
    sizes = Workload(**json.loads(work))
    machine.set_threads()
    tool = next(tool for tool in PARTS[part] if tool.name == name)
    with machine.quiet():
        run = tool.prepare(draw(sizes), sizes.batch)
        Path(out).write_text(json.dumps(machine.extra_peak(run)))


def table(record: dict[str, Any]) -> str:
    """The record as a plain text table."""
    lines = [
        f"CKA of ready states, n={record['n']}, d={record['d']}, 2 x {record['layers']} layers, offset "
        f"{record['offset']:g}; medians of {record['rounds']}, ratios round by round (lowest to highest)"
    ]
    for part in PARTS:
        heads = ("CPU ratio", "GFLOP/s", "of peak", "error", "+MB")
        lines.append(f"{part:44}{'ms':>10}{'ratio':>8}{'':16}" + "".join(f"{head:>10}" for head in heads))
        for row in (row for row in record["rows"] if row["part"] == part):
            if row["absent"]:
                lines.append(f"{row['name']:44}{row['absent']}")
                continue
            memory = row["extra_peak_bytes"]
            error = "NaN" if row["error"] is None else f"{row['error']:.0e}"
            span = f"({row['ratio_lowest']:.2f} to {row['ratio_highest']:.2f})"
            # Work and peak are those of an exact value: no figure for an estimate.
            speed = f"{row['gflop_per_s']:>10.1f}{row['share_of_peak']:>10.0%}" if row["exact"] else f"{'estimate':>20}"
            lines.append(
                f"{row['name']:44}{1e3 * row['seconds']:>10.1f}{row['ratio']:>8.2f} {span:15}"
                f"{row['cpu_ratio']:>10.2f}{speed}{error:>10}{'-' if memory is None else f'{memory / 1e6:.0f}':>10}"
            )
    return "\n".join(lines)
