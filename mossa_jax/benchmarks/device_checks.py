"""Part `checks` of `device`: every program of a run on this device at small sizes, against float64 NumPy.

In float32 an error has a fixed bound. In bfloat16 the attention kernel of the device is held against the `xla` body:
its error may be twice as large at most. Errors of states and gradients are shares of their norms.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax

from mossa_jax.benchmarks import device_programs
from mossa_jax.benchmarks.device_programs import Cases
from mossa_jax.benchmarks.measuring import failure
from mossa_jax.llama.attention import choose_body
from mossa_jax.llama.files.load import Model
from mossa_jax.log import log

_BOUNDS = {
    # float32, and the largest that any body may have in bfloat16.
    "loss": (1e-5, 2e-2),
    "gradients": (1e-4, 1e-1),
    "updates": (1e-3, 1e-3),
    "states": (1e-4, 5e-2),
    "gap to the likeliest token": (1e-3, 0.5),
    "CKA": (1e-6, 0.1),
}
# An error in bfloat16 that needs no comparison.
_SMALL = 2e-3
_WORKERS = 4


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
      program: that was checked.
      figure: what was compared, one of the names in `_BOUNDS`.
      dtype: of the base.
      attention: the body of attention.
      error: the largest; None if the program failed.
      bound: that it must not exceed.
      failure: of the program; "" if it ran.
    """

    program: str
    figure: str
    dtype: str
    attention: str
    error: float | None
    bound: float
    failure: str = ""

    @property
    def passed(self) -> bool:
        """Whether the error is within its bound; NaN is not."""
        return self.error is not None and self.error <= self.bound

    def __str__(self) -> str:
        """Returns one line of the table."""
        error = f"{self.error:.1e}" if self.error is not None else self.failure
        verdict = "ok" if self.passed else "FAILED"
        name = f"{self.program}: {self.figure}"
        return f"{verdict:7}{name:62}{self.dtype:>9} {self.attention:7}{error:>9} (at most {self.bound:.1e})"


def run_checks(log_line: Callable[[str], object] = log.info) -> list[Check]:
    """Checks all programs in float32, and those with attention in bfloat16.

    Args:
      log_line: called with a line after each group of checks.
    """
    checks: list[Check] = []
    exact = Cases("float32")
    body = _body(exact.model)
    for program, errors in _run(device_programs.PROGRAMS, exact).items():
        checks += _checks_of(program, errors, "float32", body, {})
    log_line(f"float32: {sum(check.passed for check in checks)} of {len(checks)} checks passed")
    if not device_programs.WITH_ATTENTION:
        return checks
    narrow = Cases("bfloat16")
    kernel = _body(narrow.model)
    with _attention("xla"):
        plain = _run(device_programs.WITH_ATTENTION, narrow)
    for program, errors in plain.items():
        checks += _checks_of(program, errors, "bfloat16", "xla", {})
    if kernel != "xla":
        with _attention(kernel):
            with_kernel = _run(device_programs.WITH_ATTENTION, narrow)
        for program, errors in with_kernel.items():
            others = plain[program]
            checks += _checks_of(program, errors, "bfloat16", kernel, others if isinstance(others, dict) else {})
    count = [check.passed for check in checks if check.dtype == "bfloat16"]
    log_line(f"bfloat16, {' and '.join(dict.fromkeys(('xla', kernel)))}: {sum(count)} of {len(count)} checks passed")
    return checks


def _body(model: Model) -> str:
    """Returns the body of attention that this device takes for a model."""
    return choose_body(model.mesh, jax.tree.leaves(model.state)[0].dtype, model.architecture.head_dim)


def _run(programs: Mapping[str, Callable[[Cases], dict[str, float]]], cases: Cases) -> dict[str, Any]:
    """Runs programs; each has its errors by figure, or the text of its failure."""

    def errors_of(program: Callable[[Cases], dict[str, float]]) -> dict[str, float] | str:
        try:
            return program(cases)
        except Exception as error:
            log.exception("a program failed")
            return failure(error)

    # In threads, because nearly all of the time is the compiler's.
    with ThreadPoolExecutor(min(_WORKERS, os.cpu_count() or 1)) as pool:
        return dict(zip(programs, pool.map(errors_of, programs.values()), strict=True))


def _checks_of(
    program: str, errors: dict[str, float] | str, dtype: str, body: str, others: Mapping[str, float]
) -> list[Check]:
    """Returns the checks of one program.

    Args:
      program: its name.
      errors: by figure, or the text of a failure.
      dtype: of the base.
      body: of attention.
      others: errors of the `xla` body that a kernel is held against; {} if there are none.
    """
    if isinstance(errors, str):
        return [Check(program, "runs", dtype, body, None, 0.0, errors)]
    bounds = {figure: _BOUNDS[figure][dtype == "bfloat16"] for figure in errors}
    bounds |= {figure: min(max(2 * other, _SMALL), bounds[figure]) for figure, other in others.items()}
    make = partial(Check, program, dtype=dtype, attention=body)
    return [make(figure, error=float(error), bound=bounds[figure]) for figure, error in errors.items()]


@contextlib.contextmanager
def _attention(body: str) -> Iterator[None]:
    """Makes every program that is traced meanwhile take one body of attention."""
    name = "MOSSA_ATTENTION"
    before = os.environ.get(name)
    os.environ[name] = body
    # The body is chosen while a program is traced, and is not part of its key.
    jax.clear_caches()
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
        jax.clear_caches()
