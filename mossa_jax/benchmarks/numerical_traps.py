"""Part `traps`: what each tool answers where CKA in floating point goes wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from mossa_jax.benchmarks import machine
from mossa_jax.benchmarks.cka_tools import BOTH_COLUMNS, DIAGONAL, MATRIX, Tool
from mossa_jax.errors import Refusal
from mossa_jax.similarity import reference
from mossa_jax.similarity.estimators import UndefinedSimilarity

THRESHOLD = 1e-5
N, D = 512, 128
OFFSETS = (0, 1, 3, 10, 30, 100, 1000)
VERDICTS = {
    "P": "pass: within 1e-5 of float64, or said to be undefined where it is",
    "W": "wrong, silently",
    "U": "NaN, or declared undefined, where there is a value",
    "R": "refused: ValueError or a refusal in words",
    "C": "crash: any other exception",
}


@dataclasses.dataclass(frozen=True)
class Trap:
    """Two states [n, D] and the pair [m, D] whose float64 value is the truth (rows that count, as they were meant).

    Attributes:
      name: in the table.
      x, y: as a tool gets them.
      true_x, true_y: of the truth; None where no CKA exists.
      undefined: estimators that have no value here.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    true_x: np.ndarray
    true_y: np.ndarray
    undefined: tuple[str, ...] = ()


def _pair(rng: np.random.Generator, n: int = N, d: int = D) -> tuple[np.ndarray, np.ndarray]:
    """Two states that share half of their factors."""
    shared = rng.standard_normal((n, d // 2))
    x, y = (shared @ rng.standard_normal((d // 2, d)) / np.sqrt(d) + rng.standard_normal((n, d)) for _ in range(2))
    return x.astype(np.float32), y.astype(np.float32)


def traps(seed: int = 0) -> list[Trap]:
    """All of them, drawn from `seed`."""
    rng = np.random.default_rng(seed)
    x, y = _pair(rng)
    found = []

    def add(name: str, a: np.ndarray, b: np.ndarray, rows=slice(None), undefined: tuple[str, ...] = ()) -> None:
        found.append(Trap(name, a, b, a[rows], b[rows], undefined))

    direction = rng.standard_normal((2, D)).astype(np.float32)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    spread = [np.float32(np.sqrt(np.square(s - s.mean(0)).sum(1).mean())) for s in (x, y)]
    for rho in OFFSETS:
        add(f"offset {rho} x spread", x + rho * spread[0] * direction[0], y + rho * spread[1] * direction[1])
    massive = x.copy()
    massive[:, 7] = 1e5 * np.median(np.abs(x)) * (1 + 0.1 * rng.standard_normal(N))
    add("one dimension 1e5 x median", massive, y)
    add("n < D", *_pair(rng, 64, 512))
    add("n = 4", *_pair(rng, 4, 16))
    add("every row twice", np.concatenate([x[: N // 2]] * 2), np.concatenate([y[: N // 2]] * 2))
    add("constant rows", np.broadcast_to(x[:1], x.shape).copy(), y, undefined=("biased", "debiased"))
    line = np.outer(rng.standard_normal(N), rng.standard_normal(D)).astype(np.float32)
    add("rank 1", line, (line + 0.5 * y).astype(np.float32))
    add("scale 1e-20", x * np.float32(1e-20), y * np.float32(1e-20))
    add("scale 1e20", x * np.float32(1e20), y * np.float32(1e20))
    add("bfloat16", x.astype(ml_dtypes.bfloat16), y.astype(ml_dtypes.bfloat16))
    far = (x + 3 * spread[0] * direction[0], y + 3 * spread[1] * direction[1])
    add("bfloat16, offset 3", *(a.astype(ml_dtypes.bfloat16) for a in far))
    holed = (x.copy(), y.copy())
    holed[0][3, 0], holed[1][100, 5] = np.nan, np.nan
    add("a NaN row on either side", *holed, rows=np.setdiff1d(np.arange(N), [3, 100]))
    order = rng.permutation(N)
    found.append(Trap("rows permuted alike", x[order], y[order], x, y))
    add("rows of one side permuted", x, y[order])
    # The corners of a simplex: every distance is the same, and the U-centred Gram matrix vanishes.
    add("rows equally far apart", np.eye(64, dtype=np.float32), _pair(rng, 64, 64)[1], undefined=("debiased",))
    return found


def judge(run: Callable[[], np.ndarray], truth: float | None) -> tuple[str, float | None]:
    """The verdict's letter and, where there is a number, its error (None where there should be none).

    Args:
      run: gives the value.
      truth: float64 value; None where it is undefined.
    """
    try:
        with machine.quiet(), np.errstate(all="ignore"):
            value = float(np.ravel(run())[0])
    except UndefinedSimilarity:
        value = np.nan
    except (ValueError, Refusal):
        return ("P" if truth is None else "R"), None
    except Exception:  # whatever a foreign tool raises is its result
        return ("P" if truth is None else "C"), None
    if truth is None:
        return ("P" if np.isnan(value) else "W"), None
    if np.isnan(value):
        return "U", None
    error = abs(value - truth)
    return ("P" if error <= THRESHOLD else "W"), error


def contestants() -> tuple[Tool, ...]:
    """Whoever computes matching layers or a matrix, ours first."""
    return (*DIAGONAL[:3], *BOTH_COLUMNS, MATRIX[0], *DIAGONAL[3:], *MATRIX[1:])


def measure(seed: int = 0, tools: tuple[Tool, ...] | None = None) -> dict[str, Any]:
    """Every tool over every trap; tools that average over batches get all rows as one batch, which is exact.

    Returns:
      A JSON-ready record: names of traps, and per tool its verdicts (a letter each) and errors, or why it is absent.
    """
    drawn = traps(seed)
    rows = []
    for tool in contestants() if tools is None else tools:
        row = {"name": tool.name, "estimator": tool.estimator, "absent": tool.absent()}
        rows.append(row)
        if row["absent"]:
            continue
        judged = [judge(_call(tool, trap), _truth(trap, tool.estimator)) for trap in drawn]
        row["verdicts"] = "".join(letter for letter, _ in judged)
        row["errors"] = [None if error is None else machine.or_none(error) for _, error in judged]
    return {"threshold": THRESHOLD, "seed": seed, "traps": [trap.name for trap in drawn], "rows": rows}


def _call(tool: Tool, trap: Trap) -> Callable[[], np.ndarray]:
    def run() -> np.ndarray:
        states = np.stack([trap.x, trap.y])[:, None]
        return tool.prepare(states, len(trap.x))()

    return run


def _truth(trap: Trap, estimator: str) -> float | None:
    if estimator in trap.undefined:
        return None
    compute = reference.biased if estimator == "biased" else reference.debiased
    return compute(trap.true_x.astype(np.float64), trap.true_y.astype(np.float64))


def table(record: dict[str, Any]) -> str:
    """A line a trap, a column a tool."""
    present = [row for row in record["rows"] if not row["absent"]]
    lines = [f"Traps, threshold {record['threshold']:g}"]
    lines += [f"  {number:2} {row['name']} ({row['estimator']})" for number, row in enumerate(present, 1)]
    lines += [f"   - {row['name']}: {row['absent']}" for row in record["rows"] if row["absent"]]
    lines.append(f"{'':28}" + "".join(f"{number:>4}" for number in range(1, len(present) + 1)))
    for index, name in enumerate(record["traps"]):
        lines.append(f"{name:28}" + "".join(f"{row['verdicts'][index]:>4}" for row in present))
    lines.append(f"{'passed of ' + str(len(record['traps'])):28}")
    lines[-1] += "".join(f"{row['verdicts'].count('P'):>4}" for row in present)
    return "\n".join([*lines, *(f"  {letter}  {words}" for letter, words in VERDICTS.items())])
