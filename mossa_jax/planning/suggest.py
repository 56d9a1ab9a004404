"""Suggests the mesh and the slots with which a run takes the fewest hours on some hardware.

Candidates are ranked by formula; the best are then compiled, if there is a compiler for the hardware.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from mossa_jax.config import Config, Mesh
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.log import log
from mossa_jax.planning.forecast import plan_run
from mossa_jax.planning.stages import PlannedRun
from mossa_jax.tuning.slots import plan_slots

# How many of the best candidates by formula are compiled, until one of them fits.
_MAX_COMPILED = 3
# Numbers of micro-batches that are tried for the controls.
_PARTS = (1, 2, 4)
# Numbers of slots that are tried on a mesh. None of them costs more than `_MAX_COST` times the best one.
_MAX_SLOT_NUMBERS = 4
_MAX_COST = 1.03


class _Candidate(NamedTuple):
    """A configuration that fits by formula.

    Attributes:
      cost: products and transfers, one after the other, in seconds.
      hours: of the whole run.
      config: of the run.
    """

    cost: float
    hours: float
    config: Config


def suggest(run: PlannedRun, stages: Sequence[str]) -> tuple[PlannedRun, str]:
    """Returns the run with the mesh, the slots and, if memory asks for it, the parts and rows that take the least time.

    It tries all meshes that the hardware and the model allow, and on each mesh the numbers of slots that leave the
    fewest empty. Rows are split into micro-batches if memory asks for it. Larger batches of E, which change what is
    learnt, are tried only if nothing else fits.

    Args:
      run: as it is configured.
      stages: names of the stages that count.

    Returns:
      The run as suggested, and the text to print: the command line's overrides, and what they rest on.

    Raises:
      Refusal: 3 if nothing fits.
    """
    ranking = _rank(run, _candidates(run), stages) or _rank(run, _candidates_with_more_rows(run), stages)
    if not ranking:
        raise Refusal(
            BAD_INPUT,
            f"{run.config.name}, {run.model}: no mesh, slots and parts fit {run.hardware.name} by formula; "
            "take more chips, or plan it without --suggest to see how many bytes are missing",
        )
    too_large: list[str] = []
    for candidate in ranking[:_MAX_COMPILED]:
        suggested, overrides = replace(run, config=candidate.config), _overrides(run.config, candidate.config)
        if not run.hardware.devices or plan_run(suggested, stages, 0)["fits"]:
            lines = [f"suggested for {run.hardware.name}: {overrides}"]
            if others := ranking[1:4]:
                lines.append(f"{len(ranking)} fit by formula; next to the first ({candidate.hours:.2f} h):")
                lines += [f"{_overrides(run.config, other.config)} ({other.hours:.2f} h)" for other in others]
            lines += [f"compiled, does not fit: {other_overrides}" for other_overrides in too_large]
            return suggested, "\n".join(lines)
        too_large.append(overrides)
        log.info("%s does not fit %s when compiled", overrides, run.hardware.name)
    raise Refusal(
        BAD_INPUT,
        f"{run.config.name}, {run.model}: none of the best {len(too_large)} by formula fits {run.hardware.name} "
        f"when compiled ({'; '.join(too_large)}); take more chips",
    )


def _rank(run: PlannedRun, configs: Iterable[Config], stages: Sequence[str]) -> list[_Candidate]:
    """Returns the configurations that fit by formula, the best first.

    The cost adds products, those of recomputation included, and transfers. Of two configurations with the same hours,
    the one that recomputes less or waits less therefore comes first; and many slots come before few, because they
    share the gathered matrices.
    """
    candidates = []
    for config in configs:
        for variant in (config, _with_fewer_prompts(config)):
            try:
                plan = plan_run(replace(run, config=variant), stages, 0, compile_programs=False)
            except Refusal:
                # Rows or heads do not divide over this mesh.
                break
            if plan["fits"]:
                candidates.append(_Candidate(sum(map(_cost, plan["rows"])), plan["hours"], variant))
                break
    return sorted(candidates, key=lambda candidate: candidate.cost)


def _cost(row: dict[str, Any]) -> float:
    products = row["products_seconds"] * (1 + row["recomputed"] / row["flops"])
    return row["runs"] * (products + row["transfer_seconds"])


def _with_fewer_prompts(config: Config) -> Config:
    """Returns the configuration with a quarter of the rows in a pass of a comparison, which changes no result."""
    return replace(config, compare=replace(config.compare, batch_rows=max(config.compare.batch_rows // 4, 1)))


def _candidates(run: PlannedRun) -> Iterator[Config]:
    config = run.config
    for mesh in _meshes(run.hardware.chips):
        for slots in _slot_numbers(run, mesh.adapter):
            for parts in _PARTS:
                control = replace(config.tuning.control, parts=parts)
                if control.batch_rows % (parts * mesh.fsdp) == 0 or parts == 1:
                    yield replace(config, mesh=mesh, tuning=replace(config.tuning, slots=slots, control=control))


def _candidates_with_more_rows(run: PlannedRun) -> Iterator[Config]:
    """Yields the candidates with the rows of E rounded up to the chips that rows are spread over."""
    for config in _candidates(run):
        experimental = config.tuning.experimental
        chips = config.mesh.adapter * config.mesh.fsdp * experimental.parts
        rows = mesh_lib.round_up(experimental.batch_rows, chips)
        experimental = replace(experimental, batch_rows=rows)
        yield replace(config, tuning=replace(config.tuning, experimental=experimental))


def _meshes(chips: int) -> Iterator[Mesh]:
    sizes = [size for size in range(1, chips + 1) if chips % size == 0]
    for tensor in sizes:
        for fsdp in sizes:
            if chips % (tensor * fsdp) == 0:
                yield Mesh(chips // (tensor * fsdp), fsdp, tensor)


def _slot_numbers(run: PlannedRun, adapter: int) -> list[int]:
    """Returns the numbers of slots that cost little more than the best, empty places included; the most slots first.

    Args:
      run: that has the controls.
      adapter: chips on the adapter axis.
    """
    config, work = run.config, run.work
    shared = work.shared_ids(config, run.arch)
    steps = [work.steps(count, config.tuning.control, config.tokens.row_length, shared) for count in work.controls]
    # One number per multiple of the adapter axis: more slots on the same places are never worse.
    numbers = {min(places, len(steps)) for places in range(adapter, len(steps) + adapter, adapter)}
    costs = {slots: plan_slots(steps, slots).steps * mesh_lib.round_up(slots, adapter) for slots in numbers}
    cheapest = min(costs.values())
    return [slots for slots in sorted(numbers, reverse=True) if costs[slots] <= _MAX_COST * cheapest][
        :_MAX_SLOT_NUMBERS
    ]


def _overrides(old: Config, new: Config) -> str:
    """Returns the flags that turn `old` into `new`; those of the mesh are always given."""
    fields = {
        "tuning.slots": (old.tuning.slots, new.tuning.slots),
        "compare.batch_rows": (old.compare.batch_rows, new.compare.batch_rows),
    }
    for role in ("control", "experimental"):
        before, after = getattr(old.tuning, role), getattr(new.tuning, role)
        for name in ("parts", "batch_rows"):
            fields[f"tuning.{role}.{name}"] = (getattr(before, name), getattr(after, name))
    flags = [f"--config.mesh.{axis}={getattr(new.mesh, axis)}" for axis in mesh_lib.AXES]
    flags += [f"--config.{name}={after}" for name, (before, after) in fields.items() if after != before]
    return " ".join(flags)
