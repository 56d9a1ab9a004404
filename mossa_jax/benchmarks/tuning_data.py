"""The data of the tuning comparison: random dense rows, real tasks, and the models that learn from them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mossa_jax.config import Schedule, Tasks, Tuning
from mossa_jax.llama.files.load import load_model
from mossa_jax.llama.model import can_share_prefix
from mossa_jax.tasks import load_suite
from mossa_jax.tokens.batches import batch_index
from mossa_jax.tokens.encoded import Encoded, in_memory
from mossa_jax.tokens.packing import shared_prefix
from mossa_jax.tokens.rows import PackedExamples, pack_examples
from mossa_jax.tokens.tokenizer import cut_pair


@dataclass(frozen=True)
class Shape:
    """The shape of a random Llama."""

    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool


@dataclass(frozen=True)
class Workload:
    """The sizes of the comparison.

    Attributes:
      repeats: timed runs of each side, after one that is not timed.
      rest: seconds before each run, in which the idle threads of the other library stop spinning.
      threads: of torch; 0 takes one per core.
      models: adapters that are trained on the real tasks, and in the second case on dense batches.
      steps: our steps per model in a run on the real tasks; the steps of PEFT follow from the examples in these.
      rows: packed rows per step on the real tasks.
      length: positions of such a row.
      longest: ids of a task's example, which is cut to them.
      examples: examples per batch of PEFT.
      prompt: ids that are put before each prompt in the last case.
      dense_steps: steps of a run on dense batches.
      dense_rows: rows per step on dense batches.
      dense_length: positions of such a row.
      dense: the model of the dense batches, and of the real tasks if no base is given. It has 19 million parameters, of
        which the blocks have three quarters; with Llama's vocabulary of 32,000, the head alone would have as many.
      tuning: LoRA and its optimizer. The backward pass recomputes nothing, as in PEFT by default.
      schedule: of the optimizer.
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


@dataclass(frozen=True)
class Case:
    """One case of the comparison: what both sides learn from. Lists have one element per model.

    Attributes:
      name: in tables and records.
      examples: of each model.
      packed: the same examples in rows.
      steps: our optimizer steps.
      rows: packed rows per step and model.
      batches: the batches of PEFT, as indices of examples.
    """

    name: str
    examples: list[list[Encoded]]
    packed: list[PackedExamples]
    steps: int
    rows: int
    batches: list[list[np.ndarray]]


def dense_case(work: Workload, models: int) -> Case:
    """Returns random rows without padding, in which each token after the first is a label.

    Both sides take the same batches.

    Args:
      work: sizes.
      models: the number of models.
    """
    count, length = work.dense_steps * work.dense_rows, work.dense_length
    ids = np.random.default_rng(0).integers(3, work.dense.vocab, (models, count, length)).tolist()
    examples = [[Encoded(row[:1], row[1:]) for row in rows] for rows in ids]
    packed = [pack_examples(in_memory(model_examples), length)[0] for model_examples in examples]
    # A row holds a single example, so that both sides can take the same examples in each step.
    batches = [
        [
            rows.plan.take(batch_index(count, work.dense_rows, (0, model), step)).items
            for step in range(work.dense_steps)
        ]
        for model, rows in enumerate(packed)
    ]
    name = f"dense batches, {models} adapter{'s' if models > 1 else ''}"
    return Case(name, examples, packed, work.dense_steps, work.dense_rows, batches)


def task_cases(work: Workload, folder: str, tasks: str | None) -> list[Case]:
    """Returns the cases on real tasks.

    They are: nothing shared; if the prompts of a task begin with common ids that are worth sharing, these ids once per
    row, as in a run; and the same after a longer prompt that all tasks have in common.

    Args:
      work: sizes.
      folder: of the base model, with its tokenizer.
      tasks: a folder as for suite `folder`; None takes the embedded suite.
    """
    examples, prompt = _task_examples(work, folder, tasks)
    longer = [[Encoded([*prompt, *example.prompt], example.answer) for example in task] for task in examples]
    may_share = can_share_prefix(load_model(folder).architecture)
    nothing = [0] * len(examples)
    shared, longer_shared = (
        [shared_prefix(in_memory(task)) for task in some] if may_share else nothing for some in (examples, longer)
    )
    count = f"{len(examples)} tasks"
    cases = [_packed_case(work, f"{count}, nothing shared", examples, nothing)]
    if any(shared):
        cases.append(_packed_case(work, f"{count}, leading ids once a row", examples, shared))
    cases.append(_packed_case(work, f"{count} behind {len(prompt)} ids, once a row", longer, longer_shared))
    return cases


def _packed_case(work: Workload, name: str, examples: list[list[Encoded]], prefix_lengths: Sequence[int]) -> Case:
    """Packs the examples of each model; PEFT sees the examples of our steps, shuffled."""
    packed = [
        pack_examples(in_memory(model_examples), work.length, prefix_length=prefix_length)[0]
        for model_examples, prefix_length in zip(examples, prefix_lengths, strict=True)
    ]
    batches = []
    for model, rows in enumerate(packed):
        index = np.concatenate([batch_index(len(rows), work.rows, (0, model), step) for step in range(work.steps)])
        items = np.random.default_rng(model).permutation(rows.plan.take(index).items)
        batches.append([items[start : start + work.examples] for start in range(0, len(items), work.examples)])
    return Case(name, examples, packed, work.steps, work.rows, batches)


def _task_examples(work: Workload, folder: str, tasks: str | None) -> tuple[list[list[Encoded]], list[int]]:
    """Returns the first examples of the first tasks, and the longer prompt; together they fit a row."""
    model = load_model(folder)
    tokenizer, bos = model.tokenizer(), model.architecture.bos
    suite = load_suite(Tasks(suite="folder", folder=tasks) if tasks else Tasks())
    examples = []
    for task in suite.tasks[: work.models]:
        rows = task.examples("train", work.steps * work.rows * work.examples)
        prompts = tokenizer.prompts([row.inputs for row in rows])
        answers = tokenizer.answers([row.targets for row in rows])
        pairs = [cut_pair(tokenizer, *pair, work.longest, "keep_end") for pair in zip(prompts, answers, strict=True)]
        examples.append([Encoded(*pair) for pair in pairs])
    prompt = np.random.default_rng(0).integers(3, model.architecture.vocab, work.prompt).tolist()
    return examples, prompt if bos is None else [bos, *prompt[1:]]


def write_random_model(folder: str, shape: Shape) -> str:
    """Writes a random checkpoint, and returns its folder."""
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


def write_model_with_tokenizer(folder: str, shape: Shape) -> str:
    """Writes a random checkpoint with the embedded tokenizer, whose ids fit its vocabulary; returns its folder."""
    from transformers import AutoTokenizer

    from mossa_jax.tasks.miniature import TOKENIZER

    known_ids = len(AutoTokenizer.from_pretrained(str(TOKENIZER)))
    write_random_model(folder, replace(shape, vocab=max(shape.vocab, known_ids)))
    for file in Path(TOKENIZER).glob("*.json"):
        shutil.copy(file, folder)
    return folder
