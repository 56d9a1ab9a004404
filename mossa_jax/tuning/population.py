"""The population step: many adapters over one frozen base, trained by one jitted program.

Loss, gradient, clipping, moments, schedule and guards are all inside the `vmap`: nothing couples one adapter to
another, so a stacked model equals the same model trained alone, whatever its neighbours do. The base is closed over
and stays one GEMM. On CPUs a loop over each device's own models stands in the place of the `vmap`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from mossa_jax.config import Schedule, Tuning
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.llama.adapters import Adapters, abstract_adapters, place_adapters, scales, with_scales
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.attention import choose_body
from mossa_jax.llama.model import merge
from mossa_jax.llama.placement import abstract_base
from mossa_jax.tokens.packing import TrainingRows
from mossa_jax.tuning.loss import answer_loss
from mossa_jax.tuning.optimizer import Optimizer

State = dict
"""{"adapters": trainable parts [A, ...], "moments": optax state [A, ...], "guards": `GUARDS`, each [A],
"step": [A] int32}."""

GUARDS = {"bad": np.int32, "skipped": np.int32, "spikes": np.int32, "usual": np.float32}
"""Updates skipped in a row just now; skipped in all; steps whose loss was a spike; the usual loss (nats a token)."""

# A loss above so many times the usual one, a mean that forgets over some 50 steps, is a spike.
_SPIKE, _FORGET, _SETTLED = 3.0, 0.02, 20


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
    placed = place_adapters(mesh, adapters)
    count = len(next(iter(jax.tree.leaves(adapters))))
    moments = jax.jit(jax.vmap(optimizer.transformation().init))(placed)
    over = lambda leaf: mesh_lib.sharding(mesh, leaf.shape, ("adapter",) + (None,) * (leaf.ndim - 1))  # noqa: E731
    moments = jax.tree.map(lambda leaf: jax.device_put(leaf, over(leaf)), moments)
    zeros = lambda kind: mesh_lib.place(mesh, np.zeros(count, kind), ("adapter",))  # noqa: E731
    guards = {name: zeros(kind) for name, kind in GUARDS.items()}
    return {"adapters": placed, "moments": moments, "guards": guards, "step": zeros(np.int32)}


def _by_adapter(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Of any array whose first axis is that of adapters."""
    return NamedSharding(mesh, P(mesh_lib.RULES["adapter"]))


def place_batch(mesh: jax.sharding.Mesh, rows: TrainingRows) -> dict[str, jax.Array]:
    """A batch with leading axes [A, B] on the mesh: adapters over `adapter`, rows over `fsdp`."""
    names = ("adapter", "rows", None)
    return {field.name: mesh_lib.place(mesh, getattr(rows, field.name), names) for field in fields(rows)}


def attention_body(mesh: jax.sharding.Mesh, dtype, prefix: int) -> str:
    """The body of attention that a step takes (one of `llama.attention.BODIES`), as `make_step` is called."""
    return "xla" if prefix else choose_body(mesh, jnp.dtype(dtype))


def check_rows(label: str, rows: int, parts: int, mesh: jax.sharding.Mesh, body: str) -> None:
    """Refuses batches of so many rows that no step can be made of.

    Args:
      label: in front of the refusal.
      rows: a model and step.
      parts: as in `make_step`.
      mesh: whose `fsdp` axis rows are spread over.
      body: `splash` runs on each device by itself, over whole rows; for others rows that do not divide over the
        devices are worked through by each of them.

    Raises:
      Refusal: 2, with the number that rows must be a multiple of.
    """
    devices = mesh.shape["fsdp"] if body == "splash" else 1
    if rows % (devices * parts):
        raise Refusal(
            BAD_CONFIG,
            f"{label}: batch_rows={rows} a model and step: {devices} devices on the fsdp axis, parts={parts} and the "
            f"{body} attention need a multiple of {devices * parts}; give that many, or spread over mesh.tensor",
        )


def make_refill(optimizer: Optimizer, mesh: jax.sharding.Mesh) -> Callable:
    """The jitted `(state, fresh, new) -> state`: slots where `new` [A] holds begin anew with the adapters `fresh`.

    Elementwise over adapters, so that no slot looks at another; `state` is donated.
    """

    def refill(state, fresh, new):
        begun = {"adapters": fresh, "moments": jax.vmap(optimizer.transformation().init)(fresh)}
        begun |= jax.tree.map(jnp.zeros_like, {name: state[name] for name in ("guards", "step")})
        pick = lambda old, young: jnp.where(new.reshape(-1, *(1,) * (old.ndim - 1)), young, old)  # noqa: E731
        return jax.tree.map(pick, state, begun)

    return jax.jit(refill, donate_argnums=0, out_shardings=_by_adapter(mesh))


def make_step(
    arch: Architecture,
    optimizer: Optimizer,
    mesh: jax.sharding.Mesh,
    remat: bool = True,
    parts: int = 1,
    prefix: int = 0,
    max_own: int = 0,
    reproducible: bool = False,
) -> Callable:
    """The jitted step `(base, scale, total, state, batch, active) -> (state, metrics)`.

    `scale` is target -> [A, L]; `total` [A] int32 is each model's number of steps: a model that has reached it, or
    is not `active` [A] bool in this batch, stays as it is. A model whose loss or gradient is not finite skips the
    update, but not the step. Metrics, each [A]: `loss` (nats per answer token), `tokens` (answer tokens),
    `gradient_norm`, and `GUARDS`. `state` is donated. All that comes back is spread over the `adapter` axis alone, as
    `start` places it, so that a compiled step takes its own result; A is a multiple of that axis.

    Args:
      arch: the base's architecture.
      optimizer: of all models.
      mesh: with axes ('adapter', 'fsdp', 'tensor').
      remat: recompute the inside of blocks in the backward pass.
      parts: the rows of a batch are worked through in so many parts, for memory; must divide their number. The
        gradient is the sum of the parts' sums over the sum of their answer tokens, as without parts.
      prefix: columns at the head of rows that may hold ids which all their examples share.
      max_own: no example has more ids of its own than this; 0: not known.
      reproducible: models and rows go one by one, each on one device, and a model's rows are added up in their order:
        the same bits on any number of devices. The base is whole on every device, attention is `xla`, `parts` are not
        used, and devices on the `tensor` axis repeat each other.
    """

    # On a CPU larger products gain nothing, and the states of several models leave the cache (BUILD_NOTES.md).
    alone = reproducible or (mesh.devices.flat[0].platform == "cpu" and mesh.shape["adapter"] == mesh.size)

    def gradients_of(model, scale, adapter, rows):
        around = None if alone else mesh

        def loss(adapter):
            return answer_loss(
                model, arch, with_scales(adapter, scale), rows, remat, around, prefix=prefix, max_own=max_own
            )

        return jax.value_and_grad(loss, has_aux=True)(adapter)

    def in_order(model, scale, adapter, rows, spread):
        """The sum over rows, of which this device has some where they are `spread`, from the first to the last."""
        each = jax.lax.map(
            lambda row: gradients_of(model, scale, adapter, jax.tree.map(lambda leaf: leaf[None], row)), rows
        )
        if spread:
            each = jax.lax.all_gather(each, mesh_lib.RULES["rows"], tiled=True)
        first, rest = jax.tree.map(lambda leaf: leaf[0], each), jax.tree.map(lambda leaf: leaf[1:], each)
        return jax.lax.scan(lambda total, row: (jax.tree.map(jnp.add, total, row), None), first, rest)[0]

    def summed(model, scale, adapter, rows, spread):
        if reproducible:
            return in_order(model, scale, adapter, rows, spread)
        if parts == 1:
            return gradients_of(model, scale, adapter, rows)

        def part(index):
            # Every parts-th row: so each device finds some of its own rows in every part.
            return jax.tree.map(lambda leaf: leaf.reshape(-1, parts, *leaf.shape[1:])[:, index], rows)

        def add(sums, index):
            return jax.tree.map(jnp.add, sums, gradients_of(model, scale, adapter, part(index))), None

        first = gradients_of(model, scale, adapter, part(0))
        return jax.lax.scan(add, first, jnp.arange(1, parts))[0]

    def one(base, adapter, moments, guards, step, scale, total, rows, active, spread=False):
        (nats, count), gradients = summed(merge(arch, base), scale, adapter, rows, spread)
        count = jnp.maximum(count, 1)
        gradients = jax.tree.map(lambda leaf: leaf / count, gradients)
        new_adapter, new_moments = optimizer.update(gradients, moments, adapter, step, total)
        running = (step < total) & active
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradients)))
        loss = nats / count
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        keep = lambda new, old: jnp.where(running & good, new, old)  # noqa: E731
        new_guards = guarded(guards, step, loss, good)
        guards = jax.tree.map(lambda new, old: jnp.where(running, new, old), new_guards, guards)
        metrics = {"loss": loss, "tokens": count, "gradient_norm": norm, **guards}
        return (
            jax.tree.map(keep, new_adapter, adapter),
            jax.tree.map(keep, new_moments, moments),
            guards,
            step + running,
            metrics,
        )

    def one_by_one(base, *models):
        """`one` of every model by itself, on the devices that have it and its rows."""
        batch = models[-2]
        over, (_, rows, *_) = P(mesh_lib.RULES["adapter"]), jax.tree.leaves(batch)[0].shape
        spread = mesh.shape[mesh_lib.RULES["rows"]] > 1 and rows % mesh.shape[mesh_lib.RULES["rows"]] == 0
        by_row = P(mesh_lib.RULES["adapter"], mesh_lib.RULES["rows"]) if spread else over
        return jax.shard_map(
            lambda base, *models: jax.lax.map(lambda own: one(base, *own, spread=spread), models),
            mesh=mesh, in_specs=(P(), *[over] * 6, by_row, over), out_specs=over, check_vma=False,
        )(base, *models)  # fmt: skip

    def step(base, scale, total, state, batch, active):
        stacked = jax.vmap(one, in_axes=(None, 0, 0, 0, 0, 0, 0, 0, 0), spmd_axis_name="adapter")
        stacked = one_by_one if alone else stacked
        adapters, moments, guards, count, metrics = stacked(
            base, state["adapters"], state["moments"], state["guards"], state["step"], scale, total, batch, active
        )
        return {"adapters": adapters, "moments": moments, "guards": guards, "step": count}, metrics

    return jax.jit(step, donate_argnums=3, out_shardings=_by_adapter(mesh))


def guarded(guards: dict[str, jax.Array], step: jax.Array, loss: jax.Array, good: jax.Array) -> dict[str, jax.Array]:
    """The guards behind a step."""
    usual = guards["usual"]
    spike = good & (step >= _SETTLED) & (loss > _SPIKE * usual)
    # A plain mean at first, then one that forgets.
    share = jnp.maximum(1.0 / (step + 1.0 - guards["skipped"]), _FORGET)
    return {
        "bad": jnp.where(good, 0, guards["bad"] + 1),
        "skipped": guards["skipped"] + ~good,
        "spikes": guards["spikes"] + spike,
        "usual": jnp.where(good, usual + share * (loss - usual), usual),
    }


def abstract_arguments(
    arch: Architecture,
    optimizer: Optimizer,
    mesh: jax.sharding.Mesh,
    *,
    dtype: DTypeLike,
    slots: int,
    rows: int,
    row_length: int,
    rank: int,
    targets: Sequence[str],
    answers: int,
) -> tuple:
    """The arguments of `make_step`'s step as shapes, dtypes and shardings, for compiling without weights or data.

    Args:
      arch, optimizer, mesh: as in `make_step`.
      dtype: of the base.
      slots: A, the models that are trained at once, empty ones included: a multiple of the adapter axis.
      rows, row_length: B and S, packed rows per model and step, and their positions.
      rank, targets: of the adapters.
      answers: the most answer tokens in a row.

    Returns:
      (base, scale, total, state, batch, active).
    """

    def per_slot(dtype: DTypeLike) -> jax.ShapeDtypeStruct:
        return mesh_lib.abstract(mesh, (slots,), ("adapter",), dtype)

    adapters = abstract_adapters(arch, mesh, slots, rank, targets, ("a", "b"))
    scale = scales(abstract_adapters(arch, mesh, slots, rank, targets, ("scale",)))
    bare = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), adapters)
    moments = jax.tree.map(
        lambda leaf: mesh_lib.abstract(mesh, leaf.shape, ("adapter",) + (None,) * (leaf.ndim - 1), leaf.dtype),
        jax.eval_shape(jax.vmap(optimizer.transformation().init), bare),
    )
    guards = {name: per_slot(kind) for name, kind in GUARDS.items()}
    state = {"adapters": adapters, "moments": moments, "guards": guards, "step": per_slot(jnp.int32)}
    widths = dict.fromkeys(("tokens", "segments", "positions"), row_length)
    widths |= dict.fromkeys(("predict", "labels"), answers)
    batch = {
        field.name: mesh_lib.abstract(mesh, (slots, rows, widths[field.name]), ("adapter", "rows", None), jnp.int32)
        for field in fields(TrainingRows)
    }
    return abstract_base(arch, mesh, dtype), scale, per_slot(jnp.int32), state, batch, per_slot(jnp.bool_)
