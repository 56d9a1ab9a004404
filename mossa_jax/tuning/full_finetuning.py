"""Full fine-tuning: every parameter of a base model, sharded over the mesh with its gradients and moments (FSDP).

Parameters are float32 masters, whatever the base computes in: a bfloat16 weight is too coarse for the small steps of
fine-tuning, which would be rounded away. Forward and backward passes run on a copy in the base's own type. Batches,
loss, schedule, guards and checkpoints are those of the adapters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

import jax
import jax.numpy as jnp
import optax
from etils import epath
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mossa_jax.config import OPTIMIZERS, Schedule, Tuning
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.devices.memory import compile_step
from mossa_jax.errors import BAD_CONFIG, NOT_FINITE, Refusal
from mossa_jax.files.names import digest, slug
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.files.write import ABOUT, new_folder, write_json
from mossa_jax.llama.architecture import read_config
from mossa_jax.llama.files.load import Model
from mossa_jax.llama.files.weights import save_weights
from mossa_jax.llama.model import merge
from mossa_jax.llama.placement import leaf_name, shardings
from mossa_jax.monitoring import goodput
from mossa_jax.processes.stop import Stop
from mossa_jax.tuning.checkpoints import Checkpoints
from mossa_jax.tuning.loop import Member, batches_for, train
from mossa_jax.tuning.loss import answer_loss
from mossa_jax.tuning.optimizer import FullOptimizer, Optimizer
from mossa_jax.tuning.population import GUARDS, guarded, optimizer_for

State = dict
"""{"parameters": the model's state in float32, "moments": optax state, "guards": `population.GUARDS`, each []};
parameters and moments lie by the table in `mossa_jax.mesh`."""


def checkpoints_of(run_folder: RunFolder, label: str) -> epath.Path:
    """Where the checkpoints of the model with this label lie."""
    return run_folder / f"checkpoints/{slug(label)}"


def tune_full(
    label: str,
    member: Member,
    model: Model,
    weights: Callable[[], nnx.State],
    tuning: Tuning,
    schedule: Schedule,
    run_folder: RunFolder,
    stop: Stop,
) -> nnx.State:
    """Trains all parameters of a base model on a member's rows; returns them, float32, on the model's mesh.

    On all devices together: parameters, gradients and two moments, 16 bytes a parameter (12 with Adafactor; 4 more
    with `parts`, for the sum of their gradients), the narrow copy that a bfloat16 base computes with, and what the
    pass of one layer needs. The base's own weights are there before the first step only, unless somebody else holds
    them.

    Args:
      label: in front of progress lines, and the name of the folder of checkpoints.
      member: its rows, number of steps and seed.
      model: the base; parameters and the rows of a batch are spread over its mesh. Of its state, shapes and number
        types alone are asked for.
      weights: gives the base's weights; called once, and only where there is no checkpoint to go on from.
      tuning: the optimizer's fields, `remat`, `skips`, `checkpoint_every` and `log_every` count.
      schedule: how.
      run_folder: for checkpoints and metrics.jsonl.
      stop: asked after every step.

    Raises:
      Refusal: 2 for an unknown optimizer; 3 when the compiler finds no room for a step; 5, naming model, step and
        rows, when it has skipped `tuning.skips` updates in a row, or its parameters are not finite in the end; 75 on
        a request to stop.
    """
    if schedule.optimizer not in OPTIMIZERS:
        raise Refusal(BAD_CONFIG, f"optimizer {schedule.optimizer!r} is unknown; these are: {', '.join(OPTIMIZERS)}")
    optimizer = FullOptimizer(**vars(optimizer_for(tuning, schedule)), kind=schedule.optimizer)
    begin, where = _start(model, optimizer)
    batches = batches_for(member, schedule.batch_rows)
    updates: dict[int, Callable] = {}  # by kind of rows; compiled before the first of its batches

    def compiled(kind, arguments):
        part, parts = member.rows[kind], math.gcd(schedule.parts, batches.sizes[kind])
        return compile_step(
            f"{label}, rows of {part.length}",
            tuning.remat,
            lambda remat: make_step(model, optimizer, where, remat, parts, part.prefix_length, part.max_own),
            arguments,
            model.mesh.local_devices[0],
        )

    def step(state, number):
        if number == 0:
            state = begin(weights())
        kind, index = batches.at(number)
        with goodput.lost("input"):
            rows = member.rows[kind].take(index)
            batch = {f.name: mesh_lib.place(model.mesh, getattr(rows, f.name), ("rows", None)) for f in fields(rows)}
        arguments = state, batch, number, member.steps
        if kind not in updates:
            updates[kind] = compiled(kind, arguments)
        return updates[kind](*arguments)

    def report(done, metrics):
        loss, counts = float(metrics["loss"]), {name: int(metrics[name]) for name in ("skipped", "spikes")}
        record = {"model": member.name, "step": done, "loss": round(loss, 6) if math.isfinite(loss) else None}
        run_folder.append_metrics(record | {name: count for name, count in counts.items() if count})
        if metrics["bad"] >= tuning.skips:
            kind, index = batches.at(done - 1)
            items = member.rows[kind].plan.take(index).items.tolist()
            named = ", ".join(str(item) for item in items[:8]) + (", ..." if len(items) > 8 else "")
            raise Refusal(
                NOT_FINITE,
                f"{label}: loss or gradient of {member.name!r} is not finite for {tuning.skips} steps in a row, now at "
                f"step {done} (examples {named}); lower tuning.*.learning_rate or look at these rows; the last "
                "checkpoint is kept",
            )
        return f"loss {loss:.3f}" + (f", {counts['skipped']} updates skipped" if counts["skipped"] else "")

    # Only shapes go in: with a checkpoint to go on from, no first state takes room beside the one that is read.
    shapes = mesh_lib.abstract_tree(jax.eval_shape(begin, model.state), where)
    config = digest([asdict(tuning), asdict(schedule), member.name, member.steps, member.seed])
    state = train(
        label,
        member.steps,
        shapes,
        step,
        report,
        checkpoints=Checkpoints(checkpoints_of(run_folder, label), config=config, before_sealing=run_folder.flush),
        checkpoint_every=tuning.checkpoint_every,
        log_every=tuning.log_every,
        stop=stop,
    )
    parameters = state["parameters"]
    if not _all_finite(parameters):
        raise Refusal(NOT_FINITE, f"{label}: {member.name!r} has parameters that are not finite; it is not exported")
    return parameters


@jax.jit
def _all_finite(parameters: nnx.State) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(parameters)]).all()


def _start(model: Model, optimizer: Optimizer) -> tuple[Callable[[nnx.State], State], State]:
    """(jitted base -> state before the first step, the sharding of every leaf of that state)."""

    def start(base):
        parameters = jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), base)
        guards = {name: jnp.zeros((), kind) for name, kind in GUARDS.items()}
        return {"parameters": parameters, "moments": optimizer.transformation().init(parameters), "guards": guards}

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
    where["guards"] = dict.fromkeys(GUARDS, mesh_lib.replicated(model.mesh))
    return jax.jit(start, out_shardings=where), where


def make_step(
    model: Model,
    optimizer: Optimizer,
    where: State,
    remat: bool = True,
    parts: int = 1,
    prefix: int = 0,
    max_own: int = 0,
) -> Callable:
    """The jitted step `(state, batch, number, total) -> (state, metrics)`; `state` is donated.

    `batch` holds the fields of `tokens.rows.TrainingRows`, each [B, ...]; `number` counts from 0 to `total`. Where
    loss or gradient is not finite the update is skipped, but not the step. Metrics: `loss` (nats per answer token),
    `gradient_norm` (before the clip), and `population.GUARDS`.

    Args:
      model: the base; its state may be shapes.
      optimizer: of all parameters.
      where: the sharding of every leaf of the state.
      remat: recompute the inside of blocks in the backward pass.
      parts: the rows of a batch are worked through in so many parts, for memory; must divide their number. The
        gradient is the sum of the parts' sums over the sum of their answer tokens, as without parts.
      prefix: columns at the head of rows that may hold ids which all their examples share.
      max_own: no example has more ids of its own than this; 0: not known.
    """
    arch, mesh = model.architecture, model.mesh
    dtype = jax.tree.leaves(model.state)[0].dtype

    def gradients_of(parameters, rows, count):
        def loss(parameters):
            narrow = jax.tree.map(lambda leaf: leaf.astype(dtype), parameters)
            base, spans = merge(arch, narrow), {"prefix": prefix, "max_own": max_own}
            nats, _ = answer_loss(base, arch, {}, rows, remat, mesh, **spans, frozen=False)
            return nats / count  # divided here, not behind: a gradient that is changed lives twice

        value, gradients = jax.value_and_grad(loss)(parameters)
        # Each device keeps its own part of the sum over rows, and no whole gradient.
        return value, jax.lax.with_sharding_constraint(gradients, where["parameters"])

    def summed(parameters, batch):
        count = jnp.maximum(jnp.sum(batch["labels"] >= 0, dtype=jnp.float32), 1)
        if parts == 1:
            return gradients_of(parameters, batch, count)

        def part(index):
            # Every parts-th row: so each device finds some of its own rows in every part.
            rows = jax.tree.map(lambda leaf: leaf.reshape(-1, parts, *leaf.shape[1:])[:, index], batch)
            return gradients_of(parameters, rows, count)

        return jax.lax.scan(
            lambda sums, index: (jax.tree.map(jnp.add, sums, part(index)), None), part(0), jnp.arange(1, parts)
        )[0]

    def step(state, batch, number, total):
        value, gradients = summed(state["parameters"], batch)
        norm = optax.global_norm(gradients)
        good = jnp.isfinite(value) & jnp.isfinite(norm)
        new = optimizer.update(gradients, state["moments"], state["parameters"], number, total)
        old = state["parameters"], state["moments"]
        parameters, moments = jax.tree.map(lambda new, old: jnp.where(good, new, old), new, old)
        guards = guarded(state["guards"], number, value, good)
        state = {"parameters": parameters, "moments": moments, "guards": guards}
        return state, {"loss": value, "gradient_norm": norm, **guards}

    return jax.jit(step, donate_argnums=0, out_shardings=(where, mesh_lib.replicated(mesh)))


def save_full(folder: epath.PathLike, model: Model, state: nnx.State, about: Mapping[str, Any]) -> None:
    """Writes tuned parameters as a Hugging Face folder, in the number type of the base; all processes call it.

    Args:
      folder: replaced as a whole, never left half written.
      model: the base that was tuned; its config and tokenizer files go along. Its state may be shapes.
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
        write_json(new / ABOUT, about)
