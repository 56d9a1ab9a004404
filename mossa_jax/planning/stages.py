"""The six stages of a run on some hardware: each with its program, its formulas and how often it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import ceil

import jax.numpy as jnp

from mossa_jax.config import Config, Schedule, recompute
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.devices.memory import bytes_on_device
from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.function.answers import SCORED_MODELS, AnswerConfig, halved_rows, rows_that_fit
from mossa_jax.function.information import SWAPS
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.placement import abstract_base
from mossa_jax.planning import formulas, programs
from mossa_jax.planning.formulas import Transfers
from mossa_jax.planning.hardware import Hardware
from mossa_jax.planning.programs import Program
from mossa_jax.planning.sizes import AdapterSize, Base, BatchLayout, BatchSize, PrefixSize
from mossa_jax.planning.workload import Workload
from mossa_jax.similarity import engine
from mossa_jax.similarity.lineup import Lineup
from mossa_jax.states.keep import abstract_kept
from mossa_jax.states.shapes import PREFIX_MULTIPLE, rounded_max_own, row_slots
from mossa_jax.tuning import population
from mossa_jax.tuning.flops import forward_flops, likelihood_flops, step_flops
from mossa_jax.tuning.slots import plan_slots

STAGES = ("E", "controls", "scores", "likelihoods", "states", "similarity")

# The most programs per stage: full batches and a task's last one. Ids that prompts share are one more, counted as long
# as a batch. E and the controls have one step each. Likelihoods have one for each number of models.
_PROGRAMS = {"scores": 2, "likelihoods": 2, "states": 2, "similarity": 2}


@dataclass(frozen=True)
class Stage:
    """A stage of a run: one program and how often it runs.

    Attributes:
      name: one of `STAGES`.
      layout: of its batch on the mesh.
      models: the number of models in `layout`, without empty slots.
      runs: how often the program runs in the whole experiment.
      flops: model operations of one run, over all models, in bfloat16 products.
      program: remat -> the program, where remat says whether blocks are recomputed.
      temporary_bytes: remat -> temporary bytes per chip, by formula.
      transfers: remat -> bytes that a chip receives in one run, by formula.
      remat: whether blocks are recomputed; None decides by memory.
      recomputed_share: operations that recomputation adds, as a share of `flops`.
      useful_share: share of the chips' work that counts: rows that no other chip works on, slots that hold a model.
      read_bytes: bytes that a chip reads from its memory in one run, beside those of its products (in decoding).
      filled_share: share of the positions of the compiled batch that an average run fills.
      programs: how many programs like this one the run compiles, at most. It does not grow with the number of tasks.
    """

    name: str
    layout: BatchLayout
    models: int
    runs: float
    flops: float
    program: Callable[[bool], Program]
    temporary_bytes: Callable[[bool], float]
    transfers: Callable[[bool], Transfers]
    remat: bool | None = False
    recomputed_share: float = 0.0
    useful_share: float = 1.0
    read_bytes: float = 0.0
    filled_share: float = 1.0
    programs: int = 1


@dataclass(frozen=True)
class PlannedRun:
    """A run on some hardware.

    Attributes:
      config: of the run.
      arch: the base model's.
      model: name of the base model.
      work: how much work the run has.
      hardware: that it runs on.
      answers: the most answer tokens in a packed row.
      use: model operations per second, as a share of the chips' peak.
    """

    config: Config
    arch: Architecture
    model: str
    work: Workload
    hardware: Hardware
    answers: int
    use: float

    def __post_init__(self) -> None:
        """Refuses methods that cannot be planned, and rows that no training step can take.

        Raises:
          Refusal: 2.
        """
        tuning = self.config.tuning
        for role, schedule in (("control", tuning.control), ("experimental", tuning.experimental)):
            if schedule.method != "lora":
                raise Refusal(
                    BAD_CONFIG, f"config.tuning.{role}.method={schedule.method!r}: only 'lora' can be planned"
                )
        for label, schedule in (("controls", tuning.control), ("E", tuning.experimental)):
            population.check_rows(f"{self.model}, {label}", schedule.batch_rows, schedule.parts)

    def stages(self, names: Sequence[str] = STAGES) -> list[Stage]:
        """Returns those of the stages `names` that the run has, in the order of the run."""
        builders = {
            "E": self._experimental,
            "controls": self._controls,
            "scores": self._scores,
            "likelihoods": self._likelihoods,
            "states": self._states,
            "similarity": self._similarity,
        }
        if not self.config.tuning.score_prompts:
            del builders["scores"], builders["likelihoods"]
        if self.is_streamed:
            # The forward pass sums the moments, from which similarities follow at once.
            del builders["similarity"]
        return [build() for name, build in builders.items() if name in names]

    @property
    def _shared_ids(self) -> int:
        return self.work.shared_ids(self.config, self.arch)

    @property
    def _pairs(self) -> tuple[tuple[int, int], ...]:
        return self._lineup.pairs

    @property
    def _compared_models(self) -> int:
        return self._lineup.models

    @property
    def _lineup(self) -> Lineup:
        """The largest lineup of a task, with the places of further seeds and a twin if the run has any."""
        return max(self._lineups, key=lambda lineup: lineup.models)

    @cached_property
    def _lineups(self) -> dict[Lineup, int]:
        """The models that a task compares, and the number of such tasks."""
        tuning, tasks, repeated = self.config.tuning, self.work.tasks, self.work.repeated
        plain = Lineup(self.config.compare.mismatched, experimental_seeds=tuning.seeds - 1)
        if not repeated:
            return {plain: tasks}
        seeds = (tuning.control_seeds - 1) * bool(tuning.seeded)
        return {plain: tasks - repeated, replace(plain, control_seeds=seeds, twins=int(bool(tuning.twins))): repeated}

    @cached_property
    def is_streamed(self) -> bool:
        """Whether similarities come from moments, as `engine.choose` decides for this hardware."""
        compare = self.config.compare
        if compare.pool == "all":
            return True
        costs = engine.estimate_costs(
            self._compared_models, self.arch.layers + 2, self.work.prompts, self.arch.hidden, self._pairs,
            self.hardware.chips, compare.pool,
        )  # fmt: skip
        try:
            return engine.choose(costs, self.hardware.memory, compare.engine) == engine.MOMENTS
        except Refusal:
            # Neither fits. Kept rows are planned, so that the plan says how many bytes are missing.
            return False

    def _base(self, adapters: bool) -> Base:
        grid = programs.grid_for(self.hardware, self.config.mesh, self.arch, self.model, adapters)
        return Base(self.arch, self.config.dtype, grid, self.hardware.is_tpu)

    def _adapters(self, models: int) -> AdapterSize:
        return AdapterSize(models, self.config.tuning.rank, tuple(self.config.tuning.targets))

    def _experimental(self) -> Stage:
        examples = [self.work.mixture] * self.work.experimental_models
        return self._tuning("E", self.config.tuning.experimental, examples, self._base(adapters=False))

    def _controls(self) -> Stage:
        return self._tuning("controls", self.config.tuning.control, self.work.controls, self._base(adapters=True))

    def _tuning(self, name: str, schedule: Schedule, examples: Sequence[int], base: Base) -> Stage:
        """Returns a stage that trains one model on each of the numbers of `examples`."""
        tuning, tokens, shared = self.config.tuning, self.config.tokens, self._shared_ids
        steps = self.work.steps_taken.get(name) or [
            self.work.steps(count, schedule, tokens.row_length, shared) for count in examples
        ]
        timeline = plan_slots(steps, min(tuning.slots, len(steps)))
        places = mesh_lib.round_up(timeline.slots, base.grid.shape["adapter"])
        batch, adapters = BatchSize(schedule.batch_rows, tokens.row_length), self._adapters(places)
        layout = BatchLayout.of(base, places, batch, schedule.parts)
        flops = step_flops(
            self.arch, rows=batch.rows, row_length=batch.row_length, rank=adapters.rank, targets=adapters.targets,
            answers=self.answers,
        )  # fmt: skip
        prefix = PrefixSize(shared, max(tokens.max_tokens - shared, 0))
        return Stage(
            name=name,
            layout=layout,
            models=timeline.slots,
            runs=timeline.steps,
            flops=timeline.utilisation * timeline.slots * flops["model"],
            program=lambda remat: programs.tuning_program(
                base, adapters, batch, self.answers, remat=remat, parts=schedule.parts, prefix=prefix
            ),
            temporary_bytes=partial(formulas.tuning_bytes, self.arch, layout),
            transfers=partial(formulas.tuning_transfers, self.arch, layout, adapters),
            remat=recompute(tuning.remat),
            recomputed_share=flops["recomputed"] / flops["model"],
            useful_share=layout.distinct_share * timeline.utilisation * timeline.slots / places,
        )

    def _scores(self) -> Stage:
        tuning, tokens, base = self.config.tuning, self.config.tokens, self._base(adapters=False)
        prompts = min(tuning.score_prompts, self.work.prompts)
        new_tokens, itemsize = tuning.score_tokens, jnp.dtype(base.dtype).itemsize
        answers = AnswerConfig(tokens.max_tokens, new_tokens)
        most = rows_that_fit(self.arch, base.grid, itemsize, self.hardware.memory, answers)
        rows = mesh_lib.round_up(min(most, mesh_lib.round_up(prompts, 16)), base.grid.shape["fsdp"])
        width = mesh_lib.round_up(tokens.max_tokens, 32)
        batch, adapters = BatchSize(rows, width), self._adapters(SCORED_MODELS)
        layout = BatchLayout.of(base, adapters.models, batch)
        usual_length = min(self.work.template_ids + self.work.example_ids, width)
        flops = forward_flops(self.arch, 1, int(usual_length)) + 2 * self.arch.vocab * self.arch.hidden
        cache = formulas.cache_bytes(self.arch, layout, new_tokens) * usual_length / width
        weights = bytes_on_device(abstract_base(self.arch, base.grid, base.dtype))
        return Stage(
            name="scores",
            layout=layout,
            models=adapters.models,
            runs=self.work.tasks * ceil(prompts / rows),
            flops=adapters.models * rows * (usual_length + new_tokens) * flops,
            program=lambda _: programs.score_program(base, adapters, batch, new_tokens),
            temporary_bytes=lambda _: formulas.score_bytes(self.arch, layout, new_tokens),
            transfers=lambda _: formulas.score_transfers(self.arch, layout, new_tokens),
            read_bytes=new_tokens * (weights + cache),
            filled_share=usual_length / width,
            programs=_PROGRAMS["scores"],
        )

    def _likelihoods(self) -> Stage:
        """Returns the stage that reads given answers: each scored prompt's own one, and those of other prompts."""
        config, base, length = self.config, self._base(adapters=False), self.config.tokens.row_length
        prompts, tokens = min(config.tuning.score_prompts, self.work.prompts), config.tokens
        shared, models = self._shared_ids, self._compared_models - config.compare.mismatched
        positions = prompts * (self.work.example_ids + self.work.template_ids - shared)
        itemsize, memory = jnp.dtype(base.dtype).itemsize, self.hardware.memory
        most = halved_rows(
            config.compare.batch_rows, self.arch, base.grid, itemsize, memory, length + tokens.max_tokens, models
        )
        rows = mesh_lib.round_up(min(most, ceil(positions / length)), base.grid.shape["fsdp"])
        # Half a row's columns for answers, and as many turns of them as the answers of its prompts need.
        batch, adapters, columns = BatchSize(rows, length), self._adapters(models), mesh_lib.round_up(length // 2, 32)
        layout, runs = BatchLayout.of(base, models, BatchSize(rows, columns)), ceil(positions / (rows * length))
        answers = prompts * (1 + SWAPS) * self.answers * self.work.example_ids / length
        each = likelihood_flops(self.arch, positions, answers, length)
        scored = sum(tasks * (lineup.models - config.compare.mismatched) for lineup, tasks in self._lineups.items())
        prefix = PrefixSize(
            mesh_lib.round_up(shared, PREFIX_MULTIPLE), rounded_max_own(config.tokens.max_tokens - shared)
        )
        return Stage(
            name="likelihoods",
            layout=layout,
            models=models,
            runs=self.work.tasks * runs,
            flops=scored * each / (self.work.tasks * runs),
            program=lambda _: programs.likelihood_program(base, adapters, batch, columns, prefix=prefix),
            temporary_bytes=lambda _: formulas.likelihood_bytes(self.arch, layout),
            transfers=lambda _: formulas.likelihood_transfers(self.arch, layout),
            programs=_PROGRAMS["likelihoods"],
        )

    def _states(self) -> Stage:
        config, base = self.config, self._base(adapters=False)
        models, prompts = self._compared_models, self.work.prompts
        length, pool = config.tokens.row_length, config.compare.pool
        shared = 0 if pool == "all" else self._shared_ids
        positions = prompts * (self.work.example_ids + self.work.template_ids - shared)
        rows = mesh_lib.round_up(min(config.compare.batch_rows, ceil(positions / length)), base.grid.shape["fsdp"])
        batch, adapters = BatchSize(rows, length), self._adapters(models)
        layout = BatchLayout.of(base, models, batch)
        runs = self.work.tasks * ceil(positions / (rows * length))
        pairs = self._pairs if self.is_streamed else ()
        compared_rows = positions if pool == "all" else prompts
        flops = 0.0
        for lineup, tasks in self._lineups.items():
            flops += tasks * lineup.models * forward_flops(self.arch, positions, length)
            if pairs:
                flops += tasks * formulas.moments_flops(
                    self.arch, lineup.models, compared_rows, lineup.pairs, pool, self.hardware.exact_products
                )
        prefix = PrefixSize(
            mesh_lib.round_up(shared, PREFIX_MULTIPLE), rounded_max_own(config.tokens.max_tokens - shared)
        )
        kept = bytes_on_device(abstract_kept(self.arch, base.grid, models, prompts))
        return Stage(
            name="states",
            layout=layout,
            models=models,
            runs=runs,
            flops=flops / runs,
            program=lambda _: programs.states_program(
                base, adapters, batch, prompts, pool=pool, prefix=prefix, pairs=pairs
            ),
            temporary_bytes=lambda _: formulas.states_bytes(self.arch, layout, kept),
            transfers=lambda _: formulas.states_transfers(self.arch, layout),
            programs=_PROGRAMS["states"] + bool(shared),
        )

    def _similarity(self) -> Stage:
        base, permutations = self._base(adapters=False), self.config.compare.permutations
        models, prompts, pairs = self._compared_models, self.work.prompts, self._pairs
        rows = row_slots(prompts, base.grid.shape["fsdp"])
        layout = BatchLayout.of(base, models, BatchSize(rows, 1))
        kept = bytes_on_device(abstract_kept(self.arch, base.grid, models, prompts))
        products = self.hardware.exact_products, self.hardware.fast_products
        flops = sum(
            tasks * formulas.similarity_flops(self.arch, lineup.models, prompts, lineup.pairs, permutations, *products)
            for lineup, tasks in self._lineups.items()
        )
        return Stage(
            name="similarity",
            layout=layout,
            models=models,
            runs=self.work.tasks,
            flops=flops / self.work.tasks,
            program=lambda _: programs.similarity_program(base, models, prompts, pairs, permutations),
            temporary_bytes=lambda _: formulas.similarity_bytes(self.arch, layout, kept),
            transfers=lambda _: formulas.similarity_transfers(self.arch, layout),
            programs=_PROGRAMS["similarity"],
        )
