"""Greedy answers of several models to the same prompts.

Shape letters: A adapters, n examples, B prompts of a batch, S positions, T new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.llama.adapters import HostAdapters, place_adapters
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.files.load import Model
from mossa_jax.llama.generate import greedy
from mossa_jax.llama.model import can_share_prefix, parameter_count
from mossa_jax.processes.watchdog import sign
from mossa_jax.states.forward import read_prefix
from mossa_jax.states.shapes import PREFIX_MULTIPLE
from mossa_jax.tokens.few_sizes import batch_sizes, size_for, two_sizes
from mossa_jax.tokens.packing import common_prefix
from mossa_jax.tokens.tokenizer import Tokenizer

SCORE_ROWS = 64
"""The most prompts that a run answers at once."""
SCORED_MODELS = 3
"""The base, E and a control, which answer the same prompts; further seeds and twins are scored beside them."""
# Of a device's memory without its part of the base, what the caches of keys and values may take.
_CACHE_SHARE = 0.9

# Widths and row counts are rounded up to these multiples: every new shape of a batch is compiled anew.
_WIDTH_MULTIPLE = 32
_ROWS_MULTIPLE = 16


@dataclass(frozen=True)
class AnswerConfig:
    """How prompts are read and answered.

    Attributes:
      max_tokens: the most ids of a prompt.
      new_tokens: the most tokens of an answer.
      batch_rows: prompts answered at once.
      share_prefix: whether ids that all prompts begin with are read once, where the model allows it.
    """

    max_tokens: int
    new_tokens: int
    batch_rows: int = SCORE_ROWS
    share_prefix: bool = True

    def shared(self, arch: Architecture, prompts: Sequence[np.ndarray]) -> int:
        """Returns how many leading ids of these prompts are read once for all of them."""
        return common_prefix(prompts) if self.share_prefix and can_share_prefix(arch) else 0


@dataclass(frozen=True)
class AnswerShape:
    """The sizes of the batches that are answered: each pair of them is a compiled program.

    Attributes:
      rows: B, prompts per batch.
      widths: S, positions of a batch's prompts without the ids that all prompts of a list share, the smallest first.
      prefix: P, columns for those ids; 0 if no list shares any.
    """

    rows: int
    widths: tuple[int, ...]
    prefix: int = 0

    @classmethod
    def of(
        cls, lists: Sequence[np.ndarray], config: AnswerConfig, mesh: jax.sharding.Mesh, prefixes: Sequence[int] = ()
    ) -> AnswerShape:
        """Chooses the shapes for one or more lists of prompts; several lists have at most two widths in all.

        Args:
          lists: the lengths of each list's prompts, [n] integers, without the ids that they share; at least one prompt
            in all.
          config: how prompts are answered.
          mesh: that the rows of a batch are spread over.
          prefixes: how many ids the prompts of each list share.
        """
        counts = [len(lengths) for lengths in lists]
        if len(lists) == 1:
            rows = min(config.batch_rows, mesh_lib.round_up(counts[0], _ROWS_MULTIPLE))
            # Rows of a batch are spread over `fsdp` in equal shares.
            rows = mesh_lib.round_up(rows, mesh.shape["fsdp"])
        else:
            (rows,) = batch_sizes(counts, config.batch_rows, mesh.shape["fsdp"], count=1)
        # The longest prompt of every batch, as `greedy_answers` makes them.
        longest = [max(batch) for lengths in lists for batch in _batches(sorted(lengths.tolist()), rows)]
        widths = [mesh_lib.round_up(length, _WIDTH_MULTIPLE) for length in longest]
        few = sorted(set(widths)) if len(lists) == 1 else two_sizes(widths, float)
        return cls(rows, tuple(few), mesh_lib.round_up(max(prefixes, default=0), PREFIX_MULTIPLE))

    def width_for(self, longest: int) -> int:
        """Returns S of a batch whose longest prompt has so many ids."""
        return size_for(mesh_lib.round_up(longest, _WIDTH_MULTIPLE), self.widths)


def rows_that_fit(
    arch: Architecture,
    mesh: jax.sharding.Mesh,
    itemsize: int,
    memory: int,
    config: AnswerConfig,
    models: int = SCORED_MODELS,
) -> int:
    """Returns how many prompts a run answers at once: `SCORE_ROWS`, halved until their keys and values fit a device.

    Args:
      arch: the base model's.
      mesh: rows over `fsdp`, heads over `tensor`.
      itemsize: bytes of a number of the base.
      memory: of a device, in bytes.
      config: how prompts are answered; its `batch_rows` is not read.
      models: that answer at once.
    """
    positions = mesh_lib.round_up(config.max_tokens, _WIDTH_MULTIPLE) + config.new_tokens
    return halved_rows(SCORE_ROWS, arch, mesh, itemsize, memory, positions, models)


def halved_rows(
    rows: int,
    arch: Architecture,
    mesh: jax.sharding.Mesh,
    itemsize: int,
    memory: int,
    positions: int,
    models: int,
) -> int:
    """Halves a number of rows until two copies of their keys and values fit a device; at least one for each of `fsdp`.

    Args:
      rows: the most.
      arch, mesh, itemsize, memory: as in `rows_that_fit`.
      positions: whose keys and values are held, per row.
      models: that work at once.
    """
    tensor = mesh.shape["tensor"]
    heads = arch.kv_heads // tensor if arch.kv_heads % tensor == 0 else arch.kv_heads
    base = parameter_count(arch) * itemsize / (mesh.shape["fsdp"] * tensor)
    while rows > mesh.shape["fsdp"]:
        on_device = models * rows / mesh.shape["fsdp"]
        # Keys and values twice: before and after a step of decoding, or of one batch while the next is read.
        cache = 2 * 2 * arch.layers * on_device * positions * heads * arch.head_dim * itemsize
        if cache <= _CACHE_SHARE * (memory - base):
            break
        rows //= 2
    return rows


def _batches(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def greedy_answers(
    model: Model,
    adapters: HostAdapters,
    tokenizer: Tokenizer,
    prompts: Sequence[np.ndarray],
    config: AnswerConfig,
    shape: AnswerShape | None = None,
) -> list[list[str]]:
    """Returns what each adapter answers to each prompt, without white space at the ends.

    Prompts are sorted by length and decoded in batches, so that little of a batch is padding.

    Args:
      model: the base model.
      adapters: stacked [A, ...] on the host.
      tokenizer: for the text of the answers.
      prompts: token ids of each, BOS included.
      config: how prompts are answered.
      shape: for all lists that are to share programs; by default that of `prompts` alone.

    Returns:
      A lists of n texts.
    """
    mesh, arch = model.mesh, model.architecture
    placed = place_adapters(mesh, adapters)
    models = len(next(iter(jax.tree.leaves(adapters))))
    texts = [[""] * len(prompts) for _ in range(models)]
    shared = config.shared(arch, prompts)
    first, prompts = prompts[0][:shared], [ids[shared:] for ids in prompts]
    # Shortest first: the prompts of a batch have about the same length.
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    if shape is None:
        shape = AnswerShape.of([np.asarray([len(ids) for ids in prompts])], config, mesh, [shared])
    prefix = None
    if shape.prefix:
        # Lists that share nothing have columns of it, too, which nobody sees: all lists have one program.
        padded = np.pad(first, (0, shape.prefix - shared))[None].astype(np.int32)  # [1, P]
        prefix = read_prefix(
            arch,
            mesh,
            model.state,
            placed,
            mesh_lib.place(mesh, padded, (None, None)),
            mesh_lib.place(mesh, np.asarray(shared, np.int32), ()),
        )
    for batch in _batches(by_length, shape.rows):
        sign()
        width = shape.width_for(max(len(prompts[i]) for i in batch))
        # The last batch may have rows without a prompt. They keep length 1, the least that `greedy` takes, and are not
        # read.
        tokens = np.zeros((shape.rows, width), np.int32)  # [B, S], padded on the right
        lengths = np.ones(shape.rows, np.int32)  # [B]
        for row, item in enumerate(batch):
            tokens[row, : len(prompts[item])] = prompts[item]
            lengths[row] = len(prompts[item])
        answers = greedy(
            arch,
            model.state,
            placed,
            mesh_lib.place(mesh, tokens, ("rows", None)),
            mesh_lib.place(mesh, lengths, ("rows",)),
            *(() if prefix is None else (prefix.keys_values, prefix.length)),
            # The tokenizer's id and those of the checkpoint end an answer, each named once.
            eos=tuple(dict.fromkeys((tokenizer.eos, *arch.eos))),
            new_tokens=config.new_tokens,
            mesh=mesh,
        )
        # [A, B, T] int32, whole on every process: each of them scores all rows.
        ids = np.asarray(jax.device_put(answers, mesh_lib.replicated(mesh)))
        for row, item in enumerate(batch):
            for answered, own in zip(texts, ids, strict=True):
                answered[item] = tokenizer.text(own[row].tolist())
    return texts
