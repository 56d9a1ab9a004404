"""The population step: many adapters over one frozen base, trained by one jitted program.

Loss, gradient, clipping, moments, schedule and guards are all inside the `vmap`. Nothing couples one adapter to
another, so a stacked model equals the same model trained alone, whatever its neighbours do. The base has no adapter
axis, so its products stay one GEMM each. On CPUs a loop over each device's own slots takes the place of the `vmap`.

Shape letters: A slots, B rows, S positions, M answer tokens of a row, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from mossa_jax.config import Schedule, Tuning
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.llama.adapters import Adapters, HostAdapters, abstract_adapters, place_adapters, with_scales
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.model import Llama, merge
from mossa_jax.llama.placement import abstract_base
from mossa_jax.tuning.batch import Batch, abstract_batch, sum_over_micro_batches
from mossa_jax.tuning.guards import Guards, keep_if, update_guards
from mossa_jax.tuning.loss import answer_loss
from mossa_jax.tuning.optimizer import Optimizer

Metrics = dict[str, Any]
"""Metrics of a step, each [A]: `loss` (nats per answer token), `tokens` (answer tokens), `gradient_norm` (before the
clip), and the fields of `Guards`."""

Scale = dict[str, jax.Array]
"""LoRA scales: target -> [A, L] float32."""


class PopulationState(NamedTuple):
    """Everything that a population step changes. The names and their order are part of the checkpoint format.

    Attributes:
      adapters: `a` and `b` of each target [A, L, ...], float32.
      guards: each [A].
      moments: the optimizer's state; each array [A, ...].
      step: number of steps that each slot's model has taken.
    """

    adapters: Adapters
    guards: Guards
    moments: optax.OptState
    step: Int[Array, " A"]


class Slot(NamedTuple):
    """All inputs of one slot's step besides the base; with a leading axis A, those of all slots.

    Attributes:
      adapter: `a` and `b` of each target [L, ...].
      moments: the optimizer's state.
      guards: each [].
      step: steps that the slot's model has taken.
      scale: target -> [L].
      total: steps that the slot's model takes in all; 0 for an empty slot.
      rows: a batch [B, ...].
      active: whether the model takes part in this step.
    """

    adapter: Adapters
    moments: optax.OptState
    guards: Guards
    step: Int[Array, ""]
    scale: Scale
    total: Int[Array, ""]
    rows: Batch
    active: Bool[Array, ""]


class SlotUpdate(NamedTuple):
    """A slot after a step; fields as in `Slot`, and the step's metrics."""

    adapter: Adapters
    moments: optax.OptState
    guards: Guards
    step: Int[Array, ""]
    metrics: Metrics


# (sum of nats [], answer tokens []), gradient of that sum by the adapter
_Sums = tuple[tuple[jax.Array, jax.Array], Adapters]


@dataclass(frozen=True)
class StepSpec:
    """All that a population step is compiled for, besides shapes.

    Attributes:
      arch: the base's architecture.
      optimizer: of all models.
      mesh: with axes ('adapter', 'fsdp', 'tensor').
      remat: recompute the inside of blocks in the backward pass.
      micro_batches: the rows of a batch are worked through in this many micro-batches, for memory; must divide their
        number. The gradient is the sum of their sums over the sum of their answer tokens, as with one.
      prefix: columns at the head of rows that may hold ids which all their examples share.
      max_own: no example has more ids of its own than this; 0: not known.
      reproducible: models and rows go one by one, each on one device, and a model's rows are added up in their order:
        the same bits on any number of devices. The base is whole on every device, attention is `xla`, there are no
        micro-batches, and devices on the `tensor` axis repeat each other.
      log_every: steps of a window of losses.
    """

    arch: Architecture
    optimizer: Optimizer
    mesh: jax.sharding.Mesh
    remat: bool = True
    micro_batches: int = 1
    prefix: int = 0
    max_own: int = 0
    reproducible: bool = False
    log_every: int = 1

    @property
    def loops_over_slots(self) -> bool:
        """Whether each device works through its own slots one by one, instead of all at once under `vmap`.

        On a CPU larger products gain nothing, and the states of several models leave the cache (docs/measurements.md).
        """
        on_cpu = self.mesh.devices.flat[0].platform == "cpu"
        return self.reproducible or (on_cpu and self.mesh.shape["adapter"] == self.mesh.size)


def optimizer_for(tuning: Tuning, schedule: Schedule) -> Optimizer:
    """Returns the optimizer that a configuration asks for."""
    return Optimizer(
        schedule.learning_rate, tuning.warmup, tuning.beta1, tuning.beta2, tuning.weight_decay, tuning.clip
    )


def initial_state(adapters: HostAdapters, optimizer: Optimizer, mesh: jax.sharding.Mesh) -> PopulationState:
    """Returns the state before the first step, placed on the mesh.

    Args:
      adapters: untrained `a` and `b` on the host, stacked [A, ...].
      optimizer: of all models.
      mesh: slots are spread over its `adapter` axis.
    """
    # [A, L, D_in, r] and [A, L, r, D_out] per target, A over the adapter axis.
    placed = place_adapters(mesh, adapters)
    count = len(next(iter(jax.tree.leaves(adapters))))
    # One count and one pair of moments per model. A count shared by all would couple models that
    # start at different steps.
    moments = jax.jit(jax.vmap(optimizer.transformation().init))(placed)
    # As `make_step` returns them: a compiled program takes only the shardings that it was compiled for.
    moments = jax.tree.map(lambda leaf: jax.device_put(leaf, _slot_sharding(mesh, leaf)), moments)

    def zeros(dtype: DTypeLike) -> jax.Array:
        return mesh_lib.place(mesh, np.zeros(count, dtype), ("adapter",))

    return PopulationState(adapters=placed, guards=Guards.of(zeros), moments=moments, step=zeros(np.int32))


def _slot_sharding(mesh: jax.sharding.Mesh, leaf: jax.Array | jax.ShapeDtypeStruct) -> NamedSharding:
    """Returns the sharding of an array [A, ...] that is spread over the `adapter` axis alone."""
    return mesh_lib.sharding(mesh, leaf.shape, ("adapter",) + (None,) * (leaf.ndim - 1))


def _by_adapter(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Returns that sharding for arrays whose first axis divides over the `adapter` axis, whatever their shape."""
    return NamedSharding(mesh, P(mesh_lib.RULES["adapter"]))


def check_rows(label: str, rows: int, micro_batches: int) -> None:
    """Refuses a number of rows that does not divide into micro-batches.

    Args:
      label: in front of the refusal.
      rows: per model and step. If they do not divide over the `fsdp` axis, each of its devices works through all.
      micro_batches: as in `StepSpec`.

    Raises:
      Refusal: 2.
    """
    if rows % micro_batches:
        raise Refusal(
            BAD_CONFIG,
            f"{label}: batch_rows={rows} per model and step does not divide into parts={micro_batches}; change "
            f"batch_rows to a multiple of {micro_batches}, or parts",
        )


def make_refill(
    optimizer: Optimizer, mesh: jax.sharding.Mesh
) -> Callable[[PopulationState, Adapters, Bool[Array, " A"]], PopulationState]:
    """Makes the jitted `(state, fresh, is_new) -> state` that gives slots to new models; `state` is donated.

    Slots where `is_new` [A] holds start again with the adapters `fresh` [A, ...]. This is elementwise over slots, so
    that no slot looks at another.
    """

    def refill(state: PopulationState, fresh: Adapters, is_new: jax.Array) -> PopulationState:
        # All slots as if they were new, [A, ...]; the selection below takes those that are.
        start = PopulationState(
            adapters=fresh,
            guards=jax.tree.map(jnp.zeros_like, state.guards),
            moments=jax.vmap(optimizer.transformation().init)(fresh),
            step=jnp.zeros_like(state.step),
        )

        def pick(old: jax.Array, new: jax.Array) -> jax.Array:
            # [A] -> [A, 1, ...]. A selection and not a scatter by index, so that every slot stays on its device.
            return jnp.where(is_new.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

        return jax.tree.map(pick, state, start)

    return jax.jit(refill, donate_argnums=0, out_shardings=_by_adapter(mesh))


def make_step(spec: StepSpec) -> jax.stages.Wrapped:
    """Makes the jitted step `(base, scale, total, state, batch, active) -> (state, metrics)`; `state` is donated.

    `scale` is target -> [A, L], `total` [A] int32 each model's number of steps, `batch` [A, B, ...] and `active` [A]
    bool. A model that has reached its total, or is not active in this batch, stays as it is. A model whose loss or
    gradient is not finite skips the update, but not the step.

    All results are spread over the `adapter` axis alone, as `initial_state` places them, so that a compiled step takes
    its own result. A is a multiple of that axis.
    """

    def step(
        base: nnx.State, scale: Scale, total: jax.Array, state: PopulationState, batch: Batch, active: jax.Array
    ) -> tuple[PopulationState, Metrics]:
        # Every leaf has the leading axis A, so that one mapping over the whole tuple serves them all.
        slots = Slot(state.adapters, state.moments, state.guards, state.step, scale, total, batch, active)
        if spec.loops_over_slots:
            update = _loop_over_slots(spec, base, slots)
        else:
            # The base has no adapter axis: x [A, B, S, D] times one matrix is one large product. `spmd_axis_name` keeps
            # the slots of every sharding constraint inside on the adapter axis.
            stepped = jax.vmap(partial(_step_slot, spec), in_axes=(None, 0), spmd_axis_name="adapter")
            update = stepped(base, slots)
        state = PopulationState(update.adapter, update.guards, update.moments, update.step)
        return state, update.metrics

    # Donated: adapters and moments are updated in place. Output shardings are stated, since the partitioner might
    # choose others, which the compiled step would refuse as its next input.
    return jax.jit(step, donate_argnums=3, out_shardings=_by_adapter(spec.mesh))


def _loop_over_slots(spec: StepSpec, base: nnx.State, slots: Slot) -> SlotUpdate:
    """Steps every slot by itself, on the devices that hold it and its rows."""
    # One spec per field of `Slot`: [A, ...] over `adapter`, and the batch [A, B, ...] over `adapter` and `fsdp`.
    by_slot, rows_axis = P(mesh_lib.RULES["adapter"]), mesh_lib.RULES["rows"]
    # [A, B, ...]: rows that do not divide over their mesh axis are whole on each of its devices.
    rows = jax.tree.leaves(slots.rows)[0].shape[1]
    gather_rows = spec.mesh.shape[rows_axis] > 1 and rows % spec.mesh.shape[rows_axis] == 0
    by_row = P(mesh_lib.RULES["adapter"], rows_axis) if gather_rows else by_slot
    # One spec stands for all arrays of a field.
    specs = Slot._make(by_row if field == "rows" else by_slot for field in Slot._fields)

    def own_slots(base: nnx.State, slots: Slot) -> SlotUpdate:
        # A loop and not a vmap: the states of one model at a time stay in the cache.
        return jax.lax.map(lambda slot: _step_slot(spec, base, slot, gather_rows), slots)

    # The base is whole on every device. `check_vma=False`: with `gather_rows` the devices of the rows' axis all compute
    # the same update, which JAX cannot prove.
    return jax.shard_map(own_slots, mesh=spec.mesh, in_specs=(P(), specs), out_specs=by_slot, check_vma=False)(
        base, slots
    )


def _step_slot(spec: StepSpec, base: nnx.State, slot: Slot, gather_rows: bool = False) -> SlotUpdate:
    """Takes one optimizer step of one model.

    Args:
      spec: of the step.
      base: the frozen model's weights.
      slot: of the model.
      gather_rows: only some of the slot's rows are on this device; the others are on the rest of the rows' axis.
    """
    model = merge(spec.arch, base)
    if spec.reproducible:
        (nats, count), gradients = _sum_in_order(spec, model, slot, gather_rows)
    else:
        (nats, count), gradients = sum_over_micro_batches(
            partial(_sums_over, spec, model, slot), slot.rows, spec.micro_batches
        )
    # The gradient of the mean over all answer tokens of the batch; an empty slot has none. Division comes after the sum
    # over micro-batches, so their number does not change the gradient.
    count = jnp.maximum(count, 1)
    gradients = jax.tree.map(lambda leaf: leaf / count, gradients)
    adapter, moments = spec.optimizer.update(gradients, slot.moments, slot.adapter, slot.step, slot.total)
    # All [], one model. Every slot computes an update, and selections decide what counts: no branch, so the same
    # program serves slots that are running, done, empty, or not part of this batch.
    is_running = (slot.step < slot.total) & slot.active
    # Before the clip, which would hide a gradient that grows.
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradients)))
    loss = nats / count
    is_finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    guards = keep_if(is_running, update_guards(slot.guards, slot.step, loss, is_finite, spec.log_every), slot.guards)
    return SlotUpdate(
        # An update that is not finite would stay in the moments forever, so they are kept as they were too.
        adapter=keep_if(is_running & is_finite, adapter, slot.adapter),
        moments=keep_if(is_running & is_finite, moments, slot.moments),
        guards=guards,
        # Counts skipped updates: the schedule and the order of rows go by steps.
        step=slot.step + is_running,
        metrics={"loss": loss, "tokens": count, "gradient_norm": norm, **guards._asdict()},
    )


def _sums_over(spec: StepSpec, model: Llama, slot: Slot, rows: Batch) -> _Sums:
    """Sums the loss, its answer tokens and its gradient by the adapter over rows [B, ...]."""
    # Inside `shard_map` a device sees its own rows as the whole batch, and no sharding may be asked for.
    mesh = None if spec.loops_over_slots else spec.mesh

    def loss(adapter: Adapters) -> tuple[Float[Array, ""], Float[Array, ""]]:
        # Scales join here and not in `slot.adapter`, so that they are not differentiated.
        adapter = with_scales(adapter, slot.scale)
        return answer_loss(model, spec.arch, adapter, rows, spec.remat, mesh, prefix=spec.prefix, max_own=spec.max_own)

    # By the adapter alone: for the base's weights no gradient is ever computed.
    return jax.value_and_grad(loss, has_aux=True)(slot.adapter)


def _sum_in_order(spec: StepSpec, model: Llama, slot: Slot, gather_rows: bool) -> _Sums:
    """Sums the same over all rows of a slot, from the first to the last, on whatever devices they are."""

    def sums_of_row(row: Batch) -> _Sums:
        return _sums_over(spec, model, slot, jax.tree.map(lambda leaf: leaf[None], row))

    # Float addition is not associative, so a sum over rows must have one order on any number of devices. Each row is a
    # batch of its own, [1, ...], and its gradient is kept until all can be added in order.
    each = jax.lax.map(sums_of_row, slot.rows)  # [rows on this device, ...]
    if gather_rows:
        each = jax.lax.all_gather(each, mesh_lib.RULES["rows"], tiled=True)  # [B, ...]
    # A scan and not `sum(axis=0)`, whose order is the compiler's choice.
    first, rest = jax.tree.map(lambda leaf: leaf[0], each), jax.tree.map(lambda leaf: leaf[1:], each)
    return jax.lax.scan(lambda total, row: (jax.tree.map(jnp.add, total, row), None), first, rest)[0]


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
) -> tuple[Any, Any, Any, PopulationState, Any, Any]:
    """Returns the arguments of a step as shapes, dtypes and shardings, for compiling without weights or data.

    Args:
      arch, optimizer, mesh: as in `StepSpec`.
      dtype: of the base.
      slots: A, the models that are trained at once, empty slots included: a multiple of the adapter axis.
      rows, row_length: B and S, packed rows per model and step, and their positions.
      rank, targets: of the adapters.
      answers: M, the most answer tokens in a row.

    Returns:
      (base, scale, total, state, batch, active), trees of `jax.ShapeDtypeStruct`.
    """

    def per_slot(dtype: DTypeLike) -> Any:
        return mesh_lib.abstract(mesh, (slots,), ("adapter",), dtype)

    adapters: Any = abstract_adapters(arch, mesh, slots, rank, targets, ("a", "b"))
    scale: Any = {
        target: leaves["scale"]
        for target, leaves in abstract_adapters(arch, mesh, slots, rank, targets, ("scale",)).items()
    }
    # Moments as `initial_state` makes and places them: shapes from the optimizer, slots over `adapter`.
    bare = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), adapters)
    moments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_slot_sharding(mesh, leaf)),
        jax.eval_shape(jax.vmap(optimizer.transformation().init), bare),
    )
    state = PopulationState(adapters, Guards.of(per_slot), moments, per_slot(jnp.int32))
    batch = abstract_batch(mesh, (slots, rows), row_length, answers)
    return abstract_base(arch, mesh, dtype), scale, per_slot(jnp.int32), state, batch, per_slot(jnp.bool_)
