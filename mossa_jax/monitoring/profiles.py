"""Traces of a few steps, for xprof and Perfetto. They never stop a run: a failure is one warning."""

from __future__ import annotations

import importlib.util
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jax
from etils import epath

from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.files.write import write_bytes
from mossa_jax.log import log

_WARM = 10  # default number of steps before the first traced one: programs are compiled by then
_TUNING = ("E", "controls")


@dataclass(frozen=True)
class Profile:
    """The steps of each tuning stage to trace; of the comparison, the second task is traced.

    Attributes:
      first: index of the first traced step, from 0 at the start of the stage in this process.
      count: number of traced steps.
    """

    first: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Profile | None:
        """Parses the value of --profile.

        Args:
          text: "FIRST:COUNT", "COUNT", or empty.

        Returns:
          The steps; None for an empty text.

        Raises:
          Refusal: 2 for any other text, and where tracing would end the process.
        """
        if not text:
            return None
        match = re.fullmatch(r"(?:([1-9]\d*):)?([1-9]\d*)", text)
        if not match:
            raise Refusal(BAD_CONFIG, f"--profile={text}: give a number of steps, as 5, or FIRST:COUNT, as 20:5")
        # jax loads libtpu wherever it is installed (planning needs it), and libtpu's tracer fails without a TPU.
        backend = jax.default_backend()
        platforms = jax.config.jax_platforms  # type: ignore[attr-defined]  # jax declares its options at run time
        if backend != "tpu" and not platforms and importlib.util.find_spec("libtpu"):
            name = "cuda" if backend == "gpu" else backend
            raise Refusal(
                BAD_CONFIG, f"--profile={text}: libtpu is installed on a machine without TPU; set JAX_PLATFORMS={name}"
            )
        return cls(int(match[1]) if match[1] else _WARM, int(match[2]))

    def of(self, stage: str, folder: epath.Path) -> Trace | None:
        """Returns the trace of a stage of the run in this folder; None for stages that are not traced."""
        if stage in _TUNING:
            return Trace(self.first, self.count, stage, folder)
        return Trace(1, 1, stage, folder) if stage == "compare" else None


class Trace:
    """This process's trace of one stage, in `profile/<stage>/<process>/` of the run folder."""

    def __init__(self, first: int, count: int, stage: str, folder: epath.Path):
        self._first, self._count, self._stage = first, count, stage
        self._folder = folder / "profile" / stage / str(jax.process_index())
        self._steps = 0
        self._local: tempfile.TemporaryDirectory | None = None
        self._is_over = False

    def due(self) -> bool:
        """Counts a step; returns whether it is the last one before the traced steps, or the last of these."""
        self._steps += 1
        return not self._is_over and self._steps == self._first + (self._count if self._local else 0)

    def turn(self) -> None:
        """Begins the trace, or ends and writes it; a failure is one warning."""
        try:
            if self._local is None:
                self._begin()
            else:
                self._write(self._local)
        except Exception as error:
            self._is_over = True
            log.warning("%s: no trace: %s: %s", self._stage, type(error).__name__, " ".join(str(error).split())[:200])

    def close(self) -> None:
        """Ends a trace that has begun, and warns if none has."""
        if self._is_over:
            return
        if self._local:
            self.turn()
        else:
            log.warning(
                "%s: no trace: --profile begins after step %d, but this attempt took %d steps",
                self._stage,
                self._first,
                self._steps,
            )

    def _begin(self) -> None:
        # Written to a local disk and copied, since the run folder may be in an object store.
        self._local = tempfile.TemporaryDirectory(prefix="mossa-profile-")
        jax.profiler.start_trace(self._local.name, create_perfetto_trace=True)

    def _write(self, local: tempfile.TemporaryDirectory[str]) -> None:
        self._is_over = True
        with local as name:
            jax.profiler.stop_trace()
            for path in Path(name).rglob("*"):
                if path.is_file():
                    write_bytes(self._folder / str(path.relative_to(name)), path.read_bytes())
        last = self._steps - 1
        log.info("%s: traced steps %d to %d into %s", self._stage, self._first, last, self._folder)
