"""The two sides of the tuning comparison: our population step, and PEFT on torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from mossa_jax.benchmarks.tuning_data import Case, Workload
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.llama import adapters as adapters_lib
from mossa_jax.llama.files.load import Model
from mossa_jax.tokens.batches import batch_index
from mossa_jax.tokens.encoded import Encoded
from mossa_jax.tokens.rows import TrainingRows
from mossa_jax.tuning import population
from mossa_jax.tuning.batch import place_batch

if TYPE_CHECKING:
    import torch

# The label that the loss of transformers leaves out.
_IGNORED = -100


@dataclass(frozen=True)
class Outcome:
    """One run of one side.

    Attributes:
      tokens: answer tokens that it learned from.
      positions: that went through the model, padding included.
      loss: nats per answer token over the whole run.
    """

    tokens: int
    positions: int
    loss: float


class Side(Protocol):
    """A side of the comparison."""

    def reset(self) -> None:
        """Returns to the untrained adapters; not timed."""

    def run(self) -> Outcome:
        """Trains all models; timed."""


class Ours:
    """The population step, set up as in `population_run.tune_population`, without checkpoints."""

    def __init__(self, work: Workload, model: Model, initial: Sequence[adapters_lib.Adapter], case: Case) -> None:
        """Places the models on the devices and compiles nothing yet.

        Args:
          work: sizes.
          model: the base.
          initial: untrained adapters, one per model.
          case: what they learn from.
        """
        arch, self._model, self._case = model.architecture, model, case
        stacked = adapters_lib.stack(arch, initial)
        optimizer = population.optimizer_for(work.tuning, work.schedule)
        prefix = max(packed.prefix_length for packed in case.packed)
        max_own = max(packed.max_own for packed in case.packed)
        remat = work.tuning.remat == "on"
        spec = population.StepSpec(arch, optimizer, model.mesh, remat, prefix=prefix, max_own=max_own)
        self._step = population.make_step(spec)
        # Both functions only pick leaves, so they take arrays on the host as well as on devices.
        on_host: Any = stacked
        trainable: Any = adapters_lib.matrices(on_host)
        scales: Any = adapters_lib.scales(on_host)
        self._initial = population.initial_state(trainable, optimizer, model.mesh)
        self._scale = {target: self._place(scale, "adapter", "layers") for target, scale in scales.items()}
        self._total = self._place(np.full(len(initial), case.steps, np.int32), "adapter")
        self._active = self._place(np.ones(len(initial), bool), "adapter")
        self._width = max(packed.width for packed in case.packed)

    def _place(self, array: np.ndarray, *axes: str) -> jax.Array:
        return mesh_lib.place(self._model.mesh, array, axes)

    def reset(self) -> None:
        """Copies the untrained adapters, because a step donates its state."""
        self._state = jax.tree.map(jnp.copy, self._initial)

    def run(self) -> Outcome:
        """Takes all steps of all models."""
        state, case, positions = self._state, self._case, 0
        losses, counts = [], []
        for number in range(case.steps):
            rows = [
                packed.take(batch_index(len(packed), case.rows, (0, model), number), self._width)
                for model, packed in enumerate(case.packed)
            ]
            batch = TrainingRows(
                *(np.stack([getattr(taken, field.name) for taken in rows]) for field in fields(TrainingRows))
            )
            placed = place_batch(self._model.mesh, batch)
            state, metrics = self._step(self._model.state, self._scale, self._total, state, placed, self._active)
            losses.append(metrics["loss"])
            counts.append(metrics["tokens"])
            positions += batch.tokens.size
        self._state = jax.block_until_ready(state)
        # [steps, models] each.
        loss, tokens = np.asarray(losses, np.float64), np.asarray(counts, np.float64)
        return Outcome(int(tokens.sum()), positions, float((loss * tokens).sum() / tokens.sum()))


class Peft:
    """PEFT, which trains one model after the other."""

    def __init__(self, work: Workload, folder: str, adapters: Sequence[Path], case: Case) -> None:
        """Loads the base and the adapters.

        Args:
          work: sizes.
          folder: of the base.
          adapters: folders of the untrained adapters, one per model.
          case: what they learn from.
        """
        import peft
        from transformers import AutoModelForCausalLM

        self._work, self._case = work, case
        base = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", attn_implementation="sdpa")
        base.config.use_cache = False
        self._model = peft.PeftModel.from_pretrained(base, adapters[0], is_trainable=True).train()
        self._initial = [load_file(path / "adapter_model.safetensors") for path in adapters]

    def reset(self) -> None:
        """Does nothing: `run` begins each model with its untrained adapter."""

    def run(self) -> Outcome:
        """Trains each model on its batches."""
        case = self._case
        outcomes = [
            self._train(initial, examples, batches)
            for initial, examples, batches in zip(self._initial, case.examples, case.batches, strict=True)
        ]
        tokens = sum(outcome.tokens for outcome in outcomes)
        loss = sum(outcome.loss * outcome.tokens for outcome in outcomes) / tokens
        return Outcome(tokens, sum(outcome.positions for outcome in outcomes), loss)

    def _train(
        self, initial: Mapping[str, np.ndarray], examples: Sequence[Encoded], batches: Sequence[np.ndarray]
    ) -> Outcome:
        import peft
        import torch

        tuning, model = self._work.tuning, self._model
        peft.set_peft_model_state_dict(model, {name: torch.from_numpy(leaf.copy()) for name, leaf in initial.items()})
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=self._work.schedule.learning_rate, betas=(tuning.beta1, tuning.beta2),
            weight_decay=tuning.weight_decay, fused=True,
        )  # fmt: skip
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
        losses, counts, positions = [], [], 0
        for items in batches:
            batch = _padded([examples[item] for item in items])
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, tuning.clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            counts.append(int((batch["labels"] != _IGNORED).sum()))
            positions += batch["labels"].numel()
        return Outcome(sum(counts), positions, float(np.dot(losses, counts) / sum(counts)))


def _padded(examples: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    """Returns a batch as users of PEFT make it: [B, S] each, padded on the right to the longest, labels on answers."""
    import torch

    sizes = [len(example.prompt) + len(example.answer) for example in examples]
    ids = np.zeros((len(examples), max(sizes)), np.int64)
    labels, mask = np.full(ids.shape, _IGNORED, np.int64), np.zeros(ids.shape, np.int64)
    for row, (example, size) in enumerate(zip(examples, sizes, strict=True)):
        ids[row, :size] = [*example.prompt, *example.answer]
        labels[row, len(example.prompt) : size] = example.answer
        mask[row, :size] = 1
    arrays: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
