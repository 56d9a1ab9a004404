"""Tuning against PEFT on torch: the usual loop, one task after another, with batches of padded examples."""

import json
import re
from dataclasses import dataclass, fields

import numpy as np
import pytest

from mossa_jax.config import Schedule, Tuning
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.llama import adapters as adapters_lib
from mossa_jax.llama.files.load import load_model
from mossa_jax.llama.files.peft import save_adapter
from mossa_jax.tokens.batches import batch_index
from mossa_jax.tokens.encoded import Encoded, in_memory
from mossa_jax.tokens.rows import TrainingRows, pack_examples
from mossa_jax.tokens.tokenizer import cut_pair
from mossa_jax.tuning import population
from mossa_jax.tuning.batch import place_batch
from tests.support.paths import SHARED
from tests.support.tiny_llama import TARGETS, VOCAB, distance, import_torch, torch_model

RATE, ROWS = 1e-3, 2
DATA = SHARED / "data/instructions"


@dataclass
class Run:
    """One model's tuning: the loss before each step, and every tensor by PEFT's name."""

    losses: list[float]
    tensors: dict[str, np.ndarray]


def peft_tensors(adapter) -> dict[str, np.ndarray]:
    """Returns PEFT's parameter names, from the layer's number on -> [r, D_in] or [D_out, r]."""
    return {
        f"{layer}.{target}.lora_{side.upper()}": part[side][layer].T
        for target, part in adapter.items()
        for layer in range(len(part["scale"]))
        for side in "ab"
    }


def tune_ours(model, tasks, length, targets, steps, starts):
    """Tunes all tasks as one population; returns their runs, and the examples that each task saw in each step."""
    tuning = Tuning(targets=targets)
    stacked = adapters_lib.stack(model.architecture, starts)
    optimizer = population.optimizer_for(tuning, Schedule(learning_rate=RATE))
    step = population.make_step(population.StepSpec(model.architecture, optimizer, model.mesh))
    state = population.initial_state(adapters_lib.matrices(stacked), optimizer, model.mesh)
    scale = {
        name: mesh_lib.place(model.mesh, leaf, ("adapter", "layers"))
        for name, leaf in adapters_lib.scales(stacked).items()
    }
    total = mesh_lib.place(model.mesh, np.full(len(tasks), steps, np.int32), ("adapter",))
    active = mesh_lib.place(model.mesh, np.ones(len(tasks), bool), ("adapter",))
    packed = [pack_examples(in_memory(examples), length)[0] for examples in tasks]
    width = max(rows.width for rows in packed)
    losses, seen = [], []
    for number in range(steps):
        indices = [batch_index(len(rows), ROWS, (0, task), number) for task, rows in enumerate(packed)]
        parts = [rows.take(index, width) for rows, index in zip(packed, indices, strict=True)]
        batch = TrainingRows(*(np.stack([getattr(p, f.name) for p in parts]) for f in fields(TrainingRows)))
        state, metrics = step(model.state, scale, total, state, place_batch(model.mesh, batch), active)
        losses.append(np.asarray(metrics["loss"]))
        seen.append([rows.plan.take(index).items.tolist() for rows, index in zip(packed, indices, strict=True)])
    joined = adapters_lib.with_scales(state.adapters, adapters_lib.scales(stacked))
    runs = [
        Run([float(loss[task]) for loss in losses], peft_tensors(adapters_lib.unstack(joined, task)))
        for task in range(len(tasks))
    ]
    return runs, seen


def tune_with_peft(model_folder, adapter_folder, batches):
    """Does the same with PEFT and torch's own AdamW, schedule and clipping; returns the run and gradient norms."""
    torch, peft = import_torch(), pytest.importorskip("peft")
    model = peft.PeftModel.from_pretrained(torch_model(model_folder), adapter_folder, is_trainable=True)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches), eta_min=0.0)
    losses, norms = [], []
    for examples in batches:
        shape = len(examples), max(len(example.prompt) + len(example.answer) for example in examples)
        ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, -100)
        for row, example in enumerate(examples):
            size = len(example.prompt) + len(example.answer)
            ids[row, :size] = torch.tensor([*example.prompt, *example.answer])
            labels[row, len(example.prompt) : size] = torch.tensor(example.answer)
            mask[row, :size] = 1
        logits = model(input_ids=ids, attention_mask=mask).logits
        summed = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
        )
        loss = summed / (labels >= 0).sum()
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(learned, 1.0)))
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    tensors = {}
    for name, parameter in model.named_parameters():
        if match := re.search(r"layers\.(\d+)\.\w+\.(\w+)\.(lora_[AB])\.", name):
            tensors[".".join(match.groups())] = parameter.detach().numpy()
    return Run(losses, tensors), norms


def assert_the_same(folder, tasks, length, targets, steps, tmp_path):
    model = load_model(str(folder))
    starts = [
        adapters_lib.initial_adapter(model.architecture, targets, 8, 16.0, 0, (3, task)) for task in range(len(tasks))
    ]
    runs, seen = tune_ours(model, tasks, length, targets, steps, starts)
    clipped = []
    for task, (ours, examples) in enumerate(zip(runs, tasks, strict=True)):
        save_adapter(tmp_path / f"start-{task}", starts[task], str(folder), {})
        batches = [[examples[item] for item in items[task]] for items in seen]
        theirs, norms = tune_with_peft(folder, tmp_path / f"start-{task}", batches)
        np.testing.assert_allclose(ours.losses, theirs.losses, rtol=0, atol=1e-4)
        assert ours.tensors.keys() == theirs.tensors.keys()
        before = peft_tensors(starts[task])
        for name, wanted in theirs.tensors.items():
            assert distance(ours.tensors[name], wanted) <= 1e-3, (task, name)
            assert np.linalg.norm(wanted - before[name]) >= 1e-2, (task, name)  # training moved it
        clipped += [norm > 1 for norm in norms]
    assert any(clipped)


def random_tasks(count: int, examples: int = 24) -> list[list[Encoded]]:
    """Returns tasks whose answers repeat the prompt's second token."""
    rng = np.random.default_rng(1)
    draw = lambda size: rng.integers(4, VOCAB, size).tolist()  # noqa: E731
    prompts = [[[1, *draw(rng.integers(2, 9))] for _ in range(examples)] for _ in range(count)]
    return [[Encoded(prompt, [prompt[1]] * (1 + prompt[1] % 3) + [2]) for prompt in task] for task in prompts]


def real_tasks(model_folder, count: int, examples: int = 48, limit: int = 256) -> list[list[Encoded]]:
    """Returns rows of instruction tasks, in the ids of a model."""
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not there")
    tokenizer = load_model(str(model_folder)).tokenizer()
    tasks = []
    for path in sorted((DATA / "train").glob("*.jsonl"))[:count]:
        with path.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line, _ in zip(lines, range(examples), strict=False)]
        prompts = tokenizer.prompts([row["inputs"] for row in rows])
        answers = tokenizer.answers([row["targets"] for row in rows])
        pairs = [cut_pair(tokenizer, *pair, limit, "keep_end") for pair in zip(prompts, answers, strict=True)]
        tasks.append([Encoded(*pair) for pair in pairs])
    return tasks


SOME, EVERY = ("q_proj", "v_proj"), TARGETS


@pytest.mark.parametrize("targets", [SOME, EVERY], ids=["q_and_v", "all_seven"])
def test_a_population_of_packed_rows_learns_what_peft_learns_one_by_one(tiny, tmp_path, targets):
    assert_the_same(tiny.folder, random_tasks(2), 32, targets, 10, tmp_path)


@pytest.mark.parametrize("targets", [pytest.param(SOME, marks=pytest.mark.slow), EVERY], ids=["q_and_v", "all_seven"])
@pytest.mark.slow
def test_fifty_steps_on_real_tasks_follow_peft(stories, tmp_path, targets):
    assert_the_same(stories, real_tasks(stories, 2), 256, targets, 50, tmp_path)
