"""Analyses of updates in a run, from its files alone: dense products in NumPy, and models merged in torch."""

import json

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from mossa_jax.processes.stop import Stop
from mossa_jax.run import pipeline
from mossa_jax.run.analyse import layers, task_states, weights
from mossa_jax.run.lineup import line_up
from mossa_jax.similarity import reference
from tests.support.tiny_llama import LAYERS, NAMES, torch_model, torch_states

TASKS = ["last_word", "copy_first", "count_words"]
TARGETS = ("q_proj", "v_proj")


@pytest.fixture(scope="module")
def results(analysed_run):
    """Reads a table of the finished run."""
    return lambda name: pd.read_parquet(analysed_run[1] / f"results/{name}.parquet")


@pytest.fixture(scope="module")
def run(analysed_run, tmp_path_factory):
    """The finished run, opened again in a folder of its own."""
    config, workdir = analysed_run
    folder = tmp_path_factory.mktemp("updates") / "run"
    run = pipeline.Run(config, pipeline.open_run(config, str(folder)), Stop())
    (folder / "adapters").symlink_to(workdir / "adapters")
    yield run
    run.folder.close()


def update(workdir, name, target, layer):
    """The update [D_out, D_in] in float64, as PEFT defines it."""
    folder = workdir / "adapters" / name
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    prefix = f"base_model.model.model.layers.{layer}.self_attn.{target}"
    a, b = (tensors[f"{prefix}.lora_{side}.weight"].astype(np.float64) for side in "AB")
    return config["lora_alpha"] / config["r"] * b @ a


def test_weights_are_those_of_the_dense_products(analysed_run, results, tiny):
    _, workdir = analysed_run
    table = results("weights")
    assert len(table) == len(TASKS) * len(TARGETS) * LAYERS
    base = torch_model(tiny.folder).state_dict()
    for row in table.itertuples():
        layer = int(row.layer) - 1
        mine, own = (update(workdir, name, row.target, layer) for name in ("tuned", row.task))
        norm = np.linalg.norm(base[f"model.layers.{layer}.self_attn.{row.target}.weight"].double().numpy())
        assert row.norm_tuned == pytest.approx(np.linalg.norm(mine), rel=1e-6)
        assert row.relative_control == pytest.approx(np.linalg.norm(own) / norm, rel=1e-5)
        cosine = (mine * own).sum() / np.linalg.norm(mine) / np.linalg.norm(own)
        assert row.cosine == pytest.approx(cosine, abs=1e-6)
        (u, s, v), (x, _, y) = (np.linalg.svd(each, full_matrices=False) for each in (mine, own))
        rank = int((s > 1e-6 * s[0]).sum())
        assert row.overlap_in == pytest.approx(np.square(v[:rank] @ y[:rank].T).sum() / rank, abs=1e-6)
        assert row.overlap_out == pytest.approx(np.square(u[:, :rank].T @ x[:, :rank]).sum() / rank, abs=1e-6)
        assert row.chance_in == rank / mine.shape[1] and row.chance_out == rank / mine.shape[0]
    seeded = table.task.isin(["last_word", "count_words"])
    assert table.cosine_seed.notna().equals(seeded) and table.cosine_other.notna().all()


def specialist(workdir, folder, names):
    """The model in torch whose projections have the mean update of these adapters."""
    model = torch_model(folder)
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        for target in TARGETS:
            for layer in range(LAYERS):
                mean = np.mean([update(workdir, name, target, layer) for name in names], axis=0)
                getattr(model.model.layers[layer].self_attn, target).weight += torch.tensor(mean)
    return model


def last_states(model, prompts):
    states = torch_states(model, prompts)
    return {layer: np.stack([each[layer][-1] for each in states]).astype(np.float64) for layer in NAMES}


def test_the_mean_of_the_specialists_is_the_model_with_their_mean_update(analysed_run, results, run, tiny):
    _, workdir = analysed_run
    table, scores = results("merged"), results("merged_scores")
    assert len(table) == len(TASKS) * len(NAMES) * 2
    models = {name: specialist(workdir, tiny.folder, [name]) for name in ("tuned", "count_words")}
    models["merged"] = specialist(workdir, tiny.folder, TASKS)
    task = next(task for task in run.suite.tasks if task.name == "count_words")
    prompts = [ids.tolist() for ids in run.test_prompts(task).ids]
    states = {name: last_states(model, prompts) for name, model in models.items()}
    rows = table[table.task == "count_words"]
    for row in rows[rows.undefined == ""].itertuples():
        value = getattr(reference, row.estimator)
        merged, tuned, own = (states[name][row.layer] for name in ("merged", "tuned", "count_words"))
        assert row.cka == pytest.approx(value(merged, own), abs=2e-4), row.layer
        assert row.cka_tuned == pytest.approx(value(merged, tuned), abs=2e-4), row.layer
        assert row.difference == pytest.approx(value(tuned, own) - value(merged, own), abs=4e-4), row.layer
    assert (rows[rows.layer.str.isdigit()].undefined == "").all()
    torch = pytest.importorskip("torch")
    pairs = run.answer_pairs(task)
    total = ids = 0.0
    for index in range(len(pairs.items)):
        example, length = pairs.pairs.gather(np.asarray([index])).tolist(), int(pairs.pairs.prompt_lengths[index])
        with torch.no_grad():
            nats = torch.log_softmax(models["merged"](torch.tensor([example])).logits[0].double(), -1)
        total -= sum(float(nats[at - 1, example[at]]) for at in range(length, len(example)))
        ids += len(example) - length
    own = scores[(scores.task == "count_words") & (scores.metric == "answer_nll")]
    assert own["value"].item() == pytest.approx(total / ids, rel=1e-4)
    assert set(scores.model) == {"merged"} and set(scores.metric) == {"answer_nll", "information"}


def test_the_updates_of_the_mean_are_those_of_the_dense_mean(analysed_run, results):
    _, workdir = analysed_run
    rows = results("merged")
    for row in rows[rows.layer.str.isdigit()].itertuples():
        layer = int(row.layer) - 1
        stacked = {}
        for name in ("tuned", *TASKS):
            stacked[name] = np.concatenate([update(workdir, name, target, layer).ravel() for target in TARGETS])
        mean = np.mean([stacked[name] for name in TASKS], axis=0)
        for column, other in (("tuned", stacked["tuned"]), ("control", stacked[row.task])):
            cosine = mean @ other / np.linalg.norm(mean) / np.linalg.norm(other)
            assert getattr(row, f"update_cosine_{column}") == pytest.approx(cosine, abs=1e-6)
        size = np.linalg.norm(mean) / np.linalg.norm(stacked["tuned"])
        assert row.update_size_tuned == pytest.approx(size, rel=1e-5)
    assert rows[~rows.layer.str.isdigit()].update_size_tuned.isna().all()


def test_layers_against_layers_are_those_of_the_states(analysed_run, results, run):
    table = results("layers")
    assert set(table.task) == {"last_word", "count_words"}  # the first of each cluster
    pairs = 3 * len(NAMES) * (len(NAMES) + 1) // 2 + 3 * len(NAMES) ** 2
    assert len(table) == 2 * 2 * pairs
    task = run.suite.tasks[0]
    kept = task_states(run, task, line_up(run, task).names)
    states = np.asarray(kept.kept.states, np.float64)[:3, :, : len(kept.prompts)]
    own = table[(table.task == task.name) & (table.undefined == "")]
    names = list(kept.kept.names)
    for row in own.sample(120, random_state=0).itertuples():
        x = states[layers.MODELS.index(row.model_a), names.index(row.layer_a)]
        y = states[layers.MODELS.index(row.model_b), names.index(row.layer_b)]
        assert row.cka == pytest.approx(getattr(reference, row.estimator)(x, y), abs=1e-5), row
    compared = results("cka").query("experimental == 'pretrained' and control == task")
    same = own.query("model_a == 'pretrained' and model_b == 'control' and layer_a == layer_b")
    both = same.merge(compared, left_on=["task", "layer_a", "estimator"], right_on=["task", "layer", "estimator"])
    assert len(both) == len(same) > 0 and both.cka_x.to_numpy() == pytest.approx(both.cka_y.to_numpy(), abs=1e-6)


def test_turns_and_departures_are_read_off_the_layers(results):
    table, turning = results("layers"), results("turning")
    assert len(turning) == 2 * 2 * LAYERS
    cells = table.set_index(["task", "estimator", "model_a", "model_b", "layer_a", "layer_b"]).cka
    for row in turning.itertuples():
        key, at = (row.task, row.estimator), NAMES.index(row.layer)
        before, here = NAMES[at - 1], row.layer
        novelty = 1 - cells[(*key, "pretrained", "pretrained", before, here)]
        departures = [1 - cells[(*key, "pretrained", "tuned", layer, layer)] for layer in (before, here)]
        changes = [
            cells[(*key, "tuned", "control", layer, layer)] - cells[(*key, "pretrained", "control", layer, layer)]
            for layer in (before, here)
        ]
        expected = [novelty, departures[1], departures[1] - departures[0], changes[1], changes[1] - changes[0]]
        got = [row.novelty, row.departure, row.departure_step, row.change, row.change_step]
        assert got == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_models_tuned_in_full_have_no_update_to_look_at(run, monkeypatch):
    assert weights.ANALYSIS.tasks(run)
    monkeypatch.setattr(run.config.tuning.control, "method", "full")
    assert not weights.ANALYSIS.tasks(run)
