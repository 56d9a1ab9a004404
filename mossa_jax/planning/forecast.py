"""What a whole run takes on some hardware, stage by stage: memory of a chip, operations, transfers, hours, money.

Programs are compiled where that can be done without the hardware; elsewhere their memory and transfers are formulas.
Times are roofs: the products at a stated use of the peak, or the transfers between chips where these take longer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import ceil
from typing import Any

import jax.numpy as jnp

from mossa_jax.config import Config, Schedule, recompute
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.devices.memory import SHARE, bytes_on_device
from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.function.exact_match import SCORE_ROWS
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.placement import abstract_base
from mossa_jax.planning import formulas, programs
from mossa_jax.planning.formulas import Spread
from mossa_jax.planning.hardware import Hardware
from mossa_jax.planning.programs import Program
from mossa_jax.planning.workload import Work
from mossa_jax.similarity import engine
from mossa_jax.similarity.cells import pairs_of
from mossa_jax.states.forward import LEAD_STEP, abstract_kept, kept_rows, max_own_of
from mossa_jax.tuning import population
from mossa_jax.tuning.flops import step_flops
from mossa_jax.tuning.slots import plan_slots

STAGES = ("E", "controls", "scores", "states", "similarity")


@dataclass(frozen=True)
class Stage:
    """A program of a run and how often it runs.

    Attributes:
      name: one of `STAGES`.
      spread: its batch on the mesh.
      slots: models of `spread` that are no empty places.
      runs: how often the program runs in the whole experiment.
      flops: model operations of one run, of all models, in bfloat16 products.
      again: operations that recomputation adds to them, as a share.
      use: share of the chips' work that counts: rows of their own, slots that hold a model.
      remat: whether blocks are recomputed; None: by memory.
      program: remat -> the program.
      temporary: remat -> bytes a chip by formula.
      transfers: remat -> bytes that a chip receives in one run, by mesh axis and formula.
      reads: bytes that a chip reads from its memory in one run besides products (decoding).
      filled: share of the positions of the compiled batch that an average run has.
    """

    name: str
    spread: Spread
    slots: int
    runs: float
    flops: float
    again: float
    use: float
    remat: bool | None
    program: Callable[[bool], Program]
    temporary: Callable[[bool], float]
    transfers: Callable[[bool], dict[str, float]]
    reads: float = 0.0
    filled: float = 1.0


@dataclass(frozen=True)
class Planner:
    """A run on some hardware.

    Attributes:
      config: of the run.
      arch, name: of the base model.
      work: how much there is to do.
      hardware: on which.
      answers: the most answer tokens in a packed row.
      use: model operations over the chips' peak.
    """

    config: Config
    arch: Architecture
    name: str
    work: Work
    hardware: Hardware
    answers: int
    use: float

    def __post_init__(self):
        """Refuses what cannot be planned, and rows that no step can be made of.

        Raises:
          Refusal: 2.
        """
        for kind in ("control", "experimental"):
            method = getattr(self.config.tuning, kind).method
            if method != "lora":
                raise Refusal(BAD_CONFIG, f"config.tuning.{kind}.method={method!r}: only 'lora' can be planned")
        for label, schedule, grid in (
            ("controls", self.config.tuning.control, self._grid(True)),
            ("E", self.config.tuning.experimental, self._grid(False)),
        ):
            body = programs.attention_body(grid, self.config.dtype, self._shared)
            population.check_rows(f"{self.name}, {label}", schedule.batch_rows, schedule.parts, grid, body)

    def stages(self, names: Sequence[str] = STAGES) -> list[Stage]:
        """The stages of the run that are called so, in their order."""
        made = {
            "E": self._experimental,
            "controls": self._controls,
            "scores": self._scores,
            "states": self._states,
            "similarity": self._similarity,
        }
        if not self.config.tuning.score_prompts:
            del made["scores"]
        if self._streamed:
            del made["similarity"]  # its sums are made in the pass
        return [made[name]() for name in STAGES if name in names and name in made]

    def row(self, stage: Stage, compile_it: bool = True) -> dict[str, Any]:
        """What a stage takes.

        Args:
          stage: of `stages`.
          compile_it: False for formulas alone, also where programs can be compiled.

        Returns:
          `stage`; `mesh` (devices per axis), `models` (that run at once), `rows`, `row_length`, `parts`; `attention`,
          `remat`; bytes a chip: `base`, `shards`, `arguments`, `temporary`, `beside`, `total`, `room`; `fits`;
          `compiled` (False: by formula); `compile_seconds`; `flops` and `recomputed` of one run, and `used`, the share
          of the chips' work that counts; `collectives` (None where not known); `received` (bytes a chip and run);
          `products_seconds`, `transfer_seconds` and `seconds` of one run; `runs`; `hours`; `chip_hours`.
        """
        made = compile_it and bool(self.hardware.devices)
        remat, found = self._measured(stage, made)
        program, spread = stage.program(remat), stage.spread
        base = next(iter(program.beside or program.arguments))
        transfers = stage.transfers(remat)
        if found["collectives"] is None:
            received = sum(transfers.values())
            waiting = sum(size / self.hardware.received(self._span(spread, axis)) for axis, size in transfers.items())
        else:
            received = sum(part["bytes"] for part in found["collectives"])
            waiting = received / self.hardware.link
        waiting *= stage.filled
        products = stage.flops / (self.use * stage.use * self.hardware.chips * self.hardware.peak)
        reading = stage.reads / self.hardware.bandwidth
        seconds = max(products, waiting) + reading
        hours = stage.runs * seconds / 3600
        room = min(found.pop("room", self.hardware.memory), self.hardware.memory)
        return {
            "stage": stage.name,
            "mesh": dict(program.grid.shape),
            "models": stage.slots,
            "rows": spread.rows,
            "row_length": spread.row_length,
            "parts": spread.parts,
            "attention": program.attention,
            "remat": remat,
            "base": bytes_on_device(base),
            **found,
            "compiled": made,
            "room": room,
            "fits": found["total"] <= room,
            "flops": stage.flops,
            "recomputed": stage.flops * stage.again * remat,
            "used": stage.use,
            "received": received,
            "products_seconds": products,
            "transfer_seconds": waiting,
            "seconds": seconds,
            "runs": stage.runs,
            "hours": hours,
            "chip_hours": hours * self.hardware.chips,
        }

    def _measured(self, stage: Stage, made: bool) -> tuple[bool, dict[str, Any]]:
        """Whether the stage's blocks are recomputed, and the figures of `programs.compiled`, or the same by formula."""

        def measure(remat: bool) -> dict[str, Any]:
            program = stage.program(remat)
            if made:
                return programs.compiled(program)
            shards, beside = program.shards, program.around
            temporary = ceil(stage.temporary(remat))
            found = {"shards": shards, "beside": beside, "arguments": shards, "temporary": temporary}
            return found | {"total": shards + temporary + beside, "compile_seconds": None, "collectives": None}

        remat = stage.remat is True
        found = measure(remat)
        if stage.remat is None and found["total"] > SHARE * min(
            self.hardware.memory, found.get("room", self.hardware.memory)
        ):
            remat, found = True, measure(True)
        return remat, found

    @staticmethod
    def _span(spread: Spread, axis: str) -> int:
        """Neighbouring chips over which a transfer along an axis of the mesh runs: the last axis is the closest."""
        return {"tensor": spread.tensor, "fsdp": spread.fsdp * spread.tensor}[axis]

    @property
    def _shared(self) -> int:
        return self.work.shared(self.config, self.arch)

    @property
    def _pairs(self) -> tuple[tuple[int, int], ...]:
        return tuple(pairs_of(1 + self.config.compare.mismatched))

    @property
    def _compared(self) -> int:
        return 3 + self.config.compare.mismatched

    @cached_property
    def _streamed(self) -> bool:
        """Whether similarities come from moments, as `engine.choose` says for this hardware."""
        compare = self.config.compare
        if compare.pool == "all":
            return True
        costs = engine.estimate(
            self._compared, self.arch.layers + 2, self.work.prompts, self.arch.hidden, self._pairs,
            self.hardware.chips, compare.pool,
        )  # fmt: skip
        try:
            return engine.choose(costs, self.hardware.memory, compare.engine) == engine.MOMENTS
        except Refusal:  # neither fits: planned with rows that are kept, to say what is missing
            return False

    def _grid(self, adapters: bool):
        return programs.grid_for(self.hardware, self.config.mesh, self.arch, self.name, adapters)

    def _spread(self, grid, models: int, rows: int, row_length: int, parts: int = 1) -> Spread:
        sizes = (grid.shape[axis] for axis in mesh_lib.AXES)
        return Spread(*sizes, models, rows, row_length, jnp.dtype(self.config.dtype).itemsize, parts)

    def _tuning(self, name: str, schedule: Schedule, counts: Sequence[int], adapters: bool) -> Stage:
        tuning, length, shared = self.config.tuning, self.config.tokens.row_length, self._shared
        steps = [self.work.steps(count, schedule, length, shared) for count in counts]
        timeline = plan_slots(steps, min(tuning.slots, len(steps)))
        grid = self._grid(adapters)
        places = mesh_lib.round_up(timeline.slots, grid.shape["adapter"])
        spread = self._spread(grid, places, schedule.batch_rows, length, schedule.parts)
        sizes = {"row_length": length, "rank": tuning.rank, "targets": tuning.targets, "answers": self.answers}
        sizes |= {"rows": schedule.batch_rows}
        flops = step_flops(self.arch, **sizes)

        def program(remat: bool) -> Program:
            return programs.tuning_program(
                self.arch, grid, dtype=self.config.dtype, slots=places, remat=remat, parts=schedule.parts,
                prefix=shared, max_own=max(self.config.tokens.max_tokens - shared, 0), **sizes,
            )  # fmt: skip

        return Stage(
            name,
            spread,
            timeline.slots,
            timeline.steps,
            timeline.utilisation * timeline.slots * flops["model"],
            flops["recomputed"] / flops["model"],
            spread.used * timeline.utilisation * timeline.slots / places,
            recompute(tuning.remat),
            program,
            lambda remat: formulas.tuning_bytes(self.arch, spread, remat),
            lambda remat: formulas.tuning_transfers(self.arch, spread, tuning.rank, tuning.targets, remat),
        )

    def _experimental(self) -> Stage:
        counts = [self.work.mixture] * self.work.models
        return self._tuning("E", self.config.tuning.experimental, counts, adapters=False)

    def _controls(self) -> Stage:
        return self._tuning("controls", self.config.tuning.control, self.work.controls, adapters=True)

    def _scores(self) -> Stage:
        tuning, tokens, grid = self.config.tuning, self.config.tokens, self._grid(False)
        prompts = min(tuning.score_prompts, self.work.prompts)
        rows = mesh_lib.round_up(min(SCORE_ROWS, mesh_lib.round_up(prompts, 16)), grid.shape["fsdp"])
        models, width = 3, mesh_lib.round_up(tokens.max_tokens, 32)
        spread = self._spread(grid, models, rows, width)
        usual = min(self.work.head + self.work.ids, width)
        position = formulas.forward_flops(self.arch, 1, int(usual)) + 2 * self.arch.vocab * self.arch.hidden
        sizes = {"dtype": self.config.dtype, "models": models, "rank": tuning.rank, "targets": tuning.targets}
        size = {"rows": rows, "width": width, "new_tokens": tuning.score_tokens}
        cache = formulas.cache_bytes(self.arch, spread, tuning.score_tokens) * usual / width
        weights = bytes_on_device(abstract_base(self.arch, grid, self.config.dtype))
        return Stage(
            "scores",
            spread,
            models,
            self.work.tasks * ceil(prompts / rows),
            models * rows * (usual + tuning.score_tokens) * position,
            0.0,
            1.0,
            False,
            lambda _: programs.score_program(self.arch, grid, **sizes, **size),
            lambda _: formulas.score_bytes(self.arch, spread, tuning.score_tokens),
            lambda _: formulas.score_transfers(self.arch, spread, tuning.score_tokens),
            reads=tuning.score_tokens * (weights + cache),
            filled=usual / width,
        )

    def _states(self) -> Stage:
        config, grid, shared = self.config, self._grid(False), self._shared
        length, pool = config.tokens.row_length, config.compare.pool
        prefix = 0 if pool == "all" else shared
        own = self.work.prompts * (self.work.ids + self.work.head - prefix)
        rows = mesh_lib.round_up(min(config.compare.batch_rows, ceil(own / length)), grid.shape["fsdp"])
        spread = self._spread(grid, self._compared, rows, length)
        runs = self.work.tasks * ceil(own / (rows * length))
        flops = self.work.tasks * self._compared * formulas.forward_flops(self.arch, own, length)
        pairs = self._pairs if self._streamed else ()
        if pairs:
            each = own if pool == "all" else self.work.prompts
            flops += self.work.tasks * formulas.moments_flops(self.arch, self._compared, each, pairs, pool)
        tuning = config.tuning
        kept = bytes_on_device(abstract_kept(self.arch, grid, self._compared, self.work.prompts))
        return Stage(
            "states",
            spread,
            self._compared,
            runs,
            flops / runs,
            0.0,
            1.0,
            False,
            lambda _: programs.states_program(
                self.arch, grid, dtype=config.dtype, models=self._compared, rank=tuning.rank, targets=tuning.targets,
                rows=rows, row_length=length, prompts=self.work.prompts, pool=pool,
                prefix=mesh_lib.round_up(prefix, LEAD_STEP), pairs=pairs,
                max_own=max_own_of(config.tokens.max_tokens - prefix),
            ),
            lambda _: formulas.states_bytes(self.arch, spread, kept),
            lambda _: formulas.states_transfers(self.arch, spread),
        )  # fmt: skip

    def _similarity(self) -> Stage:
        config, grid = self.config, self._grid(False)
        models, prompts, draws = self._compared, self.work.prompts, config.compare.permutations
        rows = kept_rows(prompts, grid.shape["fsdp"])
        spread = self._spread(grid, models, rows, 1)
        return Stage(
            "similarity",
            spread,
            models,
            self.work.tasks,
            formulas.similarity_flops(self.arch, models, prompts, self._pairs, draws),
            0.0,
            1.0,
            False,
            lambda _: programs.similarity_program(
                self.arch, grid, dtype=config.dtype, models=models, prompts=prompts, pairs=self._pairs,
                permutations=draws,
            ),
            lambda _: formulas.similarity_bytes(self.arch, models, rows),
            lambda _: formulas.similarity_transfers(self.arch, spread, models, rows),
        )  # fmt: skip


def table(planner: Planner, stages: Sequence[str], price: float, compile_it: bool = True) -> dict[str, Any]:
    """The plan of a run: `rows`, one a stage (`Planner.row`), and their sums.

    Args:
      planner: of the run.
      stages: names of those to plan.
      price: of an hour of one chip; 0: not known.
      compile_it: as of `Planner.row`.
    """
    rows = [planner.row(stage, compile_it) for stage in planner.stages(stages)]
    found = {
        "config": planner.config.name,
        "model": planner.name,
        "topology": planner.hardware.name,
        "chips": planner.hardware.chips,
        "use": planner.use,
        "work": asdict(planner.work),
        "rows": rows,
    }
    found |= {part: sum(row[part] for row in rows) for part in ("hours", "chip_hours")}
    found["operations"] = sum(row["flops"] * row["runs"] for row in rows)
    return found | {"fits": all(row["fits"] for row in rows), "price": price * found["chip_hours"] or None}
