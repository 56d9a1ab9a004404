"""Part `checks` of `device`: every program of a run on this device at small sizes, against float64 NumPy.

In float32 an error has a fixed bound. In bfloat16 the attention kernel of the device is held against the `xla` body:
its error may be twice as large at most. Errors of states and gradients are shares of their norms.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax

from mossa_jax.benchmarks import device_programs
from mossa_jax.benchmarks.device_programs import Cases, Program
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
_WORKERS = 6


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


def run_checks() -> Iterator[list[Check]]:
    """Checks all programs in float32, then those with attention in bfloat16, with the `xla` body and with the kernel.

    Yields:
      The checks of a group as soon as they are done: a kernel may end the process.
    """
    exact = Cases("float32")
    body = _body(exact.model)
    outcomes = _run(device_programs.PROGRAMS, exact)
    yield [check for name, outcome in outcomes.items() for check in _checks_of(name, outcome, "float32", body, {})]
    if not device_programs.WITH_ATTENTION:
        return
    narrow = Cases("bfloat16")
    kernel = _body(narrow.model)
    with _attention("xla"):
        plain = _run(device_programs.WITH_ATTENTION, narrow)
    yield [check for name, outcome in plain.items() for check in _checks_of(name, outcome, "bfloat16", "xla", {})]
    if kernel == "xla":
        return
    with _attention(kernel):
        outcomes = _run(device_programs.WITH_ATTENTION, narrow)
    others = {name: outcome for name, outcome in plain.items() if isinstance(outcome, dict)}
    yield [
        check
        for name, outcome in outcomes.items()
        for check in _checks_of(name, outcome, "bfloat16", kernel, others.get(name, {}))
    ]


def _body(model: Model) -> str:
    """Returns the body of attention that this device takes for a model."""
    arch = model.architecture
    return choose_body(model.mesh, jax.tree.leaves(model.state)[0].dtype, arch.head_dim, arch.attention_cap)


def _run(programs: Mapping[str, Program], cases: Cases) -> dict[str, dict[str, float] | str]:
    """Runs programs; each has its errors by figure, or the text of its failure."""

    def errors_of(program: Program) -> dict[str, float] | str:
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
