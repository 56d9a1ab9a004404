"""Trajectories of a tiny run: values against torch and float64 NumPy, interruptions, programs, and the page's words."""

import copy
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from peft import PeftModel

from mossa_jax.errors import Refusal
from mossa_jax.findings.trajectory import convergence_summary
from mossa_jax.findings.warnings import training_warnings
from mossa_jax.processes.stop import Stop
from mossa_jax.run import context, pipeline
from mossa_jax.run.analyse import trajectory
from mossa_jax.run.analyse.stages import analyse
from mossa_jax.run.exported import snapshot_adapter
from mossa_jax.run.tune import tune
from mossa_jax.similarity import reference
from tests.conftest import load_config
from tests.integration.run.test_few_programs import compilations
from tests.support.tiny_llama import torch_model, torch_states, write_config

TABLES = ("trajectory", "settling", "convergence")
PROMPTS = 10


def open_run(config, folder):
    return pipeline.Run(config, pipeline.open_run(config, str(folder)), Stop())


@pytest.fixture(scope="module")
def config(tiny, tasks_folder, tmp_path_factory):
    config = load_config(
        write_config(tmp_path_factory.mktemp("trajectory") / "config.py", tiny.folder, tasks_folder, True)
    )
    config.tuning.score_prompts, config.tuning.snapshots = 0, 2
    config.tuning.twins = ()
    config.analyse.trajectory_prompts = PROMPTS
    config.analyse.trajectory_tasks = ("copy_first", "count_words", "last_word")
    return config


@pytest.fixture(scope="module")
def tuned(config, tmp_path_factory):
    """The folder of a run that is tuned and not analysed."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    run = open_run(config, folder)
    tune(run)
    run.folder.close()
    return folder


@pytest.fixture(scope="module")
def analysed(config, tuned, tmp_path_factory):
    """The same run with its tables, which nothing interrupted."""
    folder = tmp_path_factory.mktemp("analysed") / "run"
    shutil.copytree(tuned, folder)
    run = open_run(config, folder)
    analyse(run, [trajectory.ANALYSIS])
    yield run
    run.folder.close()


def read(run, name):
    return pd.read_parquet(run.folder / f"results/{name}.parquet")


def files(run):
    names = [f"{name}.{suffix}" for name in TABLES for suffix in ("parquet", "csv")]
    return {name: (run.folder / f"results/{name}").read_bytes() for name in names}


def test_every_value_is_that_of_peft_on_torch_and_of_float64_numpy(analysed, tiny):
    run = analysed
    table = read(run, "trajectory").set_index(["task", "model", "step", "layer"]).sort_index()

    def states(folder, prompts):
        model = torch_model(tiny.folder)
        if folder is not None:
            model = PeftModel.from_pretrained(model, str(folder)).eval()
        layers = torch_states(model, prompts)
        return {name: np.stack([each[name][-1] for each in layers]) for name in layers[0] if name != "logits"}

    compared = 0
    for task, model, name in (("count_words", "control", "count_words"), ("last_word", "tuned", "tuned")):
        (own,) = (each for each in run.suite.tasks if each.name == task)
        prompts = [ids.tolist() for ids in run.test_prompts(own).first(PROMPTS).ids]
        end = states(run.tuned_folder(name), prompts)
        steps = table.loc[task, model].index.unique("step")
        assert len(steps) == 3 and steps[0] == 0
        for step in steps:
            found = states(run.snapshot_folder(name, step) if step else None, prompts)
            for layer in end:
                cell = table.loc[task, model, step, layer]
                if not cell.undefined:
                    compared += 1
                    assert cell.cka == pytest.approx(reference.debiased(found[layer], end[layer]), abs=2e-4), layer
                    assert cell.low <= cell.cka <= cell.high
        if model == "control":
            second = states(run.tuned_folder(f"{name}.seed1"), prompts)
            for layer in ("1", "2", "3", "final_norm"):
                wanted = reference.debiased(end[layer], second[layer])
                assert table.loc[task, model, 0, layer].ceiling == pytest.approx(wanted, abs=2e-4)
        else:
            assert table.loc[task, model].ceiling.isna().all()
    assert compared >= 2 * 3 * 4


def test_shares_are_those_of_the_steps_and_of_the_learning_rates(analysed, config):
    table = read(analysed, "trajectory").drop_duplicates(["model", "task", "step"])
    for row in table.itertuples():
        name = "tuned" if row.model == "tuned" else row.task
        about = json.loads((analysed.tuned_folder(name) / "mossa.json").read_text())
        assert row.share_of_steps == row.step / about["steps"]
        # No warm-up: half a cosine.
        rates = 0.5 * (1 + np.cos(np.pi * np.arange(about["steps"]) / about["steps"]))
        assert row.share_of_rate == pytest.approx(rates[: row.step].sum() / rates.sum(), abs=1e-6)


def test_a_snapshot_is_a_peft_folder_that_says_its_step(analysed):
    folders = sorted((analysed.folder / "snapshots/count_words").iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert json.loads((folder / "mossa.json").read_text())["steps"] == int(folder.name)


@pytest.mark.parametrize("doomed", ["copy_first", "last_word"])
def test_a_run_that_is_killed_within_continues_to_the_same_bytes(
    analysed, config, tuned, tmp_path, monkeypatch, doomed
):
    shutil.copytree(tuned, tmp_path / "run")
    write = context.Run.write_part

    def write_or_die(self, stage, task, rows):
        if task.name == doomed:
            raise KeyboardInterrupt
        write(self, stage, task, rows)

    with monkeypatch.context() as patch:
        patch.setattr(context.Run, "write_part", write_or_die)
        run = open_run(config, tmp_path / "run")
        with pytest.raises(KeyboardInterrupt):
            analyse(run, [trajectory.ANALYSIS])
        run.folder.close()
    again = open_run(config, tmp_path / "run")
    analyse(again, [trajectory.ANALYSIS])
    again.folder.close()
    assert files(again) == files(analysed)


def test_six_passes_share_two_programs(config, tuned, tmp_path):
    shutil.copytree(tuned, tmp_path / "run")
    run = open_run(config, tmp_path / "run")
    # One for prompts that share their first ids, one for prompts that share none.
    counts = compilations(lambda run: analyse(run, [trajectory.ANALYSIS]), run)
    run.folder.close()
    assert counts["keep_batch"] == 2 and counts["gram_sums"] <= 2, counts


def test_without_snapshots_there_is_nothing_to_follow(config, tmp_path):
    other = copy.deepcopy(config)
    other.tuning.snapshots = 0
    run = open_run(other, tmp_path / "run")
    try:
        assert not trajectory.ANALYSIS.tasks(run)
    finally:
        run.folder.close()


def test_a_snapshot_that_is_gone_is_named(config, tuned, tmp_path):
    shutil.copytree(tuned, tmp_path / "run")
    gone = sorted((tmp_path / "run/snapshots/tuned").iterdir())[0]
    shutil.rmtree(gone)
    run = open_run(config, tmp_path / "run")
    try:
        with pytest.raises(Refusal, match=f"snapshots/tuned/{gone.name} is missing") as caught:
            analyse(run, [trajectory.ANALYSIS])
        assert caught.value.code == 3
    finally:
        run.folder.close()


def test_models_that_have_not_converged_are_warned_of(analysed):
    table = read(analysed, "convergence")
    assert set(table.task) == {"tuned", "copy_first", "count_words", "last_word"}
    assert table.converged.all() and not training_warnings(convergence_summary({"convergence": table}), {})
    late = table.assign(converged=table.task != "count_words", reason=np.where(table.task == "count_words", "late", ""))
    (warning,) = training_warnings(convergence_summary({"convergence": late}), {})
    assert warning.line.startswith("warning: specialists that have not converged: count_words (late); ")
    assert not training_warnings(None, {})


def test_snapshots_that_are_damaged_or_exchanged_are_refused(config, tuned, tmp_path):
    folder = shutil.copytree(tuned, tmp_path / "run", ignore=shutil.ignore_patterns(".lock", ".holder"))
    run = pipeline.Run(config, pipeline.RunFolder(folder), Stop())
    early, late = sorted((folder / "snapshots/count_words").iterdir(), key=lambda path: int(path.name))
    snapshot_adapter(run, "count_words", int(early.name))
    data = bytearray((late / "adapter_model.safetensors").read_bytes())
    data[-1] ^= 1
    (late / "adapter_model.safetensors").write_bytes(data)
    with pytest.raises(Refusal, match=f"{late}/adapter_model.safetensors is not as it was written") as caught:
        snapshot_adapter(run, "count_words", int(late.name))
    assert caught.value.code == 3
    shutil.rmtree(late)
    early.rename(late)
    with pytest.raises(Refusal, match=f"{late} holds the adapter after {early.name} steps and not after {late.name}"):
        snapshot_adapter(run, "count_words", int(late.name))
