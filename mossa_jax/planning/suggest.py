"""Which mesh and slots a run is best given on some hardware: chosen by formula, then compiled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from mossa_jax.config import Config, Mesh
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.log import log
from mossa_jax.planning.forecast import Planner, table
from mossa_jax.tuning.slots import plan_slots

_COMPILED = 3  # of the best by formula, until one fits
_PARTS = (1, 2, 4)  # that the rows of a control are worked through in
_SLOTS = 4  # numbers of slots that are looked at on a mesh, each of which costs at most so much more than the best
_WORSE = 1.03


def suggest(planner: Planner, stages: Sequence[str]) -> tuple[Planner, str]:
    """The planner with the mesh, the slots and, where needed, parts and rows that take the fewest hours.

    What is looked at: all meshes that the hardware and the model allow; on each the numbers of slots that leave the
    fewest empty; rows worked through in parts where memory asks for it; larger batches of E only where no other fits,
    since they change what is learnt. Formulas put them in order; the best are compiled until one fits.

    Args:
      planner: of the run as it is configured.
      stages: names of those that count.

    Returns:
      (planner, the overrides of the command line with what they rest on).

    Raises:
      Refusal: 3 where nothing fits.
    """
    found = _ranked(planner, _candidates(planner), stages)
    if not found:
        found = _ranked(planner, _larger(planner), stages)
    if not found:
        raise Refusal(
            BAD_INPUT,
            f"{planner.config.name}, {planner.name}: no mesh, slots and parts fit {planner.hardware.name} by formula; "
            "take more chips, or plan it without --suggest to see how many bytes are missing",
        )
    tried = []
    for hours, config in found[:_COMPILED]:
        chosen = replace(planner, config=config)
        if not planner.hardware.devices or table(chosen, stages, 0)["fits"]:
            rest = [f"{_overrides(planner.config, other)} ({hours:.2f} h)" for hours, other in found[1:4]]
            lines = [f"suggested for {planner.hardware.name}: {_overrides(planner.config, config)}"]
            lines += [f"{len(found)} fit by formula; next to the first ({hours:.2f} h):", *rest] if rest else []
            return chosen, "\n".join([*lines, *(f"compiled, does not fit: {text}" for text in tried)])
        tried.append(_overrides(planner.config, config))
        log.info("%s does not fit %s when compiled", tried[-1], planner.hardware.name)
    raise Refusal(
        BAD_INPUT,
        f"{planner.config.name}, {planner.name}: none of the best {len(tried)} by formula fits {planner.hardware.name} "
        f"when compiled ({'; '.join(tried)}); take more chips",
    )


def _ranked(planner: Planner, candidates: Iterable[Config], stages: Sequence[str]) -> list[tuple[float, Config]]:
    """(hours, configuration) of those that fit by formula, the best first.

    What is counted is products, those of recomputation with them, and transfers, one after the other: so that of two
    with the same hours the one that recomputes less or waits less comes first, and many slots, which share what is
    gathered, before few.
    """
    found = []
    for first in candidates:
        for config in (first, _fewer_prompts(first)):
            try:
                made = table(replace(planner, config=config), stages, 0, compile_it=False)
            except Refusal:  # rows or heads that cannot be spread so
                break
            if made["fits"]:
                found.append((sum(map(_cost, made["rows"])), made["hours"], config))
                break
    return [(hours, config) for _, hours, config in sorted(found, key=lambda one: one[0])]


def _cost(row: dict[str, Any]) -> float:
    products = row["products_seconds"] * (1 + row["recomputed"] / row["flops"])
    return row["runs"] * (products + row["transfer_seconds"])


def _fewer_prompts(config: Config) -> Config:
    """The same with a quarter of the prompts in a pass of a comparison, which changes no result."""
    return replace(config, compare=replace(config.compare, batch_rows=max(config.compare.batch_rows // 4, 1)))


def _candidates(planner: Planner) -> Iterator[Config]:
    config = planner.config
    for mesh in _meshes(planner):
        for slots in _slots(planner, mesh.adapter):
            for parts in _PARTS:
                control = replace(config.tuning.control, parts=parts)
                if control.batch_rows % (parts * mesh.fsdp) == 0 or parts == 1:
                    yield replace(config, mesh=mesh, tuning=replace(config.tuning, slots=slots, control=control))


def _larger(planner: Planner) -> Iterator[Config]:
    """The same with as many rows of E as there are chips that rows are spread over."""
    for config in _candidates(planner):
        one = config.tuning.experimental
        rows = mesh_lib.round_up(one.batch_rows, config.mesh.adapter * config.mesh.fsdp * one.parts)
        yield replace(config, tuning=replace(config.tuning, experimental=replace(one, batch_rows=rows)))


def _meshes(planner: Planner) -> Iterator[Mesh]:
    chips = planner.hardware.chips
    sizes = [size for size in range(1, chips + 1) if chips % size == 0]
    for tensor in sizes:
        for fsdp in sizes:
            if chips % (tensor * fsdp) == 0:
                yield Mesh(chips // (tensor * fsdp), fsdp, tensor)


def _slots(planner: Planner, adapter: int) -> list[int]:
    """The numbers of slots that cost little more than the best, places that stay empty included; the most first."""
    config, work = planner.config, planner.work
    shared = work.shared(config, planner.arch)
    steps = [work.steps(count, config.tuning.control, config.tokens.row_length, shared) for count in work.controls]
    # One number a place: more slots on the same places are never worse.
    numbers = {min(places, len(steps)) for places in range(adapter, len(steps) + adapter, adapter)}
    costs = {slots: plan_slots(steps, slots).steps * mesh_lib.round_up(slots, adapter) for slots in numbers}
    good = [slots for slots in sorted(numbers, reverse=True) if costs[slots] <= _WORSE * min(costs.values())]
    return good[:_SLOTS]


def _overrides(old: Config, new: Config) -> str:
    """What of `new` is not as in `old`, as flags; the mesh always whole."""
    flags = [f"--config.mesh.{axis}={getattr(new.mesh, axis)}" for axis in mesh_lib.AXES]
    pairs = {"tuning.slots": (old.tuning.slots, new.tuning.slots)}
    pairs["compare.batch_rows"] = (old.compare.batch_rows, new.compare.batch_rows)
    for kind in ("control", "experimental"):
        for field in ("parts", "batch_rows"):
            pairs[f"tuning.{kind}.{field}"] = tuple(
                getattr(getattr(config.tuning, kind), field) for config in (old, new)
            )
    return " ".join([*flags, *(f"--config.{name}={now}" for name, (was, now) in pairs.items() if now != was)])
