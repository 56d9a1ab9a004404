"""The population step: many adapters over one frozen base, trained by one jitted program.

Loss, gradient, clipping, moments and schedule are all inside the `vmap`: nothing couples one adapter to another,
so a stacked model equals the same model trained alone. The base is closed over and stays one GEMM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import jax
import jax.numpy as jnp
import numpy as np

from mossa_jax import mesh as mesh_lib
from mossa_jax.config import Schedule, Tuning
from mossa_jax.llama.adapters import AXES, Adapters, join
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.model import merge
from mossa_jax.tokens.packing import TrainingRows
from mossa_jax.tuning.objective import answer_loss
from mossa_jax.tuning.optimizer import Optimizer

State = dict
"""{"adapters": trainable parts [A, ...], "moments": optax state [A, ...], "step": [A] int32}."""


def optimizer_for(tuning: Tuning, schedule: Schedule) -> Optimizer:
    """The optimizer that a configuration asks for."""
    return Optimizer(
        schedule.learning_rate, tuning.warmup, tuning.beta1, tuning.beta2, tuning.weight_decay, tuning.clip
    )


def start(adapters: Adapters, optimizer: Optimizer, mesh: jax.sharding.Mesh) -> State:
    """The state before the first step, placed on the mesh.

    Args:
      adapters: trainable parts, NumPy, stacked [A, ...].
      optimizer: whose moments to make.
      mesh: adapters are spread over its `adapter` axis.
    """
    placed = {
        target: {name: mesh_lib.place(mesh, leaf, AXES[name]) for name, leaf in part.items()}
        for target, part in adapters.items()
    }
    count = len(next(iter(jax.tree.leaves(adapters))))
    moments = jax.jit(jax.vmap(optimizer.transformation().init))(placed)
    moments = jax.tree.map(lambda leaf: jax.device_put(leaf, _by_adapter(mesh, leaf)), moments)
    return {
        "adapters": placed,
        "moments": moments,
        "step": mesh_lib.place(mesh, np.zeros(count, np.int32), ("adapter",)),
    }


def _by_adapter(mesh: jax.sharding.Mesh, leaf: jax.Array):
    return mesh_lib.sharding(mesh, leaf.shape, ("adapter",) + (None,) * (leaf.ndim - 1))


def place_batch(mesh: jax.sharding.Mesh, rows: TrainingRows) -> dict[str, jax.Array]:
    """A batch with leading axes [A, B] on the mesh: adapters over `adapter`, rows over `fsdp`."""
    names = ("adapter", "rows", None)
    return {field.name: mesh_lib.place(mesh, getattr(rows, field.name), names) for field in fields(rows)}


def make_step(arch: Architecture, optimizer: Optimizer, mesh: jax.sharding.Mesh, remat: bool = True) -> Callable:
    """The jitted step `(base, scale, total, state, batch, active) -> (state, metrics)`.

    `scale` is target -> [A, L]; `total` [A] int32 is each model's number of steps: a model that has reached it, or
    is not `active` [A] bool in this batch, stays as it is. Metrics, per adapter: `loss` (nats per answer token),
    `tokens` (answer tokens), `gradient_norm`.
    `state` is donated.
    """

    def one(base, parts, moments, step, scale, total, rows, active):
        model = merge(arch, base)

        def loss(parts):
            return answer_loss(model, arch, join(parts, scale), rows, remat, mesh)

        (summed, count), gradients = jax.value_and_grad(loss, has_aux=True)(parts)
        count = jnp.maximum(count, 1)
        gradients = jax.tree.map(lambda leaf: leaf / count, gradients)
        new_parts, new_moments = optimizer.update(gradients, moments, parts, step, total)
        running = (step < total) & active
        keep = lambda new, old: jnp.where(running, new, old)  # noqa: E731
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradients)))
        metrics = {"loss": summed / count, "tokens": count, "gradient_norm": norm}
        return (
            jax.tree.map(keep, new_parts, parts),
            jax.tree.map(keep, new_moments, moments),
            step + running,
            metrics,
        )

    def step(base, scale, total, state, batch, active):
        stacked = jax.vmap(one, in_axes=(None, 0, 0, 0, 0, 0, 0, 0), spmd_axis_name="adapter")
        parts, moments, count, metrics = stacked(
            base, state["adapters"], state["moments"], state["step"], scale, total, batch, active
        )
        # Every process logs: the few numbers of a step are whole everywhere.
        metrics = jax.lax.with_sharding_constraint(metrics, mesh_lib.replicated(mesh))
        return {"adapters": parts, "moments": moments, "step": count}, metrics

    return jax.jit(step, donate_argnums=3)
