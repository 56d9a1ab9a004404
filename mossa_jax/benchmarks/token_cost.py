"""The cost of a token: the speed of the programs of tuning, comparison and scoring, and where their time goes.

Each program runs several times; the median gives positions per second and, with the FLOPs by formula, the share of the
machine's peak, which is measured too. Further runs are traced; `traced_kinds` divides the time of the shortest. Tracing
itself takes time, most where instructions are short: the record has the seconds of that run as well.

The formulas count every position, padding included, and all blocks of every position. A program that does less, such as
the last block at the prompts' last tokens alone, has a share that is slightly too high.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Sequence
from typing import Any

import jax

from mossa_jax.benchmarks import machine, random_models, traced_kinds
from mossa_jax.benchmarks.measuring import time_in_turns
from mossa_jax.benchmarks.token_programs import PARTS, CompiledProgram, Programs, Workload
from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.log import log

# Runs that are traced.
_TRACED = 3
# Paths with the most time that the record names, per program.
_LONGEST = 12


def measure(
    work: Workload,
    base: str | None = None,
    preset: str | None = None,
    parts: Sequence[str] = PARTS,
    peak: float | None = None,
) -> dict[str, Any]:
    """Measures the programs `parts`, each compiled before it is timed.

    Args:
      work: sizes.
      base: a Hugging Face folder; None makes a random model.
      preset: sizes of the random model, one of `random_models.PRESETS`; None for a small one.
      parts: some of `PARTS`.
      peak: of the machine in GFLOP/s; None measures it.

    Returns:
      A JSON-ready record: machine, sizes, and one row per program with seconds, positions per second, share of the
      peak, the shares of `traced_kinds.KINDS`, and the paths that take the most time.

    Raises:
      Refusal: 2 for sizes or parts that cannot be measured, and as in `load_model`.
    """
    work.check()
    if unknown := sorted(set(parts) - set(PARTS)):
        raise Refusal(BAD_CONFIG, f"parts={','.join(unknown)}: give some of {', '.join(PARTS)}")
    record: dict[str, Any] = machine.environment()
    if peak is None:
        machine.set_threads()
        record["gflop_per_s_peak"] = machine.matmul_peak()
        peak = record["gflop_per_s_peak"]["best"]
    record |= {"peak": peak, "base": base or preset or "random"} | dataclasses.asdict(work)
    with tempfile.TemporaryDirectory() as scratch:
        if base is None:
            sizes: dict[str, Any] = random_models.PRESETS[preset] if preset else {}
            (base,) = random_models.write_models(random_models.Workload(**sizes, seed=work.seed), scratch, 1)
        programs = Programs(work, base)
        record["rows"] = []
        for part in dict.fromkeys(parts):
            log.info("%s: compiling", part)
            program = programs.compile(part)
            record["rows"].append(_measure_program(program, work.repeats, peak))
    return record


def _measure_program(program: CompiledProgram, repeats: int, peak: float) -> dict[str, Any]:
    """Returns one row of the record."""
    program.run()
    times = [run.clock for run in time_in_turns({program.name: program.run}, repeats)[program.name]]
    seconds = statistics.median(times)
    row: dict[str, Any] = {
        "name": program.name,
        "size": program.size,
        "seconds": seconds,
        "all_seconds": times,
        "positions": program.positions,
        "positions_per_s": program.positions / seconds,
        "gflop": program.flops / 1e9,
        "share_of_peak": program.flops / seconds / 1e9 / peak,
    }
    text = traced_kinds.ProgramText(program.compiled.as_text() or "")
    trace = _trace(program, text.name)
    if trace is None:
        # Not every platform's trace names the instructions.
        return row | {"traced_seconds": None, "shares": None, "longest": []}
    longest = traced_kinds.longest(text, trace, _LONGEST)
    return row | {
        "traced_seconds": (trace.end - trace.start) / 1e9,
        "shares": traced_kinds.shares(text, trace),
        "longest": [{"path": path, "kind": kind, "share": share} for path, kind, share in longest],
    }


def _trace(program: CompiledProgram, name: str) -> traced_kinds.Trace | None:
    """Traces the shortest of some runs of a program that goes by `name`."""
    options = jax.profiler.ProfileOptions()
    # The calls of Python functions would only lengthen the run.
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(_TRACED):
                with jax.profiler.TraceAnnotation(traced_kinds.ANNOTATION):
                    program.run()
        return traced_kinds.read_trace(folder, name)


def table(record: dict[str, Any]) -> str:
    """Returns the record as a plain text table."""
    kinds = list(traced_kinds.KINDS)
    lines = [
        f"The cost of a token: {record['base']}, {record['devices']} x {record['device']}, {record['cores']} cores, "
        f"load before {record['load_before']}; peak {record['peak']:,.0f} GFLOP/s; medians of {record['repeats']} runs",
        f"{'':14}{'s':>9}{'tokens/s':>11}{'of peak':>9}  " + "".join(f"{kind:>13}" for kind in kinds),
    ]
    for row in record["rows"]:
        numbers = f"{row['seconds']:>9.3f}{row['positions_per_s']:>11,.0f}{row['share_of_peak']:>9.1%}  "
        shares = row["shares"]
        cells = "".join(f"{shares[kind]:>13.1%}" if shares else f"{'-':>13}" for kind in kinds)
        lines.append(f"{row['name']:14}{numbers}{cells}")
    lines += [f"{row['name']}: {row['size']}" for row in record["rows"]]
    lines += [f"{kind}: {meaning}" for kind, meaning in traced_kinds.KINDS.items()]
    return "\n".join(lines)
