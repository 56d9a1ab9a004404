"""A trace of some steps, for xprof and Perfetto. It never stops a run: what goes wrong with it is one warning."""

from __future__ import annotations

import importlib.util
import logging
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jax
from etils import epath

from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.files.write import write_bytes

log = logging.getLogger("mossa_jax")

_WARM = 10  # steps before the first one that is traced, where nobody says: programs are compiled by then
_TUNING = ("E", "controls")


@dataclass(frozen=True)
class Profile:
    """Which steps to trace of each tuning stage; of comparing, the second task is traced.

    Attributes:
      first: of the traced steps, counted from 0 since the stage began in this process.
      count: of traced steps.
    """

    first: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Profile | None:
        """From what --profile says: "FIRST:COUNT" or "COUNT"; None for an empty text.

        Raises:
          Refusal: 2 for anything else, and where tracing would end the process.
        """
        if not text:
            return None
        found = re.fullmatch(r"(?:([1-9]\d*):)?([1-9]\d*)", text)
        if not found:
            raise Refusal(BAD_CONFIG, f"--profile={text}: give a number of steps, as 5, or FIRST:COUNT, as 20:5")
        # jax loads libtpu wherever it is installed (launch.plan needs it), and its tracer cannot do without a TPU.
        backend = jax.default_backend()
        if backend != "tpu" and not jax.config.jax_platforms and importlib.util.find_spec("libtpu"):
            name = "cuda" if backend == "gpu" else backend
            raise Refusal(
                BAD_CONFIG, f"--profile={text}: libtpu is installed on a machine without TPU; set JAX_PLATFORMS={name}"
            )
        return cls(int(found[1]) if found[1] else _WARM, int(found[2]))

    def of(self, stage: str, folder: epath.Path) -> Trace | None:
        """The trace to make of a stage of the run in this folder, if any."""
        if stage in _TUNING:
            return Trace(self.first, self.count, stage, folder)
        return Trace(1, 1, stage, folder) if stage == "compare" else None


class Trace:
    """The trace of one stage by this process, in `profile/<stage>/<process>/` of the run folder."""

    def __init__(self, first: int, count: int, stage: str, folder: epath.Path):
        self._first, self._count, self._stage = first, count, stage
        self._folder = folder / "profile" / stage / str(jax.process_index())
        self._steps = 0
        self._local: tempfile.TemporaryDirectory | None = None
        self._over = False

    def due(self) -> bool:
        """Counts one more step; whether it is the last one before the traced ones, or the last one of them."""
        self._steps += 1
        return not self._over and self._steps == self._first + (self._count if self._local else 0)

    def turn(self) -> None:
        """Begins the trace, or ends and writes it."""
        try:
            self._write() if self._local else self._begin()
        except Exception as error:
            self._over = True
            log.warning("%s: no trace: %s: %s", self._stage, type(error).__name__, " ".join(str(error).split())[:200])

    def close(self) -> None:
        """Ends a trace that is under way, and says so where none was begun."""
        if self._over:
            return
        if self._local:
            self.turn()
        else:
            log.warning(
                "%s: no trace: --profile begins behind step %d, and this attempt took %d",
                self._stage, self._first, self._steps,
            )  # fmt: skip

    def _begin(self) -> None:
        # Written here and copied: the run folder may be a bucket.
        self._local = tempfile.TemporaryDirectory(prefix="mossa-profile-")
        jax.profiler.start_trace(self._local.name, create_perfetto_trace=True)

    def _write(self) -> None:
        self._over = True
        with self._local as name:
            jax.profiler.stop_trace()
            for path in Path(name).rglob("*"):
                if path.is_file():
                    write_bytes(self._folder / str(path.relative_to(name)), path.read_bytes())
        last = self._steps - 1
        log.info("%s: trace of steps %d to %d in %s", self._stage, self._first, last, self._folder)
