"""The models of a run over prompts: by name, whether they are adapters over the base or models of their own.

Models are named as in the run folder; None is the base itself. The base and all adapters over it run as one group. A
model tuned in full is a group of its own; it is on the devices for its turn only, beside the base.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mossa_jax.config import Config
from mossa_jax.function.answers import greedy_answers
from mossa_jax.function.information import AnswerPairs
from mossa_jax.function.likelihood import log_likelihoods
from mossa_jax.llama.adapters import HostAdapters, stack, zero_adapter
from mossa_jax.llama.files.load import Model
from mossa_jax.monitoring import goodput
from mossa_jax.processes import agreement
from mossa_jax.run.context import Run
from mossa_jax.run.exported import model_about, tuned_adapter, tuned_model
from mossa_jax.similarity import Similarities, compare_states, engine
from mossa_jax.similarity.streamed.forward import stream_similarities
from mossa_jax.states import KeptStates, PassConfig, PassShape, keep_states
from mossa_jax.tokens.test_prompts import TestPrompts


@dataclass(frozen=True)
class ModelGroup:
    """Models that run together: one base with stacked adapters.

    Attributes:
      model: the base on the devices.
      adapters: stacked [m, ...] on the host, one per model; a zero adapter is `model` itself.
      indices: where these models stand in the list of names that the groups were made from.
    """

    model: Model
    adapters: HostAdapters
    indices: tuple[int, ...]


def model_groups(run: Run, names: Sequence[str | None]) -> Iterator[ModelGroup]:
    """Loads the models of these names, group after group; each whole model replaces the one before it.

    Drop every reference to a group's `model` before the next group is taken: otherwise both are on the devices.

    Args:
      run: the run that tuned the models.
      names: of models; None is the base.

    Raises:
      Refusal: 3 if a model was tuned with another prompt template.
    """
    for name in names:
        if name is not None:
            _check_template(run, name)
    whole = [index for index, name in enumerate(names) if name is not None and run.is_whole(name)]
    over_base = [index for index in range(len(names)) if index not in whole]
    if over_base:
        yield _adapter_group(run, [names[index] for index in over_base], tuple(over_base))
    for index in whole:
        yield _whole_model(run, str(names[index]), index)


def _check_template(run: Run, name: str) -> None:
    """Refuses to prompt a tuned model with another template than it was tuned with."""
    record = model_about(run, name).get("template")
    run.tokenizer.check_record(record, f"{'model' if run.is_whole(name) else 'adapter'} {name!r}")


def _adapter_group(run: Run, names: Sequence[str | None], indices: tuple[int, ...]) -> ModelGroup:
    arch = run.architecture
    with goodput.lost("load"):
        adapters = [{} if name is None else tuned_adapter(run, name) for name in names]
    if not any(adapters):
        adapters = [zero_adapter(arch) for _ in adapters]
    return ModelGroup(run.model, stack(arch, adapters), indices)


def _whole_model(run: Run, name: str, index: int) -> ModelGroup:
    model = tuned_model(run, name)
    return ModelGroup(model, stack(run.architecture, [zero_adapter(run.architecture)]), (index,))


def choose_engine(run: Run, models: int, prompts: int, pairs: Sequence[tuple[int, int]]) -> str:
    """Chooses the engine that computes similarities in this run, and logs why.

    Args:
      run: whose configuration and devices decide.
      models: how many are compared at once.
      prompts: of the largest task.
      pairs: indices of the models that are compared.

    Returns:
      `engine.KEPT` or `engine.MOMENTS`.

    Raises:
      Refusal: 2 if neither fits the devices.
    """
    config, arch = run.config.compare, run.architecture
    if config.pool == "all":
        return engine.MOMENTS
    costs = engine.estimate_costs(models, arch.layers + 2, prompts, arch.hidden, pairs, run.mesh.size, config.pool)
    # The smallest device of all processes decides.
    memory = min(agreement.everywhere(engine.memory_per_device()))
    # Models of their own run in turns, and only kept rows wait for one another.
    return engine.choose(costs, memory, engine.KEPT if tunes_whole_models(run.config) else config.engine)


def tunes_whole_models(config: Config) -> bool:
    """Whether a configuration tunes any model in full."""
    return "full" in (config.tuning.control.method, config.tuning.experimental.method)


def kept_similarities(
    run: Run, kept: KeptStates, prompts: TestPrompts, pairs: Sequence[tuple[int, int]]
) -> Similarities:
    """Computes same-layer CKA of pairs of models from their states over the same prompts.

    Args:
      run: whose configuration says how many permutations there are, and their seed.
      kept: the states; row i is prompt i.
      prompts: of one task.
      pairs: indices of the models of `kept`.
    """
    # Labels of rows that pad the array mean nothing.
    padding = (0, len(kept.valid) - len(prompts))
    return compare_states(
        kept.states,
        kept.valid,
        pairs,
        permutations=run.config.compare.permutations,
        seed=run.config.seed,
        rows=kept.rows,
        items=np.pad(prompts.items, padding),
        templates=np.pad(prompts.templates, padding),
    )


def streamed_similarities(
    run: Run, names: Sequence[str | None], prompts: TestPrompts, pairs: Sequence[tuple[int, int]]
) -> Similarities:
    """Computes same-layer CKA of pairs of models from sums of moments, which know neither items nor templates.

    Args:
      run: the run that tuned the models.
      names: of models, none of them tuned in full; None is the base.
      prompts: of one task; each row counts by itself.
      pairs: indices into `names`.

    Raises:
      Refusal: 3 if a model was tuned with another prompt template.
    """
    ids: list = prompts.ids  # NumPy arrays, which stand for sequences of ids
    (group,) = model_groups(run, names)
    return stream_similarities(group.model, group.adapters, ids, run.pass_config, pairs, shapes=run.pass_shapes)


def model_states(
    run: Run,
    names: Sequence[str | None],
    prompts: Sequence[Sequence[int]],
    config: PassConfig | None = None,
    shapes: Sequence[PassShape] | None = None,
) -> KeptStates:
    """Returns the pooled states of these models, in this order, over the same prompts.

    Args:
      run: the run that tuned the models.
      names: of models; None is the base.
      prompts: token ids, BOS included.
      config: pooling, batch size and packing; by default the comparison's.
      shapes: of the passes, from `config.shapes` for all lists of prompts that are to share programs; by default the
        comparison's.

    Raises:
      Refusal: 3 if a model was tuned with another prompt template.
    """
    config = run.pass_config if config is None else config
    shapes = run.pass_shapes if shapes is None else shapes
    states: list[KeptStates] = []
    order: list[int] = []
    for group in model_groups(run, names):
        states.append(keep_states(group.model, group.adapters, prompts, config, shapes))
        order += group.indices
        jax.block_until_ready(states[-1].states)  # until then the weights of the group's model are in use
        del group  # the next model takes its place
    if len(states) == 1:
        return states[0]
    # `order` says which name each stacked model has; the inverse says where the model of each name is.
    inverse = tuple(int(at) for at in np.argsort(order))
    first = states[0]
    joined = _join(inverse, first.states.sharding, *(kept.states for kept in states))
    return replace(first, states=joined)


@partial(jax.jit, static_argnums=(0, 1))
def _join(
    order: tuple[int, ...], sharding: jax.sharding.Sharding, *groups: Float[Array, "m K n D"]
) -> Float[Array, "M K n D"]:
    """Stacks the models of all groups; model i of the result is the `order[i]`-th of them."""
    models = [group[row] for group in groups for row in range(len(group))]
    return jax.lax.with_sharding_constraint(jnp.stack([models[index] for index in order]), sharding)


@dataclass(frozen=True)
class TaskAnswers:
    """What models make of a task's prompts; n prompts, M models.

    Attributes:
      texts: M lists of n greedy answers.
      likelihoods: [M, pairs] float64, log probability of each answer that the models were asked about.
    """

    texts: list[list[str]]
    likelihoods: Float[np.ndarray, "M pairs"]


def ask(run: Run, names: Sequence[str | None], pairs: AnswerPairs, prompts: Sequence[np.ndarray]) -> TaskAnswers:
    """Lets models answer a task's prompts, and reads how likely they find given answers.

    Args:
      run: the run that tuned the models.
      names: of models; None is the base.
      pairs: prompts with answers.
      prompts: token ids of the prompts to answer.

    Raises:
      Refusal: 3 if a model was tuned with another prompt template.
    """
    texts: list[list[str]] = [[] for _ in names]
    likelihoods = np.zeros((len(names), len(pairs.pairs)))
    for group in model_groups(run, names):
        likelihoods[list(group.indices)] = log_likelihoods(
            group.model, group.adapters, pairs.pairs, run.reading_config, run.continuation_shape
        )
        answers = greedy_answers(
            group.model, group.adapters, run.tokenizer, prompts, run.answer_config, run.answer_shape
        )
        for index, own in zip(group.indices, answers, strict=True):
            texts[index] = own
        del group  # the next model takes its place
    return TaskAnswers(texts, likelihoods)
