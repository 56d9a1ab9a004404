"""The models of a run over prompts, however each was tuned: adapters over the base together, whole models alone.

Models go by name; None is the base itself. A whole model is on the devices for its own turn only, beside the base.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from mossa_jax.files.paths import on_disk
from mossa_jax.function.exact_match import SCORE_ROWS, exact_match
from mossa_jax.llama.adapters import HostAdapters, stack, zero_adapter
from mossa_jax.llama.files.load import Model, load_model
from mossa_jax.llama.files.peft import load_adapter, read_about
from mossa_jax.monitoring import goodput
from mossa_jax.processes import agreement
from mossa_jax.run.context import Run
from mossa_jax.similarity import Similarities, compare_states, engine
from mossa_jax.similarity.streamed.forward import stream_similarities
from mossa_jax.states import KeptStates, keep_states
from mossa_jax.tasks.suite import Example

Found = TypeVar("Found")


def chosen_engine(run: Run, models: int, prompts: int, pairs: Sequence[tuple[int, int]]) -> str:
    """How similarities of so many models over so many prompts are found; the reasons go to the log.

    Raises:
      Refusal: 2 where nothing fits the devices.
    """
    config, arch = run.config.compare, run.architecture
    if config.pool == "all":
        return engine.MOMENTS
    costs = engine.estimate(models, arch.layers + 2, prompts, arch.hidden, pairs, run.mesh.size, config.pool)
    tuning = run.config.tuning
    whole = "full" in (tuning.control.method, tuning.experimental.method)
    memory = min(agreement.everywhere(engine.device_bytes()))
    return engine.choose(costs, memory, engine.KEPT if whole else config.engine)


def similarities(
    run: Run,
    how: str,
    names: Sequence[str | None],
    prompts: Sequence[Sequence[int]],
    pairs: Sequence[tuple[int, int]],
) -> Similarities:
    """Same-layer CKA of pairs of these models over the same prompts (token ids, BOS included).

    Args:
      run: of the run.
      how: as `chosen_engine` says.
      names: of the models; None is the base.
      prompts: of one task.
      pairs: indices into `names`.

    Raises:
      Refusal: 3 when a model was tuned with another prompt template.
    """
    if how == engine.KEPT:
        kept, config = model_states(run, names, prompts), run.config
        return compare_states(
            kept.states, kept.valid, pairs, permutations=config.compare.permutations, seed=config.seed
        )

    def streamed(model: Model, adapters: HostAdapters) -> Similarities:
        arch, base = model.architecture, model.state
        return stream_similarities(arch, base, adapters, prompts, run.mesh, pairs, **_packing(run))

    ((_, found),) = _by_program(run, names, streamed)
    return found


def model_states(run: Run, names: Sequence[str | None], prompts: Sequence[Sequence[int]]) -> KeptStates:
    """Pooled states of these models, in this order, over the same prompts (token ids, BOS included).

    Raises:
      Refusal: 3 when a model was tuned with another prompt template.
    """

    def states(model: Model, adapters: HostAdapters) -> KeptStates:
        kept = keep_states(model.architecture, model.state, adapters, prompts, run.mesh, **_packing(run))
        jax.block_until_ready(kept.states)  # until then the model's weights are in use
        return kept

    groups = _by_program(run, names, states)
    first = groups[0][1]
    if len(groups) == 1:
        return first
    place = {at: (group, row) for group, (positions, _) in enumerate(groups) for row, at in enumerate(positions)}
    order = tuple(place[at] for at in range(len(names)))
    return replace(first, states=_in_order(order, first.states.sharding, *(kept.states for _, kept in groups)))


def _packing(run: Run) -> dict[str, Any]:
    config, tokens = run.config.compare, run.config.tokens
    return {
        "pool": config.pool,
        "row_length": tokens.row_length,
        "batch_rows": config.batch_rows,
        "long_row_length": tokens.long_row_length,
        "share_prefix": tokens.share_prefix,
    }


@partial(jax.jit, static_argnums=(0, 1))
def _in_order(order: tuple[tuple[int, int], ...], where: jax.sharding.Sharding, *groups: jax.Array) -> jax.Array:
    """One array [M, ...] of groups [m, ...]: its model i is `order[i]`, a group and a row of it."""
    return jax.lax.with_sharding_constraint(jnp.stack([groups[group][row] for group, row in order]), where)


def exact_matches(run: Run, names: Sequence[str | None], examples: Sequence[Example]) -> np.ndarray:
    """Share of prompts that each of these models answers exactly: [M] float64, in this order.

    Raises:
      Refusal: 3 when a model was tuned with another prompt template.
    """
    tokens = run.config.tokens

    def shares(model: Model, adapters: HostAdapters) -> np.ndarray:
        return exact_match(
            model.architecture, model.state, adapters, run.tokenizer, examples, run.mesh,
            max_tokens=tokens.max_tokens, truncation=tokens.truncation,
            new_tokens=run.config.tuning.score_tokens, batch_rows=SCORE_ROWS,
        )  # fmt: skip

    found = np.zeros(len(names))
    for positions, group in _by_program(run, names, shares):
        found[positions] = group
    return found


def _by_program(
    run: Run, names: Sequence[str | None], work: Callable[[Model, HostAdapters], Found]
) -> list[tuple[list[int], Found]]:
    """What `work` makes of the models that run together, with their positions in `names`.

    The base and all adapters over it are one program; a whole model is one by itself, with an adapter that changes
    nothing, and is let go of when `work` returns.
    """
    arch, config = run.architecture, run.config
    for name in filter(None, names):
        what = "model" if run.is_whole(name) else "adapter"
        run.tokenizer.check_record(read_about(run.tuned_folder(name)).get("template"), f"{what} {name!r}")
    whole = [at for at, name in enumerate(names) if name is not None and run.is_whole(name)]
    over_base = [at for at in range(len(names)) if at not in whole]
    found = []
    if over_base:
        folders = [names[at] and run.tuned_folder(names[at]) for at in over_base]
        with goodput.lost("load"):
            adapters = [load_adapter(folder, arch) if folder else {} for folder in folders]
        if not any(adapters):
            adapters = [zero_adapter(arch) for _ in adapters]
        found.append((over_base, work(run.model, stack(arch, adapters))))
    for at in whole:
        with on_disk(run.tuned_folder(names[at])) as folder:
            model = load_model(str(folder), config.dtype, run.mesh)
        found.append(([at], work(model, stack(arch, [zero_adapter(arch)]))))
        del model  # the next one takes its place
    return found
