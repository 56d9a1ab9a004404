"""Part `traps`: the answers of each tool to states for which CKA in floating point goes wrong.

Shape letters: n rows, D width of the states.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import EllipsisType
from typing import Any

import ml_dtypes
import numpy as np

from mossa_jax.benchmarks import measuring
from mossa_jax.benchmarks.cka_tools import BOTH_COLUMNS, DIAGONAL, MATRIX, Tool
from mossa_jax.errors import Refusal
from mossa_jax.similarity import reference
from mossa_jax.similarity.estimators import UndefinedSimilarity

THRESHOLD = 1e-5
N, D = 512, 128
OFFSETS = (0, 1, 3, 10, 30, 100, 1000)
VERDICTS = {
    "P": "passed: within 1e-5 of float64, or reported as undefined if it is",
    "W": "wrong, without a warning",
    "U": "NaN or reported as undefined, although a value exists",
    "R": "refused: ValueError or a refusal in words",
    "C": "crashed: any other exception",
}


@dataclasses.dataclass(frozen=True)
class Trap:
    """Two states as a tool gets them, and the two states whose CKA in float64 is the truth.

    Attributes:
      name: in the table.
      x: [n, D], the first state.
      y: [n, D'], the second state.
      true_x: [m, D], the rows of `x` that count, in the intended order.
      true_y: [m, D'], likewise of `y`.
      undefined: estimators that have no value for these states.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    true_x: np.ndarray
    true_y: np.ndarray
    undefined: tuple[str, ...] = ()


def _pair(rng: np.random.Generator, n: int = N, d: int = D) -> tuple[np.ndarray, np.ndarray]:
    """Returns two states [n, D] that share half of their factors."""
    shared = rng.standard_normal((n, d // 2))
    x, y = (shared @ rng.standard_normal((d // 2, d)) / np.sqrt(d) + rng.standard_normal((n, d)) for _ in range(2))
    return x.astype(np.float32), y.astype(np.float32)


def draw_traps(seed: int = 0) -> list[Trap]:
    """Returns all traps, drawn from `seed`."""
    rng = np.random.default_rng(seed)
    x, y = _pair(rng)
    traps: list[Trap] = []

    def add(
        name: str,
        a: np.ndarray,
        b: np.ndarray,
        rows: np.ndarray | EllipsisType = ...,
        undefined: tuple[str, ...] = (),
    ) -> None:
        traps.append(Trap(name, a, b, a[rows], b[rows], undefined))

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
    traps.append(Trap("rows permuted alike", x[order], y[order], x, y))
    add("rows of one side permuted", x, y[order])
    # The corners of a simplex: every distance is the same, and the U-centred Gram matrix vanishes.
    add("rows equally far apart", np.eye(64, dtype=np.float32), _pair(rng, 64, 64)[1], undefined=("debiased",))
    return traps


def judge(run: Callable[[], np.ndarray], truth: float | None) -> tuple[str, float | None]:
    """Judges the answer of a tool.

    Args:
      run: returns the tool's value.
      truth: the value in float64; None if it is undefined.

    Returns:
      The letter of the verdict (`VERDICTS`), and the error of the value; None if the tool or the truth has no value.
    """
    try:
        with measuring.quiet(), np.errstate(all="ignore"):
            value = float(np.ravel(run())[0])
    except UndefinedSimilarity:
        value = np.nan
    except (ValueError, Refusal):
        return ("P" if truth is None else "R"), None
    except Exception:
        # A tool that fails is a result, too.
        return ("P" if truth is None else "C"), None
    if truth is None:
        return ("P" if np.isnan(value) else "W"), None
    if np.isnan(value):
        return "U", None
    error = abs(value - truth)
    return ("P" if error <= THRESHOLD else "W"), error


def all_tools() -> tuple[Tool, ...]:
    """Returns the tools that compare matching layers or all layers, ours first."""
    return (*DIAGONAL[:3], *BOTH_COLUMNS, MATRIX[0], *DIAGONAL[3:], *MATRIX[1:])


def measure(seed: int = 0, tools: tuple[Tool, ...] | None = None) -> dict[str, Any]:
    """Runs each tool on each trap.

    Tools that average over batches get all rows as one batch, so that their value is exact.

    Args:
      seed: of the traps.
      tools: to run; None takes all of them.

    Returns:
      A JSON-ready record: the names of the traps, and for each tool its verdicts (one letter per trap) and errors, or
      why it is absent.
    """
    traps = draw_traps(seed)
    rows = []
    for tool in all_tools() if tools is None else tools:
        row: dict[str, Any] = {"name": tool.name, "estimator": tool.estimator, "absent": tool.reason_absent()}
        rows.append(row)
        if row["absent"]:
            continue
        verdicts = [judge(_call(tool, trap), _truth(trap, tool.estimator)) for trap in traps]
        row["verdicts"] = "".join(letter for letter, _ in verdicts)
        row["errors"] = [None if error is None else measuring.finite_or_none(error) for _, error in verdicts]
    return {"threshold": THRESHOLD, "seed": seed, "traps": [trap.name for trap in traps], "rows": rows}


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
    """Returns the record as a plain text table: one line per trap, one column per tool."""
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
