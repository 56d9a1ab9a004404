"""Full fine-tuning: every parameter of a base model, sharded over the mesh with its gradients and moments (FSDP).

Parameters are float32 masters, whatever the base computes in: a bfloat16 weight is too coarse for the small steps of
fine-tuning, which would be rounded away. Forward and backward passes run on a copy in the base's own dtype. Batches,
loss, schedule, guards and checkpoints are those of the adapters.

Shape letters: B rows, S positions, M answer tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mossa_jax.config import OPTIMIZERS, Schedule, Tuning
from mossa_jax.config.kinds import tuning_identity
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.devices.memory import compile_step
from mossa_jax.errors import BAD_CONFIG, NOT_FINITE, Refusal
from mossa_jax.files.names import digest
from mossa_jax.files.write import new_folder, write_text
from mossa_jax.llama.architecture import read_config
from mossa_jax.llama.files.about import write_about
from mossa_jax.llama.files.card import CARD, model_card
from mossa_jax.llama.files.exported import OWN_WEIGHTS
from mossa_jax.llama.files.load import Model
from mossa_jax.llama.files.weights import save_weights
from mossa_jax.llama.fingerprint import weights_digest
from mossa_jax.llama.model import merge
from mossa_jax.llama.placement import leaf_name, shardings
from mossa_jax.monitoring import goodput
from mossa_jax.tuning.batch import Batch, abstract_batch, place_batch, sum_over_micro_batches
from mossa_jax.tuning.checkpoints import Checkpoints, checkpoint_folder
from mossa_jax.tuning.curves import LossCurves, LossSinceLine
from mossa_jax.tuning.guards import Guards, keep_if, update_guards
from mossa_jax.tuning.loop import train
from mossa_jax.tuning.loss import answer_loss
from mossa_jax.tuning.members import Member, RowLength, TuningContext, batches_for, not_finite
from mossa_jax.tuning.optimizer import FullOptimizer, Optimizer
from mossa_jax.tuning.population import optimizer_for
from mossa_jax.tuning.windows import ends_window

Metrics = dict[str, Any]
"""Metrics of a step, each []: `loss` (nats per answer token), `gradient_norm` (before the clip), and the fields of
`Guards`."""


class FullState(NamedTuple):
    """Everything that a full step changes. The names and their order are part of the checkpoint format.

    Attributes:
      guards: each [].
      moments: the optimizer's state, sharded as its parameters are.
      parameters: the model's state in float32, sharded by the table in `devices.mesh`.
    """

    guards: Guards
    moments: optax.OptState
    parameters: nnx.State


@dataclass(frozen=True)
class FullStepSpec:
    """All that a full step is compiled for, besides shapes.

    Attributes:
      model: the base; its state may be shapes.
      optimizer: of all parameters.
      shardings: of every leaf of the state.
      remat, micro_batches, prefix, max_own, log_every: as in `population.StepSpec`.
    """

    model: Model
    optimizer: Optimizer
    shardings: FullState
    remat: bool = True
    micro_batches: int = 1
    prefix: int = 0
    max_own: int = 0
    log_every: int = 1


class FullPrograms:
    """The programs of models that are tuned in full one after another: compiled once, for the sizes of all of them.

    Attributes:
      model: the base; its state may be shapes.
      schedule: of the models.
      row_lengths: the models' short rows and their long ones.
      initialize: the jitted `base -> state before the first step`.
      shardings: of every leaf of the state.
    """

    def __init__(self, label: str, members: Sequence[Member], model: Model, schedule: Schedule, tuning: Tuning):
        """Prepares the programs; nothing is compiled yet.

        Args:
          label: of the group, for messages.
          members: all models, those that are tuned already too: a run that is resumed has the same programs.
          model: the base; parameters and the rows of a batch are spread over its mesh. Only the shapes and dtypes of
            its state are used.
          schedule: of the members.
          tuning: its fields that describe adapters do not count.

        Raises:
          Refusal: 2 for an unknown optimizer.
        """
        if schedule.optimizer not in OPTIMIZERS:
            raise Refusal(
                BAD_CONFIG, f"optimizer {schedule.optimizer!r} is unknown; these are: {', '.join(OPTIMIZERS)}"
            )
        self.model, self.schedule = model, schedule
        self._label, self._remat, self._log_every = label, tuning.remat, tuning.log_every
        self._optimizer = FullOptimizer(**vars(optimizer_for(tuning, schedule)), kind=schedule.optimizer)
        batches = [batches_for(member, schedule.batch_rows) for member in members]
        self.row_lengths = RowLength.of(members, batches, 0), RowLength.of(members, batches, 1)
        self.initialize, self.shardings = make_initialize(model, self._optimizer)
        # A compiled step by row length (0 short, 1 long), from its first batch on.
        self._steps: dict[int, jax.stages.Compiled] = {}

    def step(self, which: int, arguments: tuple[FullState, Batch, int, int]) -> tuple[FullState, Metrics]:
        """Takes a step with rows of one length, `which` 0 for short and 1 for long ones."""
        if which not in self._steps:
            self._steps[which] = self._compile(self.row_lengths[which], arguments)
        return self._steps[which](*arguments)

    def _compile(self, rows: RowLength, arguments: tuple[FullState, Batch, int, int]) -> jax.stages.Compiled:
        """Compiles the step for rows of one length, with recomputation where configuration or memory ask for it."""
        spec = FullStepSpec(
            self.model,
            self._optimizer,
            self.shardings,
            micro_batches=rows.micro_batches(self.schedule),
            prefix=rows.prefix,
            max_own=rows.max_own,
            log_every=self._log_every,
        )
        return compile_step(
            f"{self._label}, rows of {rows.length}",
            self._remat,
            lambda remat: make_step(replace(spec, remat=remat)),
            arguments,
            self.model.mesh.local_devices[0],
        )


def tune_full(
    label: str,
    member: Member,
    programs: FullPrograms,
    weights: Callable[[], nnx.State],
    context: TuningContext,
) -> nnx.State:
    """Trains all parameters of a base model on a member's rows; returns them, float32, on the model's mesh.

    All devices together hold parameters, gradients and two moments, 16 bytes per parameter (12 with Adafactor; 4 more
    with micro-batches, for the sum of their gradients), the narrow copy that a bfloat16 base computes with, and what
    the pass of one layer needs. The base's own weights are there before the first step only, unless the caller holds
    them.

    Args:
      label: in front of progress lines, and the name of the folder of checkpoints.
      member: its rows, number of steps and seed; one of those that `programs` are for.
      programs: of the group.
      weights: returns the base's weights; called where there is no checkpoint to resume from, and to find why a loss is
        not finite.
      context: of the run; the fields of its `tuning` that describe adapters do not count.

    Raises:
      Refusal: 3 when the compiler finds no room for a step; 5, naming model, step and rows, when it has skipped
        `tuning.skips` updates in a row, or its parameters are not finite in the end; 75 on a request to stop.
    """
    tuning, model = context.tuning, programs.model
    run = FullRun(label, member, programs, weights, context)
    # Only shapes go in: with a checkpoint to resume from, no first state takes room beside the one that is read.
    shapes = mesh_lib.abstract_tree(jax.eval_shape(programs.initialize, model.state), programs.shardings)
    # Checkpoints of another model or of other settings are refused by this digest.
    config = digest(
        [tuning_identity(tuning), asdict(programs.schedule), member.name, member.steps, member.seed, member.rests_on]
    )
    state = train(
        label,
        member.steps,
        shapes,
        run.step,
        run.report,
        run.describe,
        checkpoints=Checkpoints(
            checkpoint_folder(context.run_folder, label), config=config, before_sealing=context.run_folder.flush
        ),
        checkpoint_every=tuning.checkpoint_every,
        log_every=tuning.log_every,
        stop=context.stop,
    )
    if not _all_finite(state.parameters):
        raise Refusal(NOT_FINITE, f"{label}: {member.name!r} has parameters that are not finite; it is not exported")
    return state.parameters


class FullRun:
    """The training of one model: the work of each step, and its report."""

    def __init__(
        self,
        label: str,
        member: Member,
        programs: FullPrograms,
        weights: Callable[[], nnx.State],
        context: TuningContext,
    ):
        """Prepares the training. Arguments as in `tune_full`."""
        self._label, self._member, self._programs, self._weights = label, member, programs, weights
        self._skips, self._log_every = context.tuning.skips, context.tuning.log_every
        self._batches = batches_for(member, programs.schedule.batch_rows)
        self._curves = LossCurves(context.run_folder)
        self._loss, self._recorded, self._skipped = LossSinceLine(), 0, 0

    def step(self, state: FullState, number: int) -> tuple[FullState, Metrics]:
        """Takes one step; the first one begins with the base's weights."""
        programs = self._programs
        if number == 0:
            # No name holds the base's weights, so they are freed as soon as the first state is there.
            state = programs.initialize(self._weights())
        which, index = self._batches.at(number)
        with goodput.lost("input"):
            # Fields [B, ...], rows over `fsdp`; all members' batches have one width.
            rows = self._member.rows[which].take(index, programs.row_lengths[which].width)
            batch = place_batch(programs.model.mesh, rows)
        return programs.step(which, (state, batch, number, self._member.steps))

    def report(self, done: int, metrics: Metrics) -> None:
        """Records the window of losses that ends with the `done`-th step, if one does.

        Raises:
          Refusal: 5 when `tuning.skips` updates in a row were skipped.
        """
        self._skipped = int(metrics["skipped"])
        if ends_window(done, self._log_every, self._member.steps) and done > self._recorded:
            self._recorded, window = done, jax.tree.map(np.asarray, metrics["window"])
            self._loss.add(window)
            spikes = int(metrics["spikes"])
            self._curves.append(self._member.name, done, window, skipped=self._skipped, spikes=spikes)
        if metrics["bad"] >= self._skips:
            # The base's weights are there no more, and may be the cause.
            base = replace(self._programs.model, state=self._weights())
            raise not_finite(self._label, self._member, self._batches.at(done - 1), done, self._skips, base)

    def describe(self) -> str:
        """Says what the loss was since the last line of progress, and how many updates were skipped in all."""
        skipped = f"{self._skipped} updates skipped" if self._skipped else ""
        return ", ".join(filter(None, (self._loss.report(), skipped)))


@jax.jit
def _all_finite(parameters: nnx.State) -> jax.Array:
    # [leaves] -> []: one number leaves the devices.
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(parameters)]).all()


def make_initialize(model: Model, optimizer: Optimizer) -> tuple[Callable[[nnx.State], FullState], FullState]:
    """Makes the jitted `base -> state before the first step`; returns it with the sharding of every leaf of the state.

    Args:
      model: the base; its state may be shapes.
      optimizer: of all parameters.
    """

    def initialize(base: nnx.State) -> FullState:
        # Masters: float32, or float64 for a float64 base.
        parameters = jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), base)
        guards = Guards.of(lambda dtype: jnp.zeros((), dtype))
        return FullState(guards, optimizer.transformation().init(parameters), parameters)

    state = jax.eval_shape(initialize, model.state)
    parameters = shardings(model.architecture, model.mesh)
    # Moments are nested in optax's own tuples, but the path to each ends in the name of its parameter.
    specs = {leaf_name(path): sharding.spec for path, sharding in jax.tree.leaves_with_path(parameters)}
    shapes = {leaf_name(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(state.parameters)}

    def moment_sharding(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        """Returns the sharding of a moment: that of its parameter, without the axis that it is a mean over."""
        name = leaf_name(path)
        for parameter, shape in shapes.items():
            if not name.endswith(f".{parameter}"):
                continue
            # AdamW's moments have the parameter's shape. Adafactor's means of rows and of columns lack one of its axes.
            for dropped in range(-1, len(shape)):  # -1: none
                kept = [axis for axis in range(len(shape)) if axis != dropped]
                if leaf.shape == tuple(shape[axis] for axis in kept):
                    return NamedSharding(model.mesh, P(*(specs[parameter][axis] for axis in kept)))
        # Counts, and the single zeros that optax keeps where it has no moment.
        return mesh_lib.replicated(model.mesh)

    where = FullState(
        guards=Guards.of(lambda _: mesh_lib.replicated(model.mesh)),
        moments=jax.tree.map_with_path(moment_sharding, state.moments),
        parameters=parameters,
    )
    # Every device makes its own shards of masters and moments; nothing is ever whole on one device.
    return jax.jit(initialize, out_shardings=where), where


def make_step(spec: FullStepSpec) -> jax.stages.Wrapped:
    """Makes the jitted step `(state, batch, number, total) -> (state, metrics)`; `state` is donated.

    `batch` holds rows [B, ...]; `number` counts steps from 0 to `total`. If loss or gradient is not finite, the
    update is skipped, but not the step.
    """
    arch, mesh, optimizer = spec.model.architecture, spec.model.mesh, spec.optimizer
    dtype = jax.tree.leaves(spec.model.state)[0].dtype

    def gradients_of(parameters: nnx.State, rows: Batch, count: jax.Array) -> tuple[jax.Array, nnx.State]:
        def loss(parameters: nnx.State) -> jax.Array:
            # The cast is inside the differentiated function, so the gradient comes out in the masters' float32.
            narrow = jax.tree.map(lambda leaf: leaf.astype(dtype), parameters)
            nats, _ = answer_loss(
                merge(arch, narrow), arch, {}, rows, spec.remat, mesh,
                prefix=spec.prefix, max_own=spec.max_own, frozen=False,
            )  # fmt: skip
            # Divided here, not after the gradient: a gradient that is changed exists twice.
            return nats / count

        # [] and a tree like the parameters, float32.
        value, gradients = jax.value_and_grad(loss)(parameters)
        # Each device keeps its own shard of the sum over rows, and never the whole gradient.
        return value, jax.lax.with_sharding_constraint(gradients, spec.shardings.parameters)

    def step(state: FullState, batch: Batch, number: jax.Array, total: jax.Array) -> tuple[FullState, Metrics]:
        # Over the whole batch, before it is cut up: sums of micro-batches, each divided by this, add up to the mean.
        count = jnp.maximum(jnp.sum(batch["labels"] >= 0, dtype=jnp.float32), 1)
        loss, gradients = sum_over_micro_batches(
            lambda rows: gradients_of(state.parameters, rows, count), batch, spec.micro_batches
        )
        # [], over all leaves and their shards, before the clip.
        norm = optax.global_norm(gradients)
        is_finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        new = optimizer.update(gradients, state.moments, state.parameters, number, total)
        # A selection and no branch. A gradient that is not finite leaves no trace in parameters or moments.
        parameters, moments = keep_if(is_finite, new, (state.parameters, state.moments))
        guards = update_guards(state.guards, number, loss, is_finite, spec.log_every)
        return FullState(guards, moments, parameters), {"loss": loss, "gradient_norm": norm, **guards._asdict()}

    # Donated: masters and moments would otherwise exist twice. Metrics are whole on every device.
    return jax.jit(step, donate_argnums=0, out_shardings=(spec.shardings, mesh_lib.replicated(mesh)))


def abstract_arguments(
    model: Model, optimizer: Optimizer, *, rows: int, row_length: int, answers: int
) -> tuple[FullState, Any, jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Returns the arguments of a full step as shapes, dtypes and shardings, for compiling without weights or data.

    Args:
      model, optimizer: as in `FullStepSpec`.
      rows, row_length: B and S, packed rows per step, and their positions.
      answers: M, the most answer tokens in a row.

    Returns:
      (state, batch, number, total), trees of `jax.ShapeDtypeStruct`; the numbers are weakly typed, as Python's are.
    """
    initialize, where = make_initialize(model, optimizer)
    state = mesh_lib.abstract_tree(jax.eval_shape(initialize, model.state), where)
    number = jax.ShapeDtypeStruct((), np.int32, weak_type=True)
    return state, abstract_batch(model.mesh, (rows,), row_length, answers), number, number


def save_full(folder: epath.PathLike, model: Model, state: nnx.State, about: Mapping[str, Any]) -> None:
    """Writes tuned parameters as a Hugging Face folder, in the dtype of the base; all processes call it.

    Args:
      folder: replaced as a whole, never left half written.
      model: the base that was tuned; its config and tokenizer files are copied. Its state may be shapes.
      state: what `tune_full` returned.
      about: written into the folder as `mossa.json` (tasks, template, seed, ...) with digests of its files and
        weights, and in words as its card, `README.md`.
    """
    arch, config = model.architecture, read_config(model.folder)
    # Rounded once, at the end; shards stay where they are, and `save_weights` gathers them layer by layer.
    stored = jax.tree.map(lambda leaf, base: leaf.astype(base.dtype), state, model.state)
    about = {**about, OWN_WEIGHTS: weights_digest(stored)}
    if jax.process_index() != 0:
        # Gathering a layer is a collective, so that processes that write nothing take part in it too.
        save_weights(folder, arch, stored, config, model.folder, writer=False)
        return
    with new_folder(folder) as new:
        save_weights(new, arch, stored, config, model.folder)
        write_text(new / CARD, model_card(about, model.name, is_whole=True))
        write_about(new, about, but=".safetensors")
