"""Tuning speed against the usual loop, PEFT on torch: same weights, same examples, same machine, in turns.

Ours is the population step over packed rows. Theirs trains one model after the other: batches of whole examples padded
to the longest, the head over all positions, the loss of `transformers`, AdamW, clipping, a cosine. On both sides the
time holds putting batches together, all of each step and reading the losses; it holds no compilation and no loading.

Ratios hold for an idle machine only: torch's threads wait for one another at every operation, so that a core which is
busy with something else costs theirs far more than ours. The record says how loaded the machine was before.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from mossa_jax.config import Mesh as MeshSizes
from mossa_jax.config import Schedule, Tasks, Tuning
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.llama import adapters as adapters_lib
from mossa_jax.llama.files.load import Model, load_model
from mossa_jax.llama.files.peft import save_adapter
from mossa_jax.llama.model import can_share_prefix
from mossa_jax.log import log
from mossa_jax.tasks import load_suite
from mossa_jax.tokens.encoded import Encoded, in_memory
from mossa_jax.tokens.packing import PackedExamples, TrainingRows, batch_index, pack_examples, shared_prefix
from mossa_jax.tokens.tokenizer import cut_pair
from mossa_jax.tuning import population

_IGNORED = -100  # label that the loss of transformers leaves out


@dataclass(frozen=True)
class Shape:
    """A random Llama."""

    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool


@dataclass(frozen=True)
class Workload:
    """What is measured.

    Attributes:
      repeats: timed runs of each side, after one that is not timed.
      rest: seconds before each run, in which the other's idle threads stop spinning.
      threads: of torch; 0 takes one for every core.
      models: adapters that are trained on the real tasks, and on the dense batches the second time.
      steps: ours for each model in a run on the real tasks; theirs follow from the examples that these show.
      rows, length: packed rows of such a step, and their positions.
      longest: ids of a task's example, which is cut to them.
      examples: in a batch of theirs.
      prompt: ids that are put in front of every prompt in the last part.
      dense_steps, dense_rows, dense_length: of a run on dense batches.
      dense: the model of the dense batches, and of the real tasks where no base is given: 19 million parameters, of
        which the blocks are three quarters (with Llama's vocabulary of 32,000 the head alone would be as much as they).
      tuning, schedule: LoRA and its optimizer. Nothing is recomputed in the backward pass, as PEFT by itself does not.
    """

    repeats: int = 5
    rest: float = 0.5
    threads: int = 0
    models: int = 8
    steps: int = 2
    rows: int = 1
    length: int = 512
    longest: int = 379
    examples: int = 16
    prompt: int = 133
    dense_steps: int = 1
    dense_rows: int = 8
    dense_length: int = 128
    dense: Shape = Shape(hidden=256, feed_forward=2048, layers=8, heads=4, kv_heads=4, vocab=8000, tied=False)
    tuning: Tuning = field(default_factory=lambda: Tuning(remat="off"))
    schedule: Schedule = field(default_factory=Schedule)


def measure(work: Workload, tasks: str | None = None, base: str | None = None) -> dict[str, Any]:
    """Runs every part of the comparison.

    Args:
      work: sizes.
      tasks: a folder as of suite `folder`; None takes the embedded suite.
      base: MODEL of the real tasks; None makes a random one with the embedded tokenizer.

    Returns:
      A JSON-ready record: machine, versions, sizes, and a row per part with tokens/s of both sides, the ratio (median,
      lowest and highest over neighbouring runs) and the losses of both.

    Raises:
      Refusal: 2 where torch or peft is missing; what `load_suite` and `load_model` refuse.
    """
    for name in ("torch", "peft"):
        if importlib.util.find_spec(name) is None:
            raise Refusal(BAD_CONFIG, f"the comparison needs {name}, which is not installed; pip install -e '.[bench]'")
    import torch

    torch.set_num_threads(work.threads or os.cpu_count() or 1)
    rows, load = [], os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        dense = _write_random(f"{scratch}/dense", work.dense)
        for models in dict.fromkeys((1, work.models)):
            name = f"dense batches, {models} adapter{'s' if models > 1 else ''}"
            rows.append(_compare(work, name, dense, _dense(work, models), f"{scratch}/{len(rows)}"))
        model = base or _write_with_tokenizer(f"{scratch}/tasks", work.dense)
        rows += _compare_on_tasks(work, model, tasks, scratch, len(rows))
    return {
        "rows": rows,
        "repeats": work.repeats,
        "models": work.models,
        "dense": f"{work.dense_rows} x {work.dense_length}",
        "packed": f"{work.rows} x {work.length}",
        "examples_per_batch": work.examples,
        "targets": list(work.tuning.targets),
        "remat": work.tuning.remat,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "devices": jax.device_count(),
        "load": round(load, 1),
        "machine": platform.processor() or platform.machine(),
        "device": jax.devices()[0].device_kind,
        "versions": {name: metadata.version(name) for name in ("jax", "torch", "transformers", "peft")},
    }


def table(record: dict[str, Any]) -> str:
    """The record as a plain text table."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines = [
        f"tuning, float32, LoRA on {', '.join(record['targets'])}; {record['cores']} cores, {record['device']}: ours "
        f"on {record['devices']} devices, torch on {record['threads']} threads; load {record['load']} before; "
        f"{versions}; median of {record['repeats']}",
        f"dense: every position a label, {record['dense']} a step; tasks: answer tokens, packed rows "
        f"{record['packed']} against batches of {record['examples_per_batch']} padded examples",
        f"{'':44}{'ours, tokens/s':>16}{'PEFT':>12}{'ratio':>8}{'':15}{'positions':>22}{'loss':>18}",
    ]
    for row in record["rows"]:
        span = f"{row['ratio_lowest']:.2f} to {row['ratio_highest']:.2f}"
        positions = f"{row['ours_positions']:,} / {row['peft_positions']:,}"
        loss = f"{row['ours_loss']:.4f} / {row['peft_loss']:.4f}"
        lines.append(
            f"{row['name']:44}{row['ours_tokens_per_s']:>16,.0f}{row['peft_tokens_per_s']:>12,.0f}{row['ratio']:>8.2f}"
            f"{span:>15}{positions:>22}{loss:>18}"
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class _Part:
    """What both sides learn from in one part of the comparison.

    Attributes:
      examples: of each model.
      packed: the same in rows, of each model.
      steps, rows: optimizer steps of ours, and rows in each.
      batches: theirs, of each model: examples by index.
    """

    examples: list[list[Encoded]]
    packed: list[PackedExamples]
    steps: int
    rows: int
    batches: list[list[np.ndarray]]

    @classmethod
    def of(cls, examples, shared: Sequence[int], length: int, steps: int, rows: int, batch: int) -> _Part:
        packed = [
            pack_examples(in_memory(mine), length, shared=prefix)[0]
            for mine, prefix in zip(examples, shared, strict=True)
        ]
        batches = []
        for model, mine in enumerate(packed):
            index = np.concatenate([batch_index(len(mine), rows, (0, model), step) for step in range(steps)])
            seen = np.random.default_rng(model).permutation(mine.plan.take(index).items)
            batches.append([seen[start : start + batch] for start in range(0, len(seen), batch)])
        return cls(examples, packed, steps, rows, batches)


@dataclass(frozen=True)
class _Seen:
    """One run of one side.

    Attributes:
      tokens: answer tokens.
      positions: that went through the model, padding included.
      loss: nats per answer token over the whole run.
    """

    tokens: int
    positions: int
    loss: float


class _Ours:
    """The population step, put together as `loop.tune_population` does, without checkpoints."""

    def __init__(self, work: Workload, model: Model, starts: list, part: _Part):
        arch, self._model, self._part = model.architecture, model, part
        stacked = adapters_lib.stack(arch, starts)
        optimizer = population.optimizer_for(work.tuning, work.schedule)
        prefix, max_own = (max(getattr(packed, name) for packed in part.packed) for name in ("shared", "max_own"))
        remat = work.tuning.remat == "on"
        self._step = population.make_step(arch, optimizer, model.mesh, remat, prefix=prefix, max_own=max_own)
        self._start = population.start(adapters_lib.matrices(stacked), optimizer, model.mesh)
        place = lambda leaf, *names: mesh_lib.place(model.mesh, leaf, names)  # noqa: E731
        self._scale = {name: place(leaf, "adapter", "layers") for name, leaf in adapters_lib.scales(stacked).items()}
        self._total = place(np.full(len(starts), part.steps, np.int32), "adapter")
        self._active = place(np.ones(len(starts), bool), "adapter")
        self._width = max(packed.width for packed in part.packed)

    def reset(self) -> None:
        self._state = jax.tree.map(jnp.copy, self._start)  # a step donates what it is given

    def run(self) -> _Seen:
        state, part, found, positions = self._state, self._part, [], 0
        for number in range(part.steps):
            rows = [
                packed.take(batch_index(len(packed), part.rows, (0, model), number), self._width)
                for model, packed in enumerate(part.packed)
            ]
            batch = TrainingRows(*(np.stack([getattr(one, f.name) for one in rows]) for f in fields(TrainingRows)))
            placed = population.place_batch(self._model.mesh, batch)
            state, metrics = self._step(self._model.state, self._scale, self._total, state, placed, self._active)
            found.append((metrics["loss"], metrics["tokens"]))
            positions += batch.tokens.size
        self._state = jax.block_until_ready(state)
        losses, tokens = (np.asarray([step[which] for step in found], np.float64) for which in (0, 1))
        return _Seen(int(tokens.sum()), positions, float((losses * tokens).sum() / tokens.sum()))


class _Peft:
    """One model after the other by PEFT."""

    def __init__(self, work: Workload, folder: str, adapters: list[Path], part: _Part):
        import peft
        from transformers import AutoModelForCausalLM

        self._work, self._part = work, part
        base = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", attn_implementation="sdpa")
        base.config.use_cache = False
        self._model = peft.PeftModel.from_pretrained(base, adapters[0], is_trainable=True).train()
        self._starts = [load_file(path / "adapter_model.safetensors") for path in adapters]

    def reset(self) -> None:
        pass  # every model begins with its start

    def run(self) -> _Seen:
        found = [self._train(start, *both) for start, *both in zip(
            self._starts, self._part.examples, self._part.batches, strict=True
        )]  # fmt: skip
        tokens = sum(seen.tokens for seen in found)
        loss = sum(seen.loss * seen.tokens for seen in found) / tokens
        return _Seen(tokens, sum(seen.positions for seen in found), loss)

    def _train(self, start: dict[str, np.ndarray], examples: list[Encoded], batches: list[np.ndarray]) -> _Seen:
        import peft
        import torch

        tuning, model = self._work.tuning, self._model
        peft.set_peft_model_state_dict(model, {name: torch.from_numpy(leaf.copy()) for name, leaf in start.items()})
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            learned, lr=self._work.schedule.learning_rate, betas=(tuning.beta1, tuning.beta2),
            weight_decay=tuning.weight_decay, fused=True,
        )  # fmt: skip
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
        losses, counts, positions = [], [], 0
        for items in batches:
            batch = _padded([examples[item] for item in items])
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learned, tuning.clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            counts.append(int((batch["labels"] != _IGNORED).sum()))
            positions += batch["labels"].numel()
        return _Seen(sum(counts), positions, float(np.dot(losses, counts) / sum(counts)))


def _padded(examples: list[Encoded]) -> dict[str, Any]:
    """A batch as PEFT's users make it: padded on the right to the longest, labels on answers."""
    import torch

    sizes = [len(example.prompt) + len(example.answer) for example in examples]
    ids = np.zeros((len(examples), max(sizes)), np.int64)
    labels, mask = np.full(ids.shape, _IGNORED, np.int64), np.zeros(ids.shape, np.int64)
    for row, (example, size) in enumerate(zip(examples, sizes, strict=True)):
        ids[row, :size] = [*example.prompt, *example.answer]
        labels[row, len(example.prompt) : size] = example.answer
        mask[row, :size] = 1
    arrays = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _compare(work: Workload, name: str, folder: str, part: _Part, scratch: str) -> dict[str, Any]:
    """One row of the record; several models are spread over all devices."""
    count = len(part.examples)
    spread = MeshSizes(-1, 1, 1) if count % jax.device_count() == 0 else None
    model = load_model(folder, mesh=spread and mesh_lib.make_mesh(spread))
    starts = [
        adapters_lib.initial_adapter(
            model.architecture, work.tuning.targets, work.tuning.rank, work.tuning.alpha, 0, (number,)
        )
        for number in range(len(part.examples))
    ]
    adapters = [Path(scratch) / str(number) for number in range(len(starts))]
    for path, start in zip(adapters, starts, strict=True):
        save_adapter(path, start, folder, {})
    sides = {"ours": _Ours(work, model, starts, part), "peft": _Peft(work, str(model.folder), adapters, part)}
    seen, seconds = {}, {side: [] for side in sides}
    for number in range(work.repeats + 1):
        for side, one in sides.items():
            one.reset()
            time.sleep(work.rest)
            began = time.perf_counter()
            seen[side] = one.run()
            if number:
                seconds[side].append(time.perf_counter() - began)
    ratios = np.asarray(seconds["peft"]) / np.asarray(seconds["ours"])
    row = {"name": name, "models": len(starts)}
    row["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(model.state))
    row["ratio"] = round(float(np.median(ratios)), 3)
    row["ratio_lowest"], row["ratio_highest"] = round(float(ratios.min()), 3), round(float(ratios.max()), 3)
    for side, found in seen.items():
        row[f"{side}_tokens_per_s"] = round(found.tokens / float(np.median(seconds[side])), 1)
        row[f"{side}_seconds"] = [round(spent, 6) for spent in seconds[side]]
        row |= {f"{side}_{name}": getattr(found, name) for name in ("tokens", "positions", "loss")}
    log.info("%s: %.2f times as fast", name, row["ratio"])
    return row


def _dense(work: Workload, models: int) -> _Part:
    """Random rows without padding, every token after the first a label; the same batches on both sides."""
    count, length = work.dense_steps * work.dense_rows, work.dense_length
    ids = np.random.default_rng(0).integers(3, work.dense.vocab, (models, count, length)).tolist()
    examples = [[Encoded(row[:1], row[1:]) for row in mine] for mine in ids]
    part = _Part.of(examples, [0] * models, length, work.dense_steps, work.dense_rows, work.dense_rows)
    # Step by step the same examples: a single row holds a single example.
    batches = [
        [mine.plan.take(batch_index(count, work.dense_rows, (0, model), step)).items for step in range(part.steps)]
        for model, mine in enumerate(part.packed)
    ]
    return replace(part, batches=batches)


def _compare_on_tasks(work: Workload, folder: str, tasks: str | None, scratch: str, first: int) -> list[dict[str, Any]]:
    """The rows of the record on real tasks: packed; with the ids shared that a task's prompts begin with, as a run
    does where it pays; the same behind a longer prompt that all tasks have in common."""
    examples, prefix = _task_examples(work, folder, tasks)
    behind = [[Encoded([*prefix, *one.prompt], one.answer) for one in mine] for mine in examples]
    sharing = can_share_prefix(load_model(folder).architecture)
    shared_ids = lambda each: [shared_prefix(in_memory(mine)) if sharing else 0 for mine in each]  # noqa: E731
    own, count = shared_ids(examples), f"{len(examples)} tasks"
    cases = [(f"{count}, nothing shared", examples, [0] * len(examples))]
    if any(own):
        cases.append((f"{count}, leading ids once a row", examples, own))
    cases.append((f"{count} behind {len(prefix)} ids, once a row", behind, shared_ids(behind)))
    found = []
    for number, (name, mine, shared) in enumerate(cases, first):
        part = _Part.of(mine, shared, work.length, work.steps, work.rows, work.examples)
        found.append(_compare(work, name, folder, part, f"{scratch}/{number}"))
    return found


def _task_examples(work: Workload, folder: str, tasks: str | None) -> tuple[list[list[Encoded]], list[int]]:
    """The first examples of the first tasks, short enough for a row behind the longer prompt; and that prompt."""
    model = load_model(folder)
    tokenizer, bos = model.tokenizer(), model.architecture.bos
    suite = load_suite(Tasks(suite="folder", folder=tasks) if tasks else Tasks())
    found = []
    for task in suite.tasks[: work.models]:
        rows = task.examples("train", work.steps * work.rows * work.examples)
        prompts = tokenizer.prompts([row.inputs for row in rows])
        answers = tokenizer.answers([row.targets for row in rows])
        pairs = [cut_pair(tokenizer, *pair, work.longest, "keep_end") for pair in zip(prompts, answers, strict=True)]
        found.append([Encoded(*pair) for pair in pairs])
    prefix = np.random.default_rng(0).integers(3, model.architecture.vocab, work.prompt).tolist()
    return found, prefix if bos is None else [bos, *prefix[1:]]


def _write_random(folder: str, shape: Shape) -> str:
    """A random checkpoint; returns its folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocab, hidden_size=shape.hidden, intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        max_position_embeddings=2048, tie_word_embeddings=shape.tied, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _write_with_tokenizer(folder: str, shape: Shape) -> str:
    """The same with the embedded tokenizer, whose ids are part of the vocabulary."""
    from transformers import AutoTokenizer

    from mossa_jax.tasks.miniature import TOKENIZER

    known = len(AutoTokenizer.from_pretrained(str(TOKENIZER)))
    _write_random(folder, replace(shape, vocab=max(shape.vocab, known)))
    for file in Path(TOKENIZER).glob("*.json"):
        shutil.copy(file, folder)
    return folder
