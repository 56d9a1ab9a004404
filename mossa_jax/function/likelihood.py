"""Log probabilities of given answers, teacher-forced: each prompt is read once, whatever the number of its answers.

Prompts are packed into rows and read by all models at once, like those of the comparison; ids that all of them share
are read once for all. Their keys and values stay on the devices while the answers follow, several of one prompt side by
side. An answer is fed with the prompt's last id in front, whose output predicts its first id: so all that is read from
a prompt is its keys and values, and nothing of it twice but that id.

Where a rotary scaling depends on a sequence's length (dynamic, LongRoPE), keys of a prompt are rotated by the prompt's
length and those of an answer by its own, as in decoding. One pass over both would differ only beyond the length that
the model was first trained on.

Shape letters: A models, n pairs, B packed rows of a batch, S positions of a row, T columns of the shared prefix, Q
columns for answers, L layers, K key/value heads, d head width, P prompts per row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.llama.adapters import Adapters, DeviceAdapter, HostAdapters
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.attention import BranchColumns, Segments
from mossa_jax.llama.files.load import Model
from mossa_jax.llama.layers import KeysValues, SharedPrefix
from mossa_jax.llama.model import embed, merge, pin_rows, run_branches, windowed_blocks
from mossa_jax.states.forward import PassSpec, PrefixStates, RowBatch, abstract_prefix
from mossa_jax.states.prompts import PassConfig, PromptPass
from mossa_jax.states.shapes import PassShape
from mossa_jax.tokens.encoded import Examples
from mossa_jax.tokens.plan import plan_rows
from mossa_jax.tokens.rows import PromptRows
from mossa_jax.tuning.loss import HEAD_TOKENS, losses_of_states

# Rows over `fsdp` and heads over `tensor`, as the projections that compute them: [L, A, B, S, K, d]. Layers come
# first, as the scan over them writes and reads them; any other order would be a copy.
_PAST_AXES = (None, None, "rows", None, "kv_heads", None)
# Q is rounded up to this, so that lists of similar answers share a program.
_COLUMNS_MULTIPLE = 32


class ReadRows(NamedTuple):
    """What is kept of packed prompts that were read.

    Attributes:
      past: keys and values, [L, A, B, S, K, d] each.
      prefix: those of the T columns that all prompts share, [A, L, T, K, d] each; None: there are none.
      owners: [B, T + S] int32, as `BranchColumns.key_owners`: the number of the prompt in its row, from 1.
      positions: [B, T + S] int32.
    """

    past: KeysValues
    prefix: SharedPrefix | None
    owners: Int[Array, "B T+S"]
    positions: Int[Array, "B T+S"]


class AnswerColumns(NamedTuple):
    """Answers side by side behind the prompts of a batch; all [B, Q] int32.

    Attributes:
      tokens: the prompt's last id, and all ids of the answer but the last.
      owners: the number of the prompt in its row, from 1; 0 on padding.
      branches: the number of the answer in its row, from 1; 0 on padding.
      positions: in the sequence of prompt and answer.
      labels: the id that follows; -1 on padding.
    """

    tokens: Int[Array, "B Q"]
    owners: Int[Array, "B Q"]
    branches: Int[Array, "B Q"]
    positions: Int[Array, "B Q"]
    labels: Int[Array, "B Q"]


@dataclass(frozen=True)
class AskedPrompts:
    """Pairs of prompt and answer by their prompts, each prompt and each answer of it once.

    Attributes:
      prompts: token ids of the different prompts: NumPy arrays, which stand for sequences of ids.
      answers: for each of them its different answers.
      first: for each prompt, the number of its first answer, counted prompt after prompt.
      index: [n] int64, the number of each pair's answer.
    """

    prompts: list
    answers: list[list[np.ndarray]]
    first: np.ndarray
    index: np.ndarray

    @classmethod
    def of(cls, pairs: Examples) -> AskedPrompts:
        """Sorts pairs by prompt. In tasks with few answers, a prompt's own and those of others are often the same."""
        place: dict[bytes, int] = {}
        known: list[dict[bytes, int]] = []
        prompts: list = []
        answers: list[list[np.ndarray]] = []
        where = np.zeros((len(pairs), 2), np.int64)
        for pair in range(len(pairs)):
            prompt = pairs.prompt(pair)
            answer = pairs.gather(np.asarray([pair]))[len(prompt) :]
            number = place.setdefault(prompt.tobytes(), len(prompts))
            if number == len(prompts):
                prompts.append(prompt)
                answers.append([])
                known.append({})
            slot = known[number].setdefault(answer.tobytes(), len(answers[number]))
            if slot == len(answers[number]):
                answers[number].append(answer)
            where[pair] = number, slot
        counts = np.asarray([len(own) for own in answers], np.int64)
        first = np.cumsum(counts) - counts
        return cls(prompts, answers, first, first[where[:, 0]] + where[:, 1])

    @property
    def longest(self) -> int:
        """The most ids of an answer."""
        return max(len(answer) for own in self.answers for answer in own)


@dataclass(frozen=True)
class ContinuationShape:
    """The sizes that the programs of `log_likelihoods` depend on.

    Attributes:
      passes: of the prompts' rows.
      longest: the most ids of an answer.
    """

    passes: tuple[PassShape, ...]
    longest: int

    @classmethod
    def of(
        cls, lists: Iterable[AskedPrompts], arch: Architecture, config: PassConfig, mesh: jax.sharding.Mesh
    ) -> ContinuationShape:
        """Chooses the shape that serves several lists; at least one of them has pairs.

        Args:
          lists: prompts with answers, of which only the sizes are kept.
          arch: of the model that reads them.
          config: how prompts are packed.
          mesh: that rows are spread over.
        """
        sizes = [(config.pack(arch, asked.prompts).sizes, asked.longest) for asked in lists]
        return cls(config.shapes([each for each, _ in sizes], mesh), max(longest for _, longest in sizes))

    def columns(self, row_length: int) -> int:
        """Returns Q for rows of `row_length` positions: half as many, or as many as the longest answer needs."""
        return mesh_lib.round_up(max(self.longest, row_length // 2), _COLUMNS_MULTIPLE)


def log_likelihoods(
    model: Model, adapters: HostAdapters, pairs: Examples, config: PassConfig, shape: ContinuationShape | None = None
) -> Float[np.ndarray, "A n"]:
    """Returns the log probability of each pair's answer after its prompt, by each model.

    Args:
      model: the base model.
      adapters: stacked [A, ...] on the host.
      pairs: prompts and answers; the last id of a whole answer is EOS.
      config: how prompts are packed and read; its `pool` is not read.
      shape: for all lists that are to share programs; by default that of `pairs` alone.

    Returns:
      [A, n] float64, the sum over the answer's ids, in nats.

    Raises:
      ValueError: a prompt has no ids or fits no row.
    """
    arch, mesh, asked = model.architecture, model.mesh, AskedPrompts.of(pairs)
    if shape is None:
        shape = ContinuationShape.of([asked], arch, config, mesh)
    run = PromptPass(model, adapters, asked.prompts, config, shape.passes)
    result = np.zeros((run.models, sum(map(len, asked.answers))))
    for rows, batch in run.batches_with_rows():
        read = read_rows(run.spec, *run.arguments, batch, run.prefix)
        for columns, items in lay_answers(rows, asked, shape.columns(rows.tokens.shape[1])):
            placed = AnswerColumns(**{name: mesh_lib.place(mesh, x, ("rows", None)) for name, x in columns.items()})
            # [A, B, Q], whole on every process.
            nats = jax.device_put(branch_losses(arch, mesh, *run.arguments, read, placed), mesh_lib.replicated(mesh))
            # [A, columns with a label]; the ids of an answer are side by side.
            own = np.asarray(nats, np.float64)[:, items >= 0]
            answer = items[items >= 0]
            starts = np.flatnonzero(np.diff(answer, prepend=-1))
            result[:, answer[starts]] = -np.add.reduceat(own, starts, axis=1)
    return result[:, asked.index]


def lay_answers(
    rows: PromptRows, asked: AskedPrompts, width: int
) -> Iterator[tuple[dict[str, np.ndarray], Int[np.ndarray, "B Q"]]]:
    """Lays the answers of a batch's prompts side by side, in as many columns as they need.

    Args:
      rows: the prompts of the batch.
      asked: `rows.ids` are numbers of its prompts.
      width: Q.

    Yields:
      The fields of `AnswerColumns`, and the number of the answer that each column belongs to; -1 on padding.
    """
    # Row after row: the answers of its prompts, as (prompt, its number in the row, number of the answer, ids).
    answers = [
        [
            (prompt, slot, asked.first[prompt] + number, ids)
            for slot, prompt in enumerate(own, 1)
            if prompt >= 0
            for number, ids in enumerate(asked.answers[prompt])
        ]
        for own in rows.ids.tolist()
    ]
    plans = [plan_rows([len(ids) for *_, ids in own], width)[0] for own in answers]
    for turn in range(max(map(len, plans))):
        columns = {name: np.zeros((len(answers), width), np.int32) for name in AnswerColumns._fields}
        columns["labels"][:] = -1
        items = np.full((len(answers), width), -1, np.int64)
        for row, (own, plan) in enumerate(zip(answers, plans, strict=True)):
            start = 0
            for branch, item in enumerate(plan.take(np.arange(turn, min(turn + 1, len(plan)))).items, 1):
                prompt, slot, number, ids = own[item]
                place = slice(start, start := start + len(ids))
                before = asked.prompts[prompt]
                columns["tokens"][row, place] = [before[-1], *ids[:-1]]
                columns["owners"][row, place], columns["branches"][row, place] = slot, branch
                columns["positions"][row, place] = len(before) - 1 + np.arange(len(ids))
                columns["labels"][row, place], items[row, place] = ids, number
        yield columns, items


@partial(jax.jit, static_argnames=("spec",))
def read_rows(
    spec: PassSpec, base: nnx.State, adapters: Adapters, batch: RowBatch, prefix: PrefixStates | None
) -> ReadRows:
    """Reads packed prompts by several models, and keeps their keys and values.

    Args:
      spec: the static part of the pass.
      base: the base's state.
      adapters: stacked [A, L, ...] on the devices.
      batch: the prompts, rows over `fsdp`.
      prefix: of the ids that all prompts share; None if they share none.
    """
    arch, mesh = spec.arch, spec.mesh
    model, rows = merge(arch, base), len(batch.tokens)
    shared = jnp.zeros((rows, 0), jnp.int32)
    if prefix is not None:
        columns = jnp.broadcast_to(jnp.arange(spec.prefix_length), (rows, spec.prefix_length))
        shared = jnp.where(columns < prefix.length, -1, 0)  # [B, T]
    visible = Segments(jnp.concatenate([shared, batch.segments], axis=1), mesh, spec.prefix_length, spec.max_own)
    x, table = embed(model, arch, batch.tokens, batch.positions, visible)  # [B, S, D]

    def one_model(adapter: DeviceAdapter, prefix: SharedPrefix | None) -> KeysValues:
        def body(x: jax.Array, layer: tuple) -> tuple[jax.Array, KeysValues]:
            block, lora, windowed, past = layer
            x, own = block(x, lora, table, visible, windowed, past=past)
            return pin_rows(x, visible), own

        return jax.lax.scan(body, x, (model.blocks, adapter, windowed_blocks(arch), prefix))[1]

    keys_values = None if prefix is None else prefix.keys_values
    per_model = partial(jax.vmap, spmd_axis_name="adapter", out_axes=1)
    past = per_model(one_model, in_axes=(0, None if prefix is None else 0))(adapters, keys_values)
    # Stated, so that the program of the answers can be compiled before there is anything to read.
    past = jax.tree.map(
        lambda leaf: jax.lax.with_sharding_constraint(leaf, mesh_lib.sharding(mesh, leaf.shape, _PAST_AXES)), past
    )
    # The last id of a prompt is read again before each answer, so that its keys here are nobody's.
    is_end = ((jnp.arange(batch.tokens.shape[1]) == batch.ends[..., None]) & (batch.ids >= 0)[..., None]).any(axis=1)
    owners = jnp.concatenate([shared, jnp.where(is_end, 0, batch.segments)], axis=1)
    positions = jnp.concatenate([jnp.broadcast_to(jnp.arange(shared.shape[1]), shared.shape), batch.positions], axis=1)
    owners, positions = (
        jax.lax.with_sharding_constraint(x, mesh_lib.sharding(mesh, x.shape, ("rows", None)))
        for x in (owners, positions)
    )
    return ReadRows(past, keys_values, owners, positions)


@partial(jax.jit, static_argnames=("arch", "mesh"))
def branch_losses(
    arch: Architecture,
    mesh: jax.sharding.Mesh,
    base: nnx.State,
    adapters: Adapters,
    read: ReadRows,
    columns: AnswerColumns,
) -> Float[Array, "A B Q"]:
    """Returns the loss of every answer id by several models, in nats; 0 on padding.

    Args:
      arch: the base model's.
      mesh: that rows and weights are spread over.
      base: the base's state.
      adapters: stacked [A, L, ...] on the devices.
      read: what the same models have read.
      columns: the answers.
    """
    model, models = merge(arch, base), len(next(iter(jax.tree.leaves(adapters))))
    visible = BranchColumns(read.owners, read.positions, columns.owners, columns.branches, columns.positions)
    every = jnp.broadcast_to(jnp.arange(columns.labels.shape[1]), columns.labels.shape)
    rows = {"predict": every, "labels": columns.labels}

    def one_model(adapter: DeviceAdapter, past: KeysValues, prefix: SharedPrefix | None) -> Float[Array, "B Q"]:
        last = run_branches(model, arch, adapter, columns.tokens, visible, past, prefix)
        # The logits of all models stand side by side, and take the memory of one model's in training.
        return losses_of_states(model, arch, last, rows, mesh, max(HEAD_TOKENS // models, 1))

    axes = (0, 1, None if read.prefix is None else 0)
    return jax.vmap(one_model, in_axes=axes, spmd_axis_name="adapter")(adapters, read.past, read.prefix)


def abstract_branches(
    spec: PassSpec, dtype: DTypeLike, models: int, rows: int, row_length: int, columns: int
) -> tuple[Any, Any]:
    """Describes the arguments (read, columns) of `branch_losses` as shapes, dtypes and shardings.

    Args:
      spec: the static part of the pass that reads the prompts.
      dtype: the base's.
      models: A.
      rows, row_length: B and S.
      columns: Q.
    """
    arch, mesh, keys = spec.arch, spec.mesh, spec.prefix_length + row_length

    def indices(width: int) -> jax.ShapeDtypeStruct:
        return mesh_lib.abstract(mesh, (rows, width), ("rows", None), jnp.int32)

    shape = (arch.layers, models, rows, row_length, arch.kv_heads, arch.head_dim)
    past = mesh_lib.abstract(mesh, shape, _PAST_AXES, dtype)
    prefix = abstract_prefix(spec, dtype, models).keys_values if spec.prefix_length else None
    return (
        ReadRows._make([KeysValues._make([past, past]), prefix, indices(keys), indices(keys)]),
        AnswerColumns._make([indices(columns)] * 5),
    )
