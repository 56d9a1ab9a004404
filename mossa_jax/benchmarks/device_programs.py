"""The programs that `device_checks` checks, each with its errors against `device_reference`.

Shape letters: A adapters, L layers, n prompts, D hidden, V vocabulary, T new tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cached_property
from typing import Any

import jax
import numpy as np

from mossa_jax.benchmarks import device_inputs as inputs
from mossa_jax.benchmarks import device_reference as reference
from mossa_jax.config import Schedule, Tuning
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.llama.adapters import Adapter, place_adapters, stack
from mossa_jax.llama.generate import greedy
from mossa_jax.similarity import compare_states
from mossa_jax.similarity import reference as oracle
from mossa_jax.similarity.estimators import ESTIMATORS
from mossa_jax.similarity.streamed.forward import stream_similarities
from mossa_jax.states import PassConfig, keep_states
from mossa_jax.tokens.encoded import Encoded, in_memory
from mossa_jax.tokens.packing import Packing
from mossa_jax.tokens.rows import TrainingRows, pack_examples
from mossa_jax.tuning import full_finetuning, population
from mossa_jax.tuning.batch import place_batch
from mossa_jax.tuning.optimizer import FullOptimizer

# Grouped heads of a width that every kernel takes.
_CONFIG = inputs.SHAPES["llama-110m"] | {
    "vocab_size": 128,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "tie_word_embeddings": False,
}
_STD = 0.08
_SLOTS, _EXAMPLES, _PROMPTS, _SHARED, _ROW = 3, 4, 5, 32, 128
_NEW_TOKENS = 6
_PAIRS = ((0, 1), (0, 2), (1, 2))
# Random directions in which a gradient is compared with the slope of the loss.
_DIRECTIONS = 3
_TUNING = Tuning(
    rank=4, alpha=8, clip=1e9,
    targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
)  # fmt: skip
_SCHEDULE = Schedule(learning_rate=1e-2)


class Cases:
    """Small inputs of all programs in one number type, and what float64 makes of them.

    Attributes:
      model: random, on the device.
      weights: its weights in float64.
      adapters: three, on the host.
      examples: of each adapter; all begin with the same ids.
      prompts: likewise.
    """

    def __init__(self, dtype: str):
        """Draws the inputs, and computes what is expected of them.

        Args:
          dtype: of the base.
        """
        self.model = inputs.random_model("checks", _CONFIG, dtype, std=_STD)
        self.arch = self.model.architecture
        self.weights = reference.weights_of(self.model.state)
        self.adapters = inputs.random_adapters(self.arch, _SLOTS, _TUNING)
        rng = np.random.default_rng(1)
        prefix = rng.integers(3, self.arch.vocab, _SHARED).tolist()

        def draw(longest: int) -> list[int]:
            return rng.integers(3, self.arch.vocab, rng.integers(4, longest)).tolist()

        self.examples = [[Encoded(prefix + draw(24), draw(12)) for _ in range(_EXAMPLES)] for _ in range(_SLOTS)]
        self.prompts = [prefix + draw(40) for _ in range(_PROMPTS)]
        # Computed here and not in the threads of the checks, which would each compute them.
        _ = self.adapter_slopes, self.weight_slopes, self.prompt_states

    @cached_property
    def losses(self) -> list[float]:
        """Loss of each adapter on its examples."""
        return [
            reference.mean_loss(self.arch, self.weights, adapter, examples)
            for adapter, examples in zip(self.adapters, self.examples, strict=True)
        ]

    @cached_property
    def adapter_slopes(self) -> list[list[tuple[Adapter, float]]]:
        """Directions of each adapter's matrices, with the slope of its loss along each."""
        rng = np.random.default_rng(2)
        slopes = []
        for adapter, examples in zip(self.adapters, self.examples, strict=True):
            directions = [
                {t: {name: rng.standard_normal(u[name].shape) for name in ("a", "b")} for t, u in adapter.items()}
                for _ in range(_DIRECTIONS)
            ]
            slopes.append(
                [(v, reference.adapter_slope(self.arch, self.weights, adapter, v, examples)) for v in directions]
            )
        _ = self.losses
        return slopes

    @cached_property
    def weight_slopes(self) -> tuple[float, list[tuple[reference.Weights, float]]]:
        """Loss of the base on the first adapter's examples, and its slopes along directions of all weights."""
        rng, examples = np.random.default_rng(3), self.examples[0]
        directions = [
            {name: rng.standard_normal(w.shape) for name, w in self.weights.items()} for _ in range(_DIRECTIONS)
        ]
        slopes = [(v, reference.weight_slope(self.arch, self.weights, v, examples)) for v in directions]
        return reference.mean_loss(self.arch, self.weights, {}, examples), slopes

    @cached_property
    def prompt_states(self) -> list[list[np.ndarray]]:
        """States [L + 2, S, D] of each adapter's model, by prompt."""
        return [
            [states[:, : len(ids)] for states, ids in zip(everything.swapaxes(0, 1), self.prompts, strict=True)]
            for everything in (
                reference.run(self.arch, self.weights, adapter, self.prompts)[0] for adapter in self.adapters
            )
        ]


def _population_step(cases: Cases, slots: int, prefix: int) -> dict[str, float]:
    """Takes one step of the first `slots` adapters, in rows that begin with `prefix` shared ids."""
    packed = [pack_examples(in_memory(examples), _ROW, prefix_length=prefix)[0] for examples in cases.examples[:slots]]
    width, columns, max_own = inputs.widest(packed)
    rows = max(map(len, packed))
    # Every model has as many rows; one that needs fewer gets its last one again, without labels.
    taken = [_filled(one.take(np.arange(len(one)), width), rows) for one in packed]
    run = inputs.Population(cases.model, cases.adapters[:slots], _TUNING, _SCHEDULE, columns, max_own)
    step = population.make_step(run.spec)
    state, metrics = step(*run.arguments(run.fresh(), inputs.stacked_rows(taken)))
    gradients = inputs.gradients_in(state.moments, _TUNING.beta1)
    errors = {"loss": 0.0, "gradients": 0.0, "updates": 0.0}
    for slot in range(slots):
        own, new = inputs.unstacked(gradients, slot), inputs.unstacked(state.adapters, slot)
        old = {t: {name: u[name] for name in ("a", "b")} for t, u in cases.adapters[slot].items()}
        loss = abs(float(metrics["loss"][slot]) / cases.losses[slot] - 1)
        errors = _worst(errors, _step_errors(loss, own, cases.adapter_slopes[slot], old, new))
    return errors


def _full_step(cases: Cases) -> dict[str, float]:
    """Takes one step of all parameters."""
    model = cases.model
    optimizer = FullOptimizer(**vars(population.optimizer_for(_TUNING, _SCHEDULE)), kind="adamw")
    initialize, where = full_finetuning.make_initialize(model, optimizer)
    packed = pack_examples(in_memory(cases.examples[0]), _ROW)[0]
    batch = place_batch(model.mesh, packed.take(np.arange(len(packed))))
    spec = full_finetuning.FullStepSpec(model, optimizer, where, remat=False, max_own=packed.max_own)
    state, metrics = full_finetuning.make_step(spec)(initialize(model.state), batch, 0, 1000)
    gradients = reference.weights_of(inputs.gradients_in(state.moments, _TUNING.beta1))
    expected, slopes = cases.weight_slopes
    loss = abs(float(metrics["loss"]) / expected - 1)
    return _step_errors(loss, gradients, slopes, cases.weights, reference.weights_of(state.parameters))


def _step_errors(loss: float, gradients: Any, slopes: list[tuple[Any, float]], old: Any, new: Any) -> dict[str, float]:
    """Returns the errors of a first step.

    Args:
      loss: its relative error.
      gradients: of the step.
      slopes: directions and the slopes of the loss along them.
      old, new: parameters before and after.
    """
    leaves = jax.tree.leaves(gradients)
    norm = np.sqrt(sum(np.square(leaf).sum() for leaf in leaves))
    # For a random direction v with variance one, the mean of ((g - g') v)^2 is |g - g'|^2.
    misses = [
        sum(float((g * v).sum()) for g, v in zip(leaves, jax.tree.leaves(direction), strict=True)) - slope
        for direction, slope in slopes
    ]
    # AdamW's first step: both means are those of one gradient.
    updates = [
        np.abs(after - before + _SCHEDULE.learning_rate * g / (np.abs(g) + 1e-8)).max() / _SCHEDULE.learning_rate
        for g, before, after in zip(leaves, jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
    ]
    return {
        "loss": loss,
        "gradients": float(np.sqrt(np.mean(np.square(misses))) / norm),
        "updates": float(max(updates)),
    }


def _answers(cases: Cases) -> dict[str, float]:
    """Decodes answers of all adapters; every token must be the likeliest after those before it, or nearly."""
    width = mesh_lib.round_up(max(map(len, cases.prompts)), 32)
    tokens = np.zeros((len(cases.prompts), width), np.int32)
    for row, ids in enumerate(cases.prompts):
        tokens[row, : len(ids)] = ids
    lengths = np.asarray([len(ids) for ids in cases.prompts], np.int32)
    mesh = cases.model.mesh
    answers = greedy(
        cases.arch, cases.model.state, place_adapters(mesh, stack(cases.arch, cases.adapters)),
        mesh_lib.place(mesh, tokens, ("rows", None)), mesh_lib.place(mesh, lengths, ("rows",)),
        # No token ends an answer.
        eos=(-1,), new_tokens=_NEW_TOKENS, mesh=mesh,
    )  # fmt: skip
    gaps = []
    for adapter, rows in zip(cases.adapters, np.asarray(answers), strict=True):
        whole = [[*ids, *answer] for ids, answer in zip(cases.prompts, rows.tolist(), strict=True)]
        everything = reference.run(cases.arch, cases.weights, adapter, whole)[1]
        for ids, answer, logits in zip(cases.prompts, rows, everything, strict=True):
            logits = logits[len(ids) - 1 : len(ids) + len(answer) - 1]  # [T, V]
            gaps.append(logits.max(1) - logits[np.arange(len(answer)), answer])
    return {"gap to the likeliest token": float(np.max(gaps))}


def _kept_states(cases: Cases, pool: str, share_prefix: bool) -> dict[str, float]:
    """Keeps pooled states of all adapters."""
    config = PassConfig(pool, 2, Packing(_ROW, share_prefix=share_prefix))
    kept = keep_states(cases.model, stack(cases.arch, cases.adapters), cases.prompts, config)
    actual = np.asarray(kept.states, np.float64)[:, :, : len(cases.prompts)]  # [A, L + 2, n, D]
    expected = [
        [states[:, -1] if pool == "last" else states.mean(1) for states in by_prompt]
        for by_prompt in cases.prompt_states
    ]
    reference_states = np.swapaxes(np.asarray(expected), 1, 2)  # [A, n, L + 2, D] -> [A, L + 2, n, D]
    norms = np.linalg.norm(reference_states, axis=(2, 3))
    return {"states": float((np.linalg.norm(actual - reference_states, axis=(2, 3)) / norms).max())}


def _streamed(cases: Cases) -> dict[str, float]:
    """Streams all tokens of all adapters into CKA."""
    config = PassConfig("all", 2, Packing(_ROW))
    values = stream_similarities(cases.model, stack(cases.arch, cases.adapters), cases.prompts, config, _PAIRS).value
    # [A, L + 2, tokens, D]
    rows = np.stack([np.concatenate(by_prompt, axis=1) for by_prompt in cases.prompt_states])
    return {"CKA": _cka_error(values, rows)}


def _similarity(cases: Cases) -> dict[str, float]:
    """Compares kept states that lie far from the origin, as those of language models do."""
    rng = np.random.default_rng(4)
    common = rng.standard_normal((1, 2, 200, 96))
    states = (100 + common + 0.7 * rng.standard_normal((_SLOTS, 2, 200, 96))).astype(np.float32)
    placed = jax.device_put(states, mesh_lib.replicated(cases.model.mesh))
    values = compare_states(placed, np.ones(200, bool), _PAIRS, permutations=4).value
    return {"CKA": _cka_error(values, states.astype(np.float64))}


def _cka_error(values: np.ndarray, rows: np.ndarray) -> float:
    """Returns the largest error of values [P, K, 2] for rows [A, K, n, D]; NaN where a value is undefined."""
    compute = {"biased": oracle.biased, "debiased": oracle.debiased}
    errors = [
        values[p, k, e] - compute[name](rows[a, k], rows[b, k])
        for p, (a, b) in enumerate(_PAIRS)
        for k in range(rows.shape[1])
        for e, name in enumerate(ESTIMATORS)
    ]
    return float(np.abs(errors).max())


def _filled(rows: TrainingRows, count: int) -> TrainingRows:
    """Fills rows up to `count` by repeating the last one, without its labels."""
    index = np.minimum(np.arange(count), len(rows) - 1)
    filled = {field.name: getattr(rows, field.name)[index] for field in fields(TrainingRows)}
    filled["labels"][len(rows) :] = -1
    return TrainingRows(**filled)


def _worst(errors: dict[str, float], others: dict[str, float]) -> dict[str, float]:
    # `np.maximum` and not `max`: NaN is the worst of all.
    return {name: float(np.maximum(error, others[name])) for name, error in errors.items()}


Program = Callable[[Cases], dict[str, float]]

WITH_ATTENTION: dict[str, Program] = {
    "E's step": lambda cases: _population_step(cases, 1, 0),
    "controls' step": lambda cases: _population_step(cases, _SLOTS, 0),
    "controls' step, shared prefix": lambda cases: _population_step(cases, _SLOTS, _SHARED),
    "full fine-tuning step": _full_step,
    "answers": _answers,
    "states kept, last": lambda cases: _kept_states(cases, "last", False),
    "states kept, mean, shared prefix": lambda cases: _kept_states(cases, "mean", True),
}
"""Programs that are checked in both number types, by name."""

PROGRAMS: dict[str, Program] = WITH_ATTENTION | {
    "states kept, last, shared prefix": lambda cases: _kept_states(cases, "last", True),
    "states streamed, all": _streamed,
    "similarity of kept states": _similarity,
}
"""Programs that are checked in float32, by name."""
