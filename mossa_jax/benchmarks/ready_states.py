"""Part `states`: CKA of states that are already in memory, at matching layers and of each layer with each other one."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mossa_jax.benchmarks import machine, measuring, plain_cka
from mossa_jax.benchmarks.cka_tools import DIAGONAL, MATRIX, Run, Tool
from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.log import log
from mossa_jax.similarity.estimators import MIN_ROWS

_CHILD = f"import sys; from {__name__} import write_extra_peak; write_extra_peak(*sys.argv[1:])"
_ALL_LAYERS = "layer x layer"
PARTS = {"matching layers": DIAGONAL, _ALL_LAYERS: MATRIX}


@dataclasses.dataclass(frozen=True)
class Workload:
    """The sizes of a measurement on two models' float32 states.

    Attributes:
      n: rows of a layer.
      d: D, width of the states.
      layers: L, layers of each model.
      rounds: timed rounds.
      offset: constant offset of the states, as a multiple of the noise.
      seed: of the states.
      batch: rows per batch of the tools that average over batches.
      memory: whether the peak memory of each tool is measured, in a process of its own.
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
        """Refuses sizes that cannot be measured.

        Raises:
          Refusal: 2.
        """
        for name, bound in (("n", MIN_ROWS), ("d", 1), ("layers", 1), ("rounds", 1), ("batch", MIN_ROWS)):
            if getattr(self, name) < bound:
                raise Refusal(BAD_CONFIG, f"{name} is {getattr(self, name)}; give at least {bound}")


def draw_states(work: Workload) -> np.ndarray:
    """Returns states that share some of their factors over layers and over models.

    All values of CKA are then well above 0, so that a tool that clamps at 0 is not wrong for that.

    Returns:
      [2, L, n, D] float32.
    """
    rng = np.random.default_rng(work.seed)
    rank = max(2, work.d // 8)
    states = np.empty((2, work.layers, work.n, work.d), np.float32)
    common = 2 * rng.standard_normal((work.n, rank), np.float32)
    for state in states.reshape(-1, work.n, work.d):
        mixing = rng.standard_normal((rank, work.d)) / np.sqrt(np.arange(1, rank + 1))[:, None]
        factors = common + rng.standard_normal((work.n, rank), np.float32)
        noise = rng.standard_normal((work.n, work.d), np.float32)
        state[:] = factors @ mixing + noise + work.offset * rng.standard_normal(work.d)
    return states


def least_gflop(work: Workload, all_pairs: bool) -> float:
    """Returns the GFLOP of the cheapest exact method.

    They are the same for all tools, so that a share of the peak rates a tool's method as well as its code. In feature
    space they are `X^T Y` and the upper halves of `X^T X` and `Y^T Y`; with Gram matrices, the upper halves of these
    and their inner products.

    Args:
      work: sizes.
      all_pairs: whether each layer is compared with each other one, or only matching layers.
    """
    pairs = work.layers**2 if all_pairs else work.layers
    states = 2 * work.layers
    features = (2 * pairs + states) * work.n * work.d**2
    grams = states * work.n**2 * work.d + (pairs + states) * work.n**2
    return min(features, grams) / 1e9


def exact_values(states: np.ndarray, estimator: str, all_pairs: bool) -> np.ndarray:
    """Computes CKA in float64.

    Args:
      states: [2, L, n, D].
      estimator: "biased" or "debiased".
      all_pairs: whether each layer is compared with each other one, or only matching layers.

    Returns:
      [L], or [L, L] if `all_pairs`.
    """
    if not all_pairs:
        return np.array([plain_cka.ORACLES[estimator](x, y) for x, y in zip(*states, strict=True)])
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
    """Times all tools in turns, after one call each that is not timed.

    Args:
      work: sizes.
      peak: GFLOP/s of a matrix product on this machine.

    Returns:
      A JSON-ready record: sizes, and one row per tool and part: seconds, ratio to the first tool (over rounds), GFLOP/s
      of the least work, share of the peak, largest error against float64 of its estimator, extra peak memory; or why
      the tool is absent.

    Raises:
      Refusal: 2 for sizes that cannot be measured.
    """
    work.check()
    states = draw_states(work)
    rows = [row for part, tools in PARTS.items() for row in _measure_part(part, tools, states, work, peak)]
    return {**dataclasses.asdict(work), "rows": rows}


def _measure_part(
    part: str, tools: tuple[Tool, ...], states: np.ndarray, work: Workload, peak: float
) -> list[dict[str, Any]]:
    all_pairs = part == _ALL_LAYERS
    gflop = least_gflop(work, all_pairs)
    exact = {name: exact_values(states, name, all_pairs) for name in {tool.estimator for tool in tools}}
    rows: list[dict[str, Any]] = []
    runs: dict[str, Run] = {}
    errors: dict[str, float | None] = {}
    for tool in tools:
        row: dict[str, Any] = {"part": part, "name": tool.name, "estimator": tool.estimator, "exact": tool.exact}
        row["absent"] = tool.reason_absent()
        rows.append(row)
        if row["absent"]:
            continue
        with measuring.quiet():
            run = tool.prepare(states, work.batch)
            try:
                errors[tool.name] = measuring.finite_or_none(np.abs(run() - exact[tool.estimator]).max())
            except Exception as error:
                # A tool that fails is a result, too.
                row["absent"] = f"fails ({measuring.failure(error)})"
            else:
                runs[tool.name] = run
    times = measuring.time_in_turns(runs, work.rounds)
    baseline = times[next(iter(runs))]
    for row in rows:
        name = row["name"]
        if name not in runs:
            continue
        row |= measuring.summarize(times[name], baseline) | {"error": errors[name]}
        row["gflop_per_s"] = gflop / row["seconds"]
        row["share_of_peak"] = row["gflop_per_s"] / peak
        row["extra_peak_bytes"] = _extra_peak_bytes(part, name, work) if work.memory else None
        log.info("%s, %s: %.0f ms", part, name, 1e3 * row["seconds"])
    return rows


def _extra_peak_bytes(part: str, name: str, work: Workload) -> int | None:
    """Measures the peak memory of a tool in a process of its own; None if that process fails."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "bytes.json")
        arguments = [part, name, json.dumps(dataclasses.asdict(work)), str(out)]
        done = subprocess.run([sys.executable, "-c", _CHILD, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            log.warning("%s, %s: no peak memory, because its process failed: %s", part, name, done.stderr[-500:])
            return None
        return json.loads(out.read_text())


def write_extra_peak(part: str, name: str, work: str, out: str) -> None:
    """Runs in the process of a memory measurement: calls a tool twice and writes its peak memory.

    Args:
      part: one of `PARTS`.
      name: of the tool.
      work: the `Workload` as JSON.
      out: file to write.
    """
    sizes = Workload(**json.loads(work))
    machine.set_threads()
    tool = next(tool for tool in PARTS[part] if tool.name == name)
    with measuring.quiet():
        run = tool.prepare(draw_states(sizes), sizes.batch)
        Path(out).write_text(json.dumps(measuring.extra_peak_bytes(run)))


def table(record: dict[str, Any]) -> str:
    """Returns the record as a plain text table."""
    lines = [
        f"CKA of states in memory: n={record['n']}, d={record['d']}, 2 x {record['layers']} layers, offset "
        f"{record['offset']:g}; medians of {record['rounds']} rounds, ratios round by round (lowest to highest)"
    ]
    for part in PARTS:
        heads = ("CPU ratio", "GFLOP/s", "of peak", "error", "+MB")
        lines.append(f"{part:44}{'ms':>10}{'ratio':>8}{'':16}" + "".join(f"{head:>10}" for head in heads))
        lines += [_table_line(row) for row in record["rows"] if row["part"] == part]
    return "\n".join(lines)


def _table_line(row: dict[str, Any]) -> str:
    if row["absent"]:
        return f"{row['name']:44}{row['absent']}"
    memory = "-" if row["extra_peak_bytes"] is None else f"{row['extra_peak_bytes'] / 1e6:.0f}"
    error = "NaN" if row["error"] is None else f"{row['error']:.0e}"
    span = f"({row['ratio_lowest']:.2f} to {row['ratio_highest']:.2f})"
    # The least work is that of an exact value, which says nothing about an estimate.
    speed = f"{row['gflop_per_s']:>10.1f}{row['share_of_peak']:>10.0%}" if row["exact"] else f"{'estimate':>20}"
    return (
        f"{row['name']:44}{1e3 * row['seconds']:>10.1f}{row['ratio']:>8.2f} {span:15}"
        f"{row['cpu_ratio']:>10.2f}{speed}{error:>10}{memory:>10}"
    )
