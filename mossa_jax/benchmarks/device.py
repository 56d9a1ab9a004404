"""One visit to a GPU or TPU: every program checked first, then measured at the shape of a published model.

Nothing is read from a network or a disk: weights are random, and drawn on the device. Each item begins only if the
time that it is likely to take is left; the record is written after every item, so that an end at any time loses one
item at most.

The files, in the order in which to read them: `device_inputs`, `device_reference`, `device_programs`, `device_checks`,
`device_timing`, `device_speed`, `device_torch`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import subprocess
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import jax

from mossa_jax.benchmarks import device_torch, machine
from mossa_jax.benchmarks.device_checks import run_checks
from mossa_jax.benchmarks.device_inputs import SHAPES, Sizes
from mossa_jax.benchmarks.device_speed import Bench, Row
from mossa_jax.benchmarks.device_timing import Clock
from mossa_jax.benchmarks.measuring import failure
from mossa_jax.devices.memory import device_room
from mossa_jax.errors import BAD_CONFIG, INTERNAL, Refusal
from mossa_jax.files.write import write_json
from mossa_jax.llama.architecture import architecture_from_config
from mossa_jax.log import log

PARTS = ("checks", "torch", "forward", "tuning", "states", "overhead", "similarity", "decoding")
"""The parts, in their order."""

_PACKAGES = (
    "jaxlib", "jax-cuda12-plugin", "jax-cuda12-pjrt", "jax-cuda13-plugin", "jax-cuda13-pjrt", "libtpu",
    "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia-cublas", "nvidia-cublas-cu12", "optax", "ml_dtypes", "peft",
)  # fmt: skip
# Seconds that an item is likely to take on an accelerator, most of them for its compiler: it begins if they are left.
_CHECKS, _TORCH, _ITEM = 60, 60, 30
# The share of the time that torch may take.
_TORCH_SHARE = 0.25


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a visit measures.

    Attributes:
      shape: name of the model's shape, one of `SHAPES`.
      sizes: of the measurements.
      minutes: after which nothing new begins.
      parts: some of `PARTS`.
      out: JSON file that is written after every item; None for none.
    """

    shape: str
    sizes: Sizes
    minutes: float = 9
    parts: tuple[str, ...] = PARTS
    out: str | None = None

    def check(self) -> None:
        """Refuses a plan that cannot work.

        Raises:
          Refusal: 2.
        """
        unknown = sorted(set(self.parts) - set(PARTS))
        if unknown or not self.parts:
            raise Refusal(BAD_CONFIG, f"parts={','.join(self.parts)}: give some of {', '.join(PARTS)}")
        sizes = self.sizes
        if sizes.row_length % sizes.example:
            raise Refusal(BAD_CONFIG, f"row_length={sizes.row_length}: give a multiple of {sizes.example}")
        for field in dataclasses.fields(sizes):
            if getattr(sizes, field.name) < 1:
                raise Refusal(BAD_CONFIG, f"{field.name}={getattr(sizes, field.name)}: give at least 1")


class Visit:
    """The items of a plan, their record, and what went wrong.

    Attributes:
      record: JSON-ready: `environment`, `plan`, `failures`, `skipped`, `notes`, `checks` and `rows`.
    """

    def __init__(self, plan: Plan, say: Callable[[str], object] = print):
        """Starts the clock.

        Args:
          plan: what to measure.
          say: takes each line of progress.
        """
        plan.check()
        self._plan, self._say = plan, say
        self._clock = Clock(plan.minutes)
        self._bench = Bench(plan.shape, plan.sizes, self._clock)
        self.record: dict[str, Any] = {
            "environment": environment(),
            "plan": dataclasses.asdict(plan),
            "failures": [],
            "skipped": [],
            "notes": [],
            "checks": [],
            "rows": [],
        }

    def run(self) -> dict[str, Any]:
        """Works through all items and returns the record."""
        self._say(headline(self.record))
        bench, sizes = self._bench, self._plan.sizes
        items: list[tuple[str, str, float, Callable[[], Sequence[Row]]]] = [
            ("checks", "every program against float64", _CHECKS, self._check),
            ("torch", "torch, in a process of its own", _TORCH, self._measure_torch),
            ("", "peaks", 15, bench.measure_peaks),
            ("forward", "forward pass", _ITEM, bench.measure_forward),
            ("tuning", "LoRA step, 1 adapter", _ITEM, lambda: bench.measure_tuning(1)),
            ("tuning", f"LoRA step, {sizes.adapters} adapters", _ITEM, lambda: bench.measure_tuning(sizes.adapters)),
            ("states", "states, shared prefix", 2 * _ITEM, bench.measure_states),
            ("overhead", "comparison, last", 2 * _ITEM, lambda: bench.measure_overhead("last")),
            ("similarity", "CKA alone", _ITEM, bench.measure_similarity),
            ("decoding", "decoding", 2 * _ITEM, bench.measure_decoding),
            ("overhead", "comparison, mean", 2 * _ITEM, lambda: bench.measure_overhead("mean")),
            ("overhead", "comparison, all", 2 * _ITEM, lambda: bench.measure_overhead("all")),
        ]
        measures = set(self._plan.parts) - {"checks", "torch"}
        for part, name, seconds, measure in items:
            if part in self._plan.parts or (not part and measures):
                self._take(name, seconds, measure)
        self._compare_with_torch()
        self._compare_with_passes()
        self._save()
        return self.record

    def _take(self, name: str, seconds: float, measure: Callable[[], Sequence[Row]]) -> None:
        """Measures one item, unless the time is too short; a failure is recorded and the next item follows."""
        # A CPU, at the sizes for one, takes a fraction.
        needed = seconds / 10 if jax.default_backend() == "cpu" else seconds
        if self._clock.left() < needed:
            self.record["skipped"].append(name)
            self._say(f"[{self._clock.spent():4.0f} s] {name}: skipped, {self._clock.left():.0f} s are left")
        else:
            self._say(f"[{self._clock.spent():4.0f} s] {name}")
            try:
                for row in measure():
                    self.record["rows"].append(row)
                    self._say(f"         {line(row)}")
            except Exception as error:
                log.exception("%s failed", name)
                self.record["failures"].append(f"{name}: {failure(error)}")
                self._say(f"         FAILED: {failure(error)}")
            gc.collect()
        self._save()

    def _save(self) -> None:
        self.record["seconds"] = round(self._clock.spent(), 1)
        if self._plan.out:
            write_json(self._plan.out, self.record)

    def _check(self) -> Sequence[Row]:
        failed_kernels = set()
        for checks in run_checks():
            self.record["checks"] += [dataclasses.asdict(check) | {"passed": check.passed} for check in checks]
            self.record["failures"] += [str(check) for check in checks if not check.passed]
            failed_kernels |= {check.attention for check in checks if not check.passed} - {"xla"}
            for check in checks:
                self._say(f"         {check}")
            self._save()
        if failed_kernels:
            # A wrong program is not worth measuring, and one that fails cannot be.
            os.environ["MOSSA_ATTENTION"] = "xla"
            self.record["notes"].append(
                f"everything is measured with MOSSA_ATTENTION=xla: {', '.join(failed_kernels)} failed its checks"
            )
            self._say(f"         {self.record['notes'][-1]}")
        return ()

    def _measure_torch(self) -> Sequence[Row]:
        sizes, config = self._plan.sizes, SHAPES[self._plan.shape]
        arch = architecture_from_config(config, self._plan.shape)
        work = {
            "config": config,
            "device": "cpu" if jax.default_backend() == "cpu" else "cuda",
            "rows": sizes.rows,
            "row_length": sizes.row_length,
            "example": sizes.example,
            "answer": sizes.example // 4,
            "kept": sizes.kept,
            "layers": arch.layers + 2,
            "repeats": sizes.repeats,
        }
        rows, notes = device_torch.measure(work, max(_TORCH_SHARE * 60 * self._plan.minutes, _TORCH / 2))
        self.record["notes"] += notes
        for note in notes:
            self._say(f"         {note}")
        return rows

    def _compare_with_torch(self) -> None:
        """Adds to our rows how many times torch's rate theirs is, and to torch's rows their share of the peak."""
        rows = {row["name"]: row for row in self.record["rows"]}
        many = f"LoRA step, {self._plan.sizes.adapters} adapters"
        pairs = {"forward": "forward", many: "PEFT step", "LoRA step, 1 adapter": "PEFT step", "CKA alone": "CKA alone"}
        for ours, theirs in ((rows.get(name), rows.get(f"torch: {other}")) for name, other in pairs.items()):
            if ours and theirs:
                ours["of_torch"] = ours["rate"] / theirs["rate"]
                if "flops" not in theirs and ours.get("share"):
                    # The same model: as many operations per token.
                    theirs |= {key: ours[key] / ours["of_torch"] for key in ("share", "tflop_per_s")}
        for row in rows.values():
            if "flops" in row and (peak := self._bench.peaks.get(row["peak"])):
                speed = row["flops"] / row["seconds"]
                row |= {"share": speed / peak, "tflop_per_s": speed / 1e12}

    def _compare_with_passes(self) -> None:
        """Notes what share of the passes of as many prompts the similarity takes: a figure that grows with n."""
        rows = {row["name"]: row for row in self.record["rows"]}
        alone, similarity = rows.get("passes alone, last"), rows.get("CKA alone")
        if alone and similarity:
            passes = alone["seconds"] * similarity["n"] / self._plan.sizes.prompts
            share = similarity["seconds"] / passes
            similarity["share_of_passes"] = share
            self.record["notes"].append(
                f"by arithmetic: CKA of {similarity['n']:,} kept prompts takes {share:.2%} of the time of their passes"
            )


def measure(plan: Plan, say: Callable[[str], object] = print) -> dict[str, Any]:
    """Checks and measures, and returns the record; arguments as in `Visit`."""
    return Visit(plan, say).run()


def environment() -> dict[str, Any]:
    """Describes versions, driver, device and its memory."""
    about = machine.environment()
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            about["versions"][name] = metadata.version(name)
    device = jax.devices()[0]
    about["runtime"] = device.client.platform_version
    about["memory_bytes"] = device_room(device)
    about["flags"] = {name: os.environ[name] for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS") if name in os.environ}
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit", "--format=csv"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        about["driver"] = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    return about


def headline(record: dict[str, Any]) -> str:
    """Returns the device and the versions as text."""
    about, plan = record["environment"], record["plan"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        f"{about['device']} ({about['platform']}), {(about['memory_bytes'] or 0) / 2**30:.0f} GiB; {about['runtime']}",
        *about.get("driver", "").splitlines()[1:],
        versions,
        f"{plan['shape']}, random weights in bfloat16; at most {plan['minutes']:g} minutes",
    ]
    return "\n".join(lines)


def line(row: Row) -> str:
    """Returns one row of the table as text."""
    rate = f"{row['rate']:>12,.1f} {row['unit']:9}" if row["rate"] else " " * 22
    speed = f"{row['tflop_per_s']:>8,.1f}" if row.get("tflop_per_s") else " " * 8
    share = f"{row['share']:>8.1%}" if row["share"] else " " * 8
    ratio = next((f"{row[key]:>8.2f}" for key in ("of_torch", "ratio") if row.get(key)), " " * 8)
    compiled = f"{row['compile_seconds']:>9.1f}" if row["compile_seconds"] is not None else " " * 9
    size = f"{row['program_bytes'] / 2**30:>8.2f}" if row["program_bytes"] else " " * 8
    return f"{row['name']:36}{row['size']:42}{1e3 * row['seconds']:>10.1f}{rate}{speed}{share}{ratio}{compiled}{size}"


def table(record: dict[str, Any]) -> str:
    """Returns the record as a plain text table, failures first."""
    failed = record["failures"]
    counts = sum(check["passed"] for check in record["checks"]), len(record["checks"])
    lines = [f"FAILED: {text}" for text in failed]
    lines += [
        f"{counts[0]} of {counts[1]} checks passed; {record['seconds']:.0f} s in all",
        headline(record),
        f"{'':36}{'':42}{'ms':>10}{'rate':>12}{'':10}{'TFLOP/s':>8}{'of peak':>8}{'ratio':>8}{'compiled':>9}{'GiB':>8}",
        *map(line, record["rows"]),
        "ratio: rate over that of torch; for states and passes, time over that of the first of their two rows. "
        "compiled: seconds of XLA. GiB: the largest program with its arguments, or torch's peak.",
    ]
    if record["skipped"]:
        lines.append(f"skipped, no time left: {', '.join(record['skipped'])}")
    return "\n".join([*lines, *record["notes"]])


def require_success(record: dict[str, Any]) -> None:
    """Refuses a record with failures.

    Raises:
      Refusal: 1, with their number and the first of them.
    """
    if failed := record["failures"]:
        raise Refusal(INTERNAL, f"{len(failed)} failures on this device, the first: {failed[0]}")
