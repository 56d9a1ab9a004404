"""What each analysis beside the comparison costs, by formula: operations, memory, hours.

Nothing is compiled. An analysis costs forward passes, products of float32 matrices, factorisations, or time of one
processor of the host, for which all chips wait. Analyses of states take those that the comparison computes.

Shape letters: D hidden width, K = L + 2 states of a model, n prompts, m = min(n, D), T tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Any

import jax.numpy as jnp

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.function.information import SWAPS
from mossa_jax.function.profile import profile_variants, sources
from mossa_jax.function.variant_schedule import choose_lanes, make_schedule, schedule_size
from mossa_jax.function.variants import row_bytes
from mossa_jax.llama.adapters import target_sizes
from mossa_jax.planning import formulas, programs
from mossa_jax.planning.sizes import Base, BatchLayout, BatchSize
from mossa_jax.planning.stages import PlannedRun
from mossa_jax.similarity.lineup import OWN
from mossa_jax.similarity.measures.panel import VARIANTS, panel_operations
from mossa_jax.tuning.flops import forward_flops

FACTORISATION_SHARE = 0.1
"""Assumed: the speed of QR, SVD and eigenvalues, as a share of that of products."""

SNAPSHOTS = 4
"""Snapshots per model for which the trajectory is priced where `tuning.snapshots` asks for none."""

# Operations of all eigenvalues of a symmetric matrix, and of one QR or SVD, over m^3; assumed.
_EIGENVALUES, _FACTORISATION = 10, 20
# Conjugate gradient steps that solve for related rows; assumed.
_RELATED_STEPS = 8
# The base, E and the own control.
_OWN_MODELS = OWN + 1
# The most models and pairs of the panel of measures, as `run.analyse` has them.
_PANEL_MODELS, _PANEL_PAIRS = 5, 4
# Matrices of n x n float32 numbers of a layer that is split by factors.
_FACTOR_MATRICES = 36
# Depths of the map of states, each drawn for two models.
_DEPTHS = 5
# The most lanes of a layer profile, and the share of a chip's memory that its states may take.
_LANES, _STATES_SHARE = 16, 0.5
_FLOAT32 = 4

# Seconds of one processor, measured on a busy one (docs/measurements.md): to tell states apart, per pair of states and
# dimension; their two maps, per state; to read a prompt; the angles of an update with three others, per block and
# target; the mean of updates, per width and squared rank.
_APART = 2.1 / (1_920**2 * 1_024)
_MAPS = 50.0 / 1_920
_READ = 0.96 / 256
_ANGLES = 0.006
_MEAN = 0.15 / (8_192 * 480**2)


@dataclass(frozen=True)
class AnalysisCost:
    """The work of one analysis over all its tasks.

    Attributes:
      tasks: that it looks at.
      models: per task.
      prompts: per task, at most.
      reason: its formula, in words.
      passes: forward passes of one model over a task's prompts that it adds.
      flops: operations of products, in bfloat16 products that take as long.
      factorisations: operations of factorisations, likewise.
      transfer_seconds: that its passes wait for transfers between chips, beyond their products.
      host_seconds: of one processor, for which the chips wait.
      bytes: that it adds on a chip.
    """

    tasks: int
    models: int
    prompts: int
    reason: str
    passes: float = 0.0
    flops: float = 0.0
    factorisations: float = 0.0
    transfer_seconds: float = 0.0
    host_seconds: float = 0.0
    bytes: float = 0.0


def plan_analyses(run: PlannedRun, price: float = 0.0) -> dict[str, Any]:
    """Prices every analysis of a run, whether the run asks for it or not.

    Args:
      run: to plan.
      price: of one chip for one hour; 0 if it is not known.

    Returns:
      JSON-ready: `rows`, per analysis `analysis`, `wanted` (whether the run makes it), `note` (why not, or for what it
      is priced), the fields of `AnalysisCost`, `seconds`, `hours`, `chip_hours` and `price` (None if it is not known);
      the sums `hours`, `chip_hours` and `price` over those that are wanted.
    """
    work = AnalysisWork(run)
    rows = [_row(work, name, price) for name in ANALYSES]
    hours = sum(row["hours"] for row in rows if row["wanted"])
    chip_hours = hours * run.hardware.chips
    return {"rows": rows, "hours": hours, "chip_hours": chip_hours, "price": price * chip_hours or None}


def _row(work: AnalysisWork, name: str, price: float) -> dict[str, Any]:
    run, cost = work.run, ANALYSES[name](work)
    config, chips = run.config, run.hardware.chips
    wanted, note = bool(getattr(config.analyse, name)), ""
    if name in _OF_STATES and config.compare.pool == "all":
        wanted, note = False, "compare.pool='all' keeps no states"
    elif name == "trajectory" and not config.tuning.snapshots:
        wanted, note = False, f"tuning.snapshots=0; priced for {SNAPSHOTS}"
    speed = run.use * run.hardware.peak * chips
    products = cost.flops + cost.factorisations / FACTORISATION_SHARE
    seconds = products / speed + cost.transfer_seconds + cost.host_seconds
    figures = {"seconds": seconds, "hours": seconds / 3600, "chip_hours": chips * seconds / 3600}
    money = price * figures["chip_hours"] or None
    return {"analysis": name, "wanted": wanted, "note": note, **vars(cost), **figures, "price": money}


@dataclass(frozen=True)
class AnalysisWork:
    """The analyses of a run, each with its work.

    Attributes:
      run: to plan.
    """

    run: PlannedRun

    @property
    def _chips(self) -> int:
        return self.run.hardware.chips

    @property
    def _tasks(self) -> int:
        return self.run.work.tasks

    @property
    def _states(self) -> int:
        """K, the states of a model."""
        return self.run.arch.layers + 2

    @property
    def _exact(self) -> float:
        return self.run.hardware.exact_products

    @cached_property
    def _base(self) -> Base:
        run = self.run
        grid = programs.grid_for(run.hardware, run.config.mesh, run.arch, run.model, adapters=False)
        return Base(run.arch, run.config.dtype, grid, run.hardware.is_tpu)

    def _prompts(self, most: int | None = None) -> int:
        """Returns the prompts of a task whose states an analysis sees, at most `most`."""
        prompts = self.run.work.prompts
        if self.run.is_streamed:
            prompts = min(prompts, self.run.config.analyse.prompts)
        return prompts if most is None else min(prompts, most)

    def _pass(self, models: int, examples: int, tasks: int, rank: int = 0) -> dict[str, float]:
        """Returns the flops and transfer_seconds of forward passes over so many examples of each task.

        Args:
          models: that run at once.
          examples: prompts, or pairs of prompt and answer, of a task.
          tasks: T.
          rank: of an adapter that is too large to leave out.
        """
        run, length = self.run, self.run.config.tokens.row_length
        shared = run.work.shared_ids(run.config, run.arch)
        positions = run.work.positions(examples, length, shared)
        most = min(run.config.compare.batch_rows, ceil(positions / length))
        rows = mesh_lib.round_up(most, self._base.grid.shape["fsdp"])
        layout = BatchLayout.of(self._base, models, BatchSize(rows, length))
        sizes = target_sizes(run.arch)
        adapter = 2 * rank * run.arch.layers * sum(sum(sizes[target]) for target in run.config.tuning.targets)
        flops = models * (forward_flops(run.arch, positions, length) + adapter * positions)
        received = formulas.states_transfers(run.arch, layout)
        waiting = self._waiting(received, positions / (rows * length), flops, tasks)
        return {"flops": tasks * flops, "transfer_seconds": waiting}

    def _waiting(self, received: formulas.Transfers, batches: float, flops: float, tasks: int) -> float:
        """Returns the seconds for which passes wait for transfers, beyond their products."""
        hardware, grid = self.run.hardware, dict(self._base.grid.shape)
        seconds = sum(size / hardware.receive_rate(grid, (axis,)) for (_, axis), size in received.items())
        return tasks * max(0.0, batches * seconds - flops / (self.run.use * self._chips * hardware.peak))

    def _similarities(self, models: int, rows: int, pairs: list[tuple[int, int]]) -> float:
        """Returns the operations of comparing one task's states without a null."""
        return formulas.similarity_flops(self.run.arch, models, rows, pairs, 0, self._exact, 1.0)

    def spectrum(self) -> AnalysisCost:
        """Eigenvalues of the smaller of Gram and covariance matrix of each state."""
        n, width = self._prompts(), self.run.arch.hidden
        m, matrices = min(n, width), self._tasks * _OWN_MODELS * self._states
        return AnalysisCost(
            self._tasks, _OWN_MODELS, n, "a product 2 n D m and eigenvalues 10 m^3 of each of 3 T K states",
            flops=self._exact * matrices * 2 * n * width * m,
            factorisations=self._exact * matrices * _EIGENVALUES * m**3,
            bytes=2 * _OWN_MODELS * _FLOAT32 * (m**2 + n * width),
        )  # fmt: skip

    def map(self) -> AnalysisCost:
        """A sample of each task's states, and on the host whether they can be told apart, and two maps."""
        config = self.run.config.analyse
        n = self._prompts(config.map_prompts)
        points, width = self._tasks * n, min(self.run.arch.hidden, config.map_dimensions)
        return AnalysisCost(
            self._tasks, 2, n, "on the host: neighbours and probes of T n states, 2 K times, and t-SNE 10 times",
            flops=self._exact * 2 * points * 2 * self._states * self.run.arch.hidden * width,
            host_seconds=2 * self._states * _APART * points**2 * width + 2 * _DEPTHS * _MAPS * points,
        )  # fmt: skip

    def correlates(self) -> AnalysisCost:
        """Readability of prompts, on the host."""
        n = min(self.run.work.prompts, self.run.config.analyse.correlates_prompts)
        return AnalysisCost(
            self._tasks, 0, n, "on the host: T n prompts are read", host_seconds=self._tasks * n * _READ
        )

    def factors(self) -> AnalysisCost:
        """Projections of Gram matrices, layer by layer."""
        config = self.run.config.analyse
        n, layers = self._prompts(config.factor_prompts), self._tasks * self._states
        # Of each of three matrices: four times a projection on both sides, and three times one on one side, with those
        # of the steps that solve for related rows; then six products of each of two pairs.
        cubes = _OWN_MODELS * (4 * 4 + 3 * 2) * (2 + _RELATED_STEPS) + 2 * 6
        # Each permutation of a factor reads a matrix.
        read = 2 * 3 * (config.factor_permutations + 1) * _FLOAT32 * n**2
        return AnalysisCost(
            self._tasks, _OWN_MODELS, n,
            f"{cubes} n^3 and 6 n^2 D of each of T K layers, with {_RELATED_STEPS} steps for related rows",
            flops=self._exact * layers * (cubes * n**3 + 2 * _OWN_MODELS * n**2 * self.run.arch.hidden),
            transfer_seconds=layers * read / (self.run.hardware.bandwidth * self._chips),
            bytes=_FACTOR_MATRICES * _FLOAT32 * n**2,
        )  # fmt: skip

    def measures(self) -> AnalysisCost:
        """Other measures on a subset, and the other pooling."""
        config = self.run.config.analyse
        tasks, n = self.run.work.chosen["measures"], self._prompts(config.measures_prompts)
        layers = min(config.measures_layers, self.run.arch.layers)
        operations = panel_operations(_PANEL_MODELS, layers, n, self.run.arch.hidden, _PANEL_PAIRS, len(VARIANTS) + 1)
        passes = self._pass(_OWN_MODELS, n, tasks)
        passes["flops"] += self._exact * tasks * operations
        return AnalysisCost(
            tasks, _PANEL_MODELS, n,
            f"a pass of 3 models; 4 variants at {layers} blocks, with sorts and factorisations counted as products",
            passes=tasks * _OWN_MODELS,
            bytes=_FLOAT32 * _PANEL_MODELS * layers * n * self.run.arch.hidden / self._chips,
            **passes,
        )  # fmt: skip

    def layers(self) -> AnalysisCost:
        """Every state of three models against every other one."""
        tasks, n = self.run.work.chosen["layers"], self._prompts(self.run.config.analyse.layers_prompts)
        states, width = _OWN_MODELS * self._states, self.run.arch.hidden
        return AnalysisCost(
            tasks, _OWN_MODELS, n, "n^2 D of the Gram matrix of each of 3 K states, and n^2 of each pair of them",
            flops=self._exact * tasks * (states * n**2 * width + states**2 * n**2),
            bytes=_FLOAT32 * states * n * width / self._chips,
        )  # fmt: skip

    def weights(self) -> AnalysisCost:
        """Angles of updates, on the host."""
        config, layers = self.run.config, self.run.arch.layers
        return AnalysisCost(
            self._tasks, 2, 0, "on the host: factorisations of D x rank, per task, block and target",
            host_seconds=self._tasks * layers * len(config.tuning.targets) * _ANGLES,
        )  # fmt: skip

    def merged(self) -> AnalysisCost:
        """The mean of the specialists: one more model over the prompts, and over given answers."""
        run, config = self.run, self.run.config
        n, specialists = self._prompts(config.analyse.merged_prompts), run.work.mixture_tasks
        full = specialists * config.tuning.rank
        rank = min(full, config.analyse.merged_rank, run.arch.hidden)
        sizes = target_sizes(run.arch)
        widths = sum(sum(sizes[target]) for target in config.tuning.targets)
        pairs = min(config.tuning.score_prompts, run.work.prompts) * (1 + SWAPS)
        passes = self._pass(1, n + pairs, self._tasks, rank)
        passes["flops"] += self._tasks * self._similarities(4, n, [(3, 2), (3, 1), (1, 2), (0, 2)])
        return AnalysisCost(
            self._tasks, 1, n, f"a pass over n prompts and {pairs:,} answers with rank {rank}; 4 pairs of 4 models",
            passes=self._tasks, host_seconds=run.arch.layers * widths * full**2 * _MEAN,
            bytes=_FLOAT32 * (8 * self._states * n * run.arch.hidden / self._chips + run.arch.layers * rank * widths),
            **passes,
        )  # fmt: skip

    def profile(self) -> AnalysisCost:
        """Variants of E and of a specialist, whose states form a tree."""
        run, length, fsdp = self.run, self.run.config.tokens.row_length, self._base.grid.shape["fsdp"]
        config, layers, itemsize = run.config.analyse, run.arch.layers, jnp.dtype(run.config.dtype).itemsize
        n = min(run.work.prompts, config.profile_prompts)
        variants = sources(profile_variants(layers, config.profile_layers))
        schedule = make_schedule(variants, schedule_size(variants, choose_lanes(variants, _LANES)))
        # Each prompt has its own answer and another one. A row of states is one of all slots.
        positions = run.work.positions(2 * n, length, run.work.shared_ids(run.config, run.arch))
        size = row_bytes(run.arch, variants, length, itemsize)
        room = int(_STATES_SHARE * run.hardware.memory // size) * fsdp
        rows = mesh_lib.round_up(max(min(room, ceil(positions / length)), 1), fsdp)
        # Lanes without work run all the same.
        runs = schedule.size.turns * schedule.size.lanes
        layout = BatchLayout.of(self._base, ceil(runs / layers), BatchSize(rows, length))
        head = 2 * run.arch.vocab * run.arch.hidden * run.answers * schedule.size.slots / length
        flops = positions * head + runs / layers * forward_flops(run.arch, positions, length)
        waiting = self._waiting(
            formulas.states_transfers(run.arch, layout), positions / (rows * length), flops, self._tasks
        )
        return AnalysisCost(
            self._tasks, len(variants), n,
            f"{schedule.steps} blocks of variants that share states, {runs} with empty lanes, over {2 * n} answers",
            passes=self._tasks * runs / layers, flops=self._tasks * flops, transfer_seconds=waiting,
            bytes=size * rows / fsdp,
        )  # fmt: skip

    def trajectory(self) -> AnalysisCost:
        """Passes of the snapshots of E and of each specialist, and their similarity with the end."""
        run, tasks = self.run, self.run.work.chosen["trajectory"]
        n = min(run.work.prompts, run.config.analyse.trajectory_prompts)
        # Before training, the snapshots, the end, and the end of another seed.
        models = (run.config.tuning.snapshots or SNAPSHOTS) + 3
        passes = self._pass(models, n, 2 * tasks)
        passes["flops"] += 2 * tasks * self._similarities(models, n, [(each, models - 2) for each in range(models - 2)])
        return AnalysisCost(
            tasks, models, n, f"two passes of {models} models per task, and their similarities",
            passes=2 * tasks * models, bytes=_FLOAT32 * models * self._states * n * run.arch.hidden / self._chips,
            **passes,
        )  # fmt: skip


ANALYSES: dict[str, Callable[[AnalysisWork], AnalysisCost]] = {
    "spectrum": AnalysisWork.spectrum,
    "map": AnalysisWork.map,
    "correlates": AnalysisWork.correlates,
    "factors": AnalysisWork.factors,
    "measures": AnalysisWork.measures,
    "layers": AnalysisWork.layers,
    "weights": AnalysisWork.weights,
    "merged": AnalysisWork.merged,
    "profile": AnalysisWork.profile,
    "trajectory": AnalysisWork.trajectory,
}
"""Name of an analysis, as its field in `config.analyse` -> its work."""

_OF_STATES = ("spectrum", "map", "factors", "measures", "layers", "merged")
