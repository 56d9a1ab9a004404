"""Runs in which E, the controls or both are tuned in full: what they leave, against torch, and through a stop."""

import dataclasses
import gc
import json
import pathlib
import runpy
import shutil
import sys

import jax
import numpy as np
import pandas as pd
import pytest

import mossa_jax as mossa
from mossa_jax.config import check
from mossa_jax.errors import Refusal
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.llama.architecture import read_architecture
from mossa_jax.processes.stop import Stop
from mossa_jax.run import pipeline
from mossa_jax.run.models import ask, model_states
from mossa_jax.tuning import full_finetuning as full
from tests.support.processes import together
from tests.support.run_folders import edit_about, part_of
from tests.support.tiny_llama import distance, torch_model, torch_states

TASKS = ["copy_first", "count_words", "last_word"]
NAMES = ["embed", "1", "2", "3", "final_norm"]


def configured(tiny_config, experimental="lora", control="lora"):
    config = runpy.run_path(str(tiny_config))["get_config"]()
    config.tuning.experimental = dataclasses.replace(config.tuning.experimental, method=experimental)
    config.tuning.control = dataclasses.replace(config.tuning.control, method=control, max_steps=4)
    config.tuning.checkpoint_every = 2
    return config


def bench_in(config, workdir, stop=None, kind=RunFolder):
    """A run of a run folder that is claimed; the caller closes it."""
    run_folder = kind(str(workdir))
    run_folder.open(config, pipeline.environment())
    return pipeline.Run(config, run_folder, stop or Stop())


def finished(config, workdir):
    run = bench_in(config, workdir)
    try:
        pipeline.tune(run)
        pipeline.compare(run)
    finally:
        run.folder.close()
    return config, workdir


@pytest.fixture(scope="module")
def full_e(tiny_config, tmp_path_factory):
    """(config, run folder): E in full with Adafactor and in parts, controls as adapters."""
    config = configured(tiny_config, experimental="full")
    config.tuning.experimental.optimizer, config.tuning.experimental.parts = "adafactor", 2
    return finished(config, tmp_path_factory.mktemp("full") / "e")


@pytest.fixture(scope="module")
def full_controls(tiny_config, tmp_path_factory):
    """(config, run folder): E as an adapter, controls in full."""
    return finished(configured(tiny_config, control="full"), tmp_path_factory.mktemp("full") / "controls")


def centred_cka(x, y):
    """Biased linear CKA in float64, feature space."""
    x, y = (np.asarray(part, np.float64) - np.mean(part, axis=0, dtype=np.float64) for part in (x, y))
    return np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def debiased_cka(x, y):
    """By the U-centred Gram matrices (Szekely and Rizzo 2014), float64."""

    def u_centred(x):
        gram = np.asarray(x, np.float64) @ np.asarray(x, np.float64).T
        np.fill_diagonal(gram, 0)
        n, sums = len(gram), gram.sum(0)
        gram = gram - (sums[:, None] + sums[None]) / (n - 2) + sums.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(gram, 0)
        return gram

    x, y = (u_centred(part - np.mean(part, axis=0)) for part in (x, y))
    return (x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum())


def torch_model_of(workdir, tiny, name):
    """A model of a run in torch, float32: a whole one from its folder, an adapter by peft."""
    if name is None:
        return torch_model(tiny.folder)
    if (workdir / "models" / name).exists():
        return torch_model(workdir / "models" / name)
    import peft

    return peft.PeftModel.from_pretrained(torch_model(tiny.folder), workdir / "adapters" / name).eval()


def prompts_of(run, name):
    (task,) = (task for task in run.suite.tasks if task.name == name)
    return [list(map(int, prompt)) for prompt in run.test_prompts(task).ids]


def last_states(model, prompts):
    """Layer name -> [n, D]: the last prompt token's states, each prompt alone through torch."""
    found = torch_states(model, prompts)
    return {layer: np.stack([each[layer][-1] for each in found]) for layer in NAMES}


@pytest.mark.slow
@pytest.mark.parametrize("which, looked_at", [("full_e", ["count_words"]), ("full_controls", TASKS[1:])])
def test_the_table_is_complete_and_its_cells_are_those_of_torch(which, looked_at, tiny, request):
    config, workdir = request.getfixturevalue(which)
    table = pd.read_csv(workdir / "results/cka.csv", keep_default_na=False, na_values=[""])
    # Base and E beside a matched and a mismatched control, and beside each other; of 3 tasks, by 2 estimators.
    assert len(table) == 3 * (2 * 2 + 1) * len(NAMES) * 2
    assert set(table.task) == set(TASKS) and set(table.n) == {12}
    run = pipeline.Run(config, RunFolder(str(workdir)), Stop())
    checked = 0
    for task, rows in table[table.task.isin(looked_at)].groupby("task"):
        prompts = prompts_of(run, task)
        names = [None, "tuned", *rows.control.unique()]
        states = {name: last_states(torch_model_of(workdir, tiny, name), prompts) for name in names}
        for row in rows[rows.undefined.isna()].itertuples():
            experimental = states[None if row.experimental == "pretrained" else "tuned"][row.layer]
            estimate = centred_cka if row.estimator == "biased" else debiased_cka
            wanted = estimate(experimental, states[row.control][row.layer])
            assert row.cka == pytest.approx(wanted, abs=1e-4), (task, row.experimental, row.control, row.layer)
            checked += 1
    assert checked > len(table) / len(TASKS) * len(looked_at) / 2
    last = table[(table.control != "tuned") & (table.estimator == "biased") & (table.layer == "3")]
    tuned, before = last[last.experimental == "tuned"], last[last.experimental == "pretrained"]
    assert (abs(tuned.cka.to_numpy() - before.cka.to_numpy()) > 1e-3).all()  # E is not the base


@pytest.mark.parametrize("which", [pytest.param("full_e", marks=pytest.mark.slow), "full_controls"])
def test_what_it_leaves(which, request):
    config, workdir = request.getfixturevalue(which)
    whole = ["tuned"] if which == "full_e" else TASKS
    kinds = {"models": whole, "adapters": [name for name in ("tuned", *TASKS) if name not in whole]}
    for kind, names in kinds.items():
        assert sorted(path.name for path in (workdir / kind).iterdir()) == sorted(names)
        for name in names:
            about = json.loads((workdir / kind / name / "mossa.json").read_text())
            assert about["tasks"] == (TASKS if name == "tuned" else [name]) and about["model"] == name
            assert about["rows"] == (72 if name == "tuned" else 24)
            assert about["template"]["name"] == "none" and about["steps"] > 0
            assert kind == "adapters" or about["base"] == config.base
    # A whole model's checkpoints go when it is exported; those of the adapters stay.
    kept = "controls" if which == "full_e" else "E"
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == [kept]
    assert not list(workdir.rglob("*.tmp"))
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert {record["model"] for record in records if "model" in record} == {"tuned", *TASKS}
    timed = {(record["stage"], record["label"]) for record in records if "stage" in record}
    parts = {("controls", f"controls {task}") for task in TASKS} if which == "full_controls" else {("E", "E tuned")}
    assert parts <= timed


def test_scores_are_those_of_torch(full_controls, tiny):
    """Greedy answers and log probabilities of given ones, of adapters and whole models in turns."""
    torch = pytest.importorskip("torch")
    config, workdir = full_controls
    run = pipeline.Run(config, RunFolder(str(workdir)), Stop())
    (task,) = (task for task in run.suite.tasks if task.name == "count_words")
    names, answers = ["copy_first", None, "tuned", "count_words"], {}
    for name in names:
        model, answers[name] = torch_model_of(workdir, tiny, name), []
        for ids in prompts_of(run, task.name):
            with torch.no_grad():
                out = model.generate(input_ids=torch.tensor([ids]), max_new_tokens=3, do_sample=False)
            answers[name].append(run.tokenizer.text(out[0, len(ids) :].tolist()))
    pairs = run.answer_pairs(task)
    likelihoods = []
    for name in names:
        model, values = torch_model_of(workdir, tiny, name), []
        for index in range(len(pairs.pairs)):
            ids = pairs.pairs.gather(np.asarray([index])).tolist()
            with torch.no_grad():
                scores = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
            columns = np.arange(int(pairs.pairs.prompt_lengths[index]), len(ids))
            values.append(float(scores[columns - 1, np.asarray(ids)[columns]].sum()))
        likelihoods.append(values)
    prompts = [run.encoded(task, "test").examples.prompt(row) for row in range(12)]
    ours = ask(run, names, pairs, prompts)
    assert ours.texts == [answers[name] for name in names] and len({tuple(texts) for texts in ours.texts}) > 2
    np.testing.assert_allclose(ours.likelihoods, likelihoods, rtol=1e-4)


def test_every_model_keeps_its_place_and_every_row_its_prompt(full_controls, tiny):
    """In an order in which adapters and whole models take turns, with prompts of many lengths."""
    config, workdir = full_controls
    run = pipeline.Run(config, RunFolder(str(workdir)), Stop())
    prompts = prompts_of(run, "copy_first")
    names = ["count_words", None, "last_word", "tuned", "copy_first"]
    kept = model_states(run, names, prompts)
    assert kept.states.shape[:2] == (5, len(NAMES)) and kept.valid.sum() == len(prompts)
    for model, name in enumerate(names):
        wanted = last_states(torch_model_of(workdir, tiny, name), prompts)
        for layer, found in zip(kept.names, np.asarray(kept.states[model]), strict=True):
            assert distance(found[: len(prompts)], wanted[layer]) < 1e-5, (name, layer)
            each = np.linalg.norm(found[: len(prompts)] - wanted[layer], axis=1)
            assert (each < 1e-4 * np.linalg.norm(wanted[layer], axis=1)).all(), (name, layer)


@pytest.mark.parametrize("which, experimental, control", [
    ("full_controls", "pretrained", "models/copy_first"),
    ("full_controls", "adapters/tuned", "models/copy_first"),
    ("full_e", "models/tuned", "adapters/copy_first"),
])  # fmt: skip
def test_comparing_the_exported_folders_gives_the_same_cells(which, experimental, control, tiny, tasks_folder, request):
    _, workdir = request.getfixturevalue(which)
    lines = (tasks_folder / "test/copy_first.jsonl").read_text().splitlines()
    prompts = [json.loads(line)["inputs"] for line in lines]
    folder = experimental if experimental == "pretrained" else str(workdir / experimental)
    again = mossa.compare(str(tiny.folder), folder, str(workdir / control), prompts, max_tokens=48)
    table = pd.read_parquet(workdir / "results/cka.parquet")
    rows = table[(table.task == "copy_first") & (table.control == "copy_first")]
    rows = rows[rows.experimental == experimental.split("/")[-1]]
    assert len(rows) == len(again) and again.cka.notna().any()
    for name in ("cka", "low", "high"):
        np.testing.assert_allclose(rows[name], again[name], atol=1e-5)


def test_a_model_of_another_template_is_not_compared(full_controls, tiny, tmp_path):
    config, workdir = full_controls
    copy = shutil.copytree(workdir, tmp_path / "copy")
    edit_about(copy / "models/copy_first", lambda about: about["template"].update(name="llama2", digest="other"))
    part_of(copy, "cka", "copy_first").unlink()
    run = bench_in(config, copy)
    try:
        with pytest.raises(Refusal, match=r"model 'copy_first' was tuned with template 'llama2'") as caught:
            pipeline.compare(run)
        assert caught.value.code == 3
    finally:
        run.folder.close()
    with pytest.raises(Refusal, match=r"model .*copy_first was tuned with template 'llama2'") as caught:
        mossa.compare(str(tiny.folder), "pretrained", str(copy / "models/copy_first"), ["a", "b", "c", "d"])
    assert caught.value.code == 3


class AskingRunDir(RunFolder):
    """Asks to stop when the second full control has logged its second step."""

    def append_metrics(self, record):
        super().append_metrics(record)
        models = list(dict.fromkeys(each["model"] for each in self.metrics() if each.get("model", "tuned") != "tuned"))
        self.stop.asked |= len(models) == 2 and record.get("model") == models[1] and record["step"] >= 2


def test_stopped_in_the_middle_of_a_control_it_ends_like_a_run_that_was_not(full_controls, tmp_path, monkeypatch):
    config, straight = full_controls
    stop = Stop()
    run = bench_in(config, tmp_path / "run", stop, AskingRunDir)
    run.folder.stop = stop
    try:
        with pytest.raises(Refusal) as caught:
            pipeline.tune(run)
    finally:
        run.folder.close()
    assert caught.value.code == 75
    models = tmp_path / "run/models"
    (done,) = models.iterdir()
    stamp = (done / "model.safetensors").stat().st_mtime_ns
    (under_way,) = [p for p in (tmp_path / "run/checkpoints").iterdir() if p.name.startswith("controls")]
    assert any(path.name.isdigit() for path in under_way.iterdir())
    read = []
    weights = pipeline.Run.weights
    monkeypatch.setattr(pipeline.Run, "weights", lambda run: read.append(1) or weights(run))
    finished(config, tmp_path / "run")
    assert (done / "model.safetensors").stat().st_mtime_ns == stamp  # it was not done twice
    assert len(read) == 1  # by the control that had not begun
    for name in TASKS:
        found, wanted = (folder / name / "model.safetensors" for folder in (models, straight / "models"))
        assert found.read_bytes() == wanted.read_bytes(), name
    assert (tmp_path / "run/results/cka.csv").read_bytes() == (straight / "results/cka.csv").read_bytes()


def test_a_finished_model_is_not_tuned_again_and_one_that_is_gone_is(full_e, tmp_path):
    config, workdir = full_e
    copy = shutil.copytree(workdir, tmp_path / "copy")
    wanted = (copy / "models/tuned/model.safetensors").read_bytes()
    shutil.rmtree(copy / "models/tuned")
    before = {path: path.stat().st_mtime_ns for path in (copy / "adapters").rglob("*")}
    run = bench_in(config, copy)
    try:
        pipeline.tune(run)
    finally:
        run.folder.close()
    assert (copy / "models/tuned/model.safetensors").read_bytes() == wanted
    assert {path: path.stat().st_mtime_ns for path in (copy / "adapters").rglob("*")} == before


def test_a_poisoned_batch_skips_its_update_and_is_counted(tiny_config, tmp_path, monkeypatch):
    config = configured(tiny_config, control="full")
    config.tasks.only, config.tuning.score_prompts = ("copy_first", "count_words"), 0
    config.tuning.log_every, config.tuning.checkpoint_every = 1, 100
    compile_step, moved = full.compile_step, []

    def poisoning(*arguments):
        update = compile_step(*arguments)

        def step(state, batch, number, total):
            before = jax.tree.map(np.array, state.parameters)
            if number == 1:  # answers beyond their row: NaN
                batch = batch | {"predict": batch["predict"] + 10_000}
            state, metrics = update(state, batch, number, total)
            same = jax.tree.map(np.array_equal, before, jax.tree.map(np.array, state.parameters))
            moved.append(not jax.tree.all(same))
            return state, metrics

        return step

    monkeypatch.setattr(full, "compile_step", poisoning)
    run = bench_in(config, tmp_path / "run")
    try:
        pipeline.tune(run)
    finally:
        run.folder.close()
    assert moved == [True, False, True, True] * 2
    for name in config.tasks.only:
        records = [record for record in run.folder.metrics() if record.get("model") == name]
        assert [record["loss"] is None for record in records] == [False, True, False, False]
        assert [record.get("skipped", 0) for record in records] == [0, 1, 1, 1]
        assert (tmp_path / "run/models" / name / "model.safetensors").exists()


def test_the_base_is_not_kept_while_a_model_is_tuned_in_full(tiny_config, tmp_path, monkeypatch):
    config = configured(tiny_config, experimental="full", control="full")
    config.tuning.score_prompts, config.tasks.only = 0, ("copy_first", "count_words")
    config.tuning.checkpoint_every = 100  # while a save is under way, Orbax holds copies on a CPU
    sizes, compile_step = [], full.compile_step
    gc.collect()
    shape = read_architecture(config.base).vocab, read_architecture(config.base).hidden
    matrices = lambda: sum(leaf.shape == shape for leaf in jax.live_arrays())  # noqa: E731
    already = matrices()

    def watching(*arguments):
        update = compile_step(*arguments)

        def step(state, *rest):
            found = update(state, *rest)
            del state
            sizes.append(matrices() - already)
            return found

        return step

    monkeypatch.setattr(full, "compile_step", watching)
    run = bench_in(config, tmp_path / "run")
    try:
        pipeline.tune(run)
    finally:
        run.folder.close()
    # Embedding and head, each as parameter and two moments; neither base nor another control.
    assert len(sizes) > 8 and set(sizes) == {6}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"control": {"method": "qlora"}}, r"tuning\.control\.method='qlora': must be one of lora, full"),
        ({"experimental": {"optimizer": "sgd"}}, r"tuning\.experimental\.optimizer='sgd': must be one of adamw"),
        ({"control": {"optimizer": "adafactor"}}, r"tuning\.control\.optimizer='adafactor': adapters"),
        ({"experimental": {"method": "full"}, "first_layer": 1}, r"tuning\.first_layer=1: must be 0"),
        ({"control": {"method": "full", "batch_rows": 4, "parts": 3}}, r"tuning\.control\.parts=3"),
        ({"control": {"method": "full"}, "snapshots": 2}, r"tuning\.snapshots=2: only adapters are kept"),
        ({"snapshots": -1}, r"tuning\.snapshots=-1: must be at least 0"),
    ],
)
def test_combinations_without_meaning_are_refused(tiny_config, change, words):
    config = configured(tiny_config)
    for name, value in change.items():
        if isinstance(value, dict):
            value = dataclasses.replace(getattr(config.tuning, name), **value)
        setattr(config.tuning, name, value)
    with pytest.raises(Refusal, match=words) as caught:
        check(config)
    assert caught.value.code == 2


@pytest.mark.slow
def test_the_page_is_made_of_whole_models_as_of_adapters(full_e, tmp_path):
    config, workdir = full_e
    copy = pathlib.Path(shutil.copytree(workdir, tmp_path / "copy"))
    run = bench_in(config, copy)
    try:
        found = pipeline.report(run)
    finally:
        run.folder.close()
    assert found["findings"] and (copy / "report.html").stat().st_size > 0


MESH = """
import sys
import jax
from mossa_jax.run import pipeline
from mossa_jax.config import Mesh
from mossa_jax.processes.stop import Stop

from tests.acceptance.run.test_full_run import configured

config = configured(sys.argv[1], control="full")
config.mesh = Mesh(adapter=2, fsdp=2, tensor=2)
run_folder = pipeline.open_run(config, sys.argv[2])
run = pipeline.Run(config, run_folder, Stop())
assert jax.tree.leaves(run.outline.state)[0].sharding.mesh.size == 8
pipeline.tune(run)
pipeline.compare(run)
"""


@pytest.mark.slow
def test_a_run_goes_on_on_eight_devices(full_controls, tiny_config, root, tmp_path):
    """One control is tuned there; the comparisons of all are made there, too."""
    _, workdir = full_controls
    copy = shutil.copytree(workdir, tmp_path / "copy")
    shutil.rmtree(copy / "models/last_word")
    shutil.rmtree(copy / "results")
    together([[sys.executable, "-c", MESH, tiny_config, copy]], root, 8, tmp_path)
    found, wanted = (torch_model(folder / "models/last_word").state_dict() for folder in (copy, workdir))
    assert all(distance(found[name], wanted[name]) < 1e-4 for name in wanted)
    found, wanted = (pd.read_parquet(folder / "results/cka.parquet") for folder in (copy, workdir))
    for name in ("cka", "low", "high"):
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-3)
    scores = (sorted((folder / "results/parts/scores").iterdir()) for folder in (copy, workdir))
    assert [path.read_bytes() for path in next(scores)] == [path.read_bytes() for path in next(scores)]
