"""Full fine-tuning: every parameter of a base model, sharded over the mesh with its gradients and moments (FSDP).

Parameters are float32 masters, whatever the base computes in: a bfloat16 weight is too coarse for the small steps of
fine-tuning, which would be rounded away. Forward and backward passes run on a copy in the base's own type. Batches,
loss, schedule and checkpoints are those of the adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mossa_jax import mesh as mesh_lib
from mossa_jax.config import Schedule, Tuning
from mossa_jax.llama.architecture import read_config
from mossa_jax.llama.load import Model
from mossa_jax.llama.model import merge
from mossa_jax.llama.weights import leaf_name, save_weights, shardings
from mossa_jax.progress import Stop
from mossa_jax.rundir import BAD_CONFIG, NOT_FINITE, Refusal, RunDir, new_folder, slug, write_json
from mossa_jax.tuning.checkpoints import Checkpoints
from mossa_jax.tuning.loop import Member, _batches, train
from mossa_jax.tuning.objective import answer_loss
from mossa_jax.tuning.optimizer import Optimizer
from mossa_jax.tuning.population import optimizer_for

State = dict
"""{"parameters": the model's state in float32, "moments": optax state}; both lie by the table in `mossa_jax.mesh`."""

OPTIMIZERS = ("adamw", "adafactor")


@dataclass(frozen=True)
class FullOptimizer(Optimizer):
    """`Optimizer` for all parameters: AdamW, or Adafactor for memory; weight decay is on norms and biases as well.

    Adafactor (Shazeer and Stern, arXiv 1804.04235) has no first moment, keeps means of rows and columns as a matrix's
    second moments, which decay by 1 - t^-0.8, and scales an update down to a root mean square of 1. Steps are not
    scaled by the size of parameters: a learning rate means about what it means for Adam. Betas are not used.

    Attributes:
      kind: one of `OPTIMIZERS`.
    """

    kind: str = "adamw"

    def transformation(self) -> optax.GradientTransformation:
        """Clip by global norm, moments, decoupled decay; the learning rate is applied in `update`."""
        moments = optax.scale_by_adam(b1=self.beta1, b2=self.beta2)
        if self.kind == "adafactor":
            factored = optax.scale_by_factored_rms(decay_rate=0.8, min_dim_size_to_factor=1)
            moments = _by_layer(optax.chain(factored, optax.clip_by_block_rms(1.0)))
        return optax.chain(_clip(self.clip), moments, optax.add_decayed_weights(self.weight_decay))


def _clip(largest: float) -> optax.GradientTransformation:
    """Clip by global norm. optax's divides each gradient, and XLA keeps a quotient that is used twice in memory."""

    def update(updates, state, parameters=None):
        scale = jnp.minimum(1.0, largest / optax.global_norm(updates))
        return jax.tree.map(lambda leaf: scale * leaf, updates), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _by_layer(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """A transformation that meets each layer's matrices by themselves, and not the stack of them."""

    def parts(tree):
        named = {leaf_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
        return [{n: leaf for n, leaf in named.items() if n.startswith("blocks.") == stacked} for stacked in (0, 1)]

    def init(parameters):
        rest, blocks = parts(parameters)
        return inner.init(rest), jax.vmap(inner.init)(blocks)

    def update(updates, state, parameters):
        rest, blocks = zip(parts(updates), state, parts(parameters), strict=True)
        (rest, state_rest), (blocks, state_blocks) = inner.update(*rest), jax.vmap(inner.update)(*blocks)
        named = {**rest, **blocks}
        return jax.tree.map_with_path(lambda path, _: named[leaf_name(path)], updates), (state_rest, state_blocks)

    return optax.GradientTransformation(init, update)


def tune_full(
    label: str,
    member: Member,
    model: Model,
    tuning: Tuning,
    schedule: Schedule,
    rundir: RunDir,
    stop: Stop,
    *,
    optimizer: str = "adamw",
) -> nnx.State:
    """Trains all parameters of a base model on a member's rows; returns them, float32, on the model's mesh.

    The base is read once, where there is no checkpoint yet, and left as it is. Beside it, on all devices together:
    parameters, gradients and two moments, 16 bytes a parameter (12 with Adafactor), the narrow copy that a bfloat16
    base computes with, and what the pass of one layer needs.

    Args:
      label: in front of progress lines, and the name of the folder of checkpoints.
      member: its rows, number of steps and seed.
      model: the base; parameters and the rows of a batch are spread over its mesh.
      tuning: the optimizer's fields, `remat`, `checkpoint_every` and `log_every` count.
      schedule: all but `parts` counts.
      rundir: for checkpoints and metrics.jsonl.
      stop: asked after every step.
      optimizer: one of `OPTIMIZERS`.

    Raises:
      Refusal: 2 for an unknown optimizer; 5, naming model and step, when a loss or gradient is not finite; 75 on a
        request to stop.
    """
    if optimizer not in OPTIMIZERS:
        raise Refusal(BAD_CONFIG, f"optimizer {optimizer!r} is unknown; these are: {', '.join(OPTIMIZERS)}")
    chosen = FullOptimizer(**vars(optimizer_for(tuning, schedule)), kind=optimizer)
    begin, where = _start(model, chosen)
    shared = any(part.shared for part in member.rows)
    update = make_step(model, chosen, where, tuning.remat, shared)
    batches = _batches(member, schedule.batch_rows)

    def step(state, number):
        if number == 0:
            state = begin(model.state)
        kind, index = batches.at(number)
        rows = member.rows[kind].take(index)
        batch = {f.name: mesh_lib.place(model.mesh, getattr(rows, f.name), ("rows", None)) for f in fields(rows)}
        return update(state, batch, number, member.steps)

    def report(done, metrics):
        loss, norm = float(metrics["loss"]), float(metrics["gradient_norm"])
        if not np.isfinite([loss, norm]).all():
            raise Refusal(
                NOT_FINITE,
                f"{label}: loss or gradient of {member.name!r} is not finite at step {done}; lower "
                "tuning.*.learning_rate or look at its rows; the last checkpoint is kept",
            )
        rundir.append_metrics({"model": member.name, "step": done, "loss": round(loss, 6)})
        return f"loss {loss:.3f}"

    # Only shapes go in: with a checkpoint to go on from, no first state takes room beside the one that is read.
    shapes = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        jax.eval_shape(begin, model.state),
        where,
    )
    state = train(
        label,
        member.steps,
        shapes,
        step,
        report,
        checkpoints=Checkpoints(rundir / f"checkpoints/{slug(label)}"),
        checkpoint_every=tuning.checkpoint_every,
        log_every=tuning.log_every,
        stop=stop,
    )
    return state["parameters"]


def _start(model: Model, optimizer: Optimizer) -> tuple[Callable[[nnx.State], State], State]:
    """(jitted base -> state before the first step, the sharding of every leaf of that state)."""

    def start(base):
        parameters = jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), base)
        return {"parameters": parameters, "moments": optimizer.transformation().init(parameters)}

    state = jax.eval_shape(start, model.state)
    placed = shardings(model.architecture, model.mesh)
    places = {leaf_name(path): place.spec for path, place in jax.tree.leaves_with_path(placed)}
    shapes = {leaf_name(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(state["parameters"])}

    def moment(path, leaf):
        """A moment lies as its parameter does, without the axis that it is a mean over."""
        name = leaf_name(path)
        for parameter, shape in shapes.items():
            for dropped in range(-1, len(shape)):  # -1: none
                kept = [axis for axis in range(len(shape)) if axis != dropped]
                if name.endswith(f".{parameter}") and leaf.shape == tuple(shape[axis] for axis in kept):
                    return NamedSharding(model.mesh, P(*(places[parameter][axis] for axis in kept)))
        return mesh_lib.replicated(model.mesh)

    where = {"parameters": placed, "moments": jax.tree.map_with_path(moment, state["moments"])}
    return jax.jit(start, out_shardings=where), where


def make_step(model: Model, optimizer: Optimizer, where: State, remat: bool = True, shared: bool = False) -> Callable:
    """The jitted step `(state, batch, number, total) -> (state, metrics)`; `state` is donated.

    `batch` holds the fields of `tokens.packing.TrainingRows`, each [B, ...], with ids that examples share or without;
    `number` counts from 0 to `total`.
    Metrics: `loss` (nats per answer token), `gradient_norm` (before the clip).
    """
    arch, mesh = model.architecture, model.mesh
    dtype = jax.tree.leaves(model.state)[0].dtype

    def step(state, batch, number, total):
        def loss(parameters):
            narrow = jax.tree.map(lambda leaf: leaf.astype(dtype), parameters)
            nats, count = answer_loss(merge(arch, narrow), arch, {}, batch, remat, mesh, shared=shared, frozen=False)
            return nats / jnp.maximum(count, 1)  # divided here, not behind: a gradient that is changed lives twice

        value, gradients = jax.value_and_grad(loss)(state["parameters"])
        # Each device keeps its own part of the sum over rows, and no whole gradient.
        gradients = jax.lax.with_sharding_constraint(gradients, where["parameters"])
        parameters, moments = optimizer.update(gradients, state["moments"], state["parameters"], number, total)
        metrics = {"loss": value, "gradient_norm": optax.global_norm(gradients)}
        return {"parameters": parameters, "moments": moments}, metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(where, mesh_lib.replicated(mesh)))


def save_full(folder: epath.PathLike, model: Model, state: nnx.State, about: Mapping[str, Any]) -> None:
    """Writes tuned parameters as a Hugging Face folder, in the number type of the base; all processes call it.

    Args:
      folder: replaced as a whole, never left half written.
      model: the base that was tuned; its config and tokenizer files go along.
      state: what `tune_full` returned.
      about: written into the folder as `mossa.json` (tasks, template, seed, ...).
    """
    arch, config = model.architecture, read_config(model.folder)
    stored = jax.tree.map(lambda leaf, base: leaf.astype(base.dtype), state, model.state)
    if jax.process_index() != 0:
        save_weights(folder, arch, stored, config, model.folder, writer=False)
        return
    with new_folder(folder) as new:
        save_weights(new, arch, stored, config, model.folder)
        write_json(new / "mossa.json", about)
