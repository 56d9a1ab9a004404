"""Analyses beside the comparison: interrupted anywhere and continued, they give the same tables, byte for byte."""

import copy
import json
import shutil

import numpy as np
import pandas as pd
import pytest

from mossa_jax.errors import Refusal
from mossa_jax.llama.adapters import initial_adapter
from mossa_jax.llama.files.peft import save_adapter
from mossa_jax.processes.stop import Stop
from mossa_jax.run import context, pipeline
from mossa_jax.run.analyse import ANALYSES, analyse, announce
from mossa_jax.run.analyse.stages import wanted
from mossa_jax.run.compare import compare
from mossa_jax.run.prepare import prepare
from tests.conftest import load_config
from tests.support.tiny_llama import random_texts, write_config

TASKS, PROMPTS = 4, 24


def write_tasks(folder):
    clusters = {}
    for number in range(TASKS):
        name = f"task{number}"
        clusters[name] = {"cluster": f"cluster{number % 2}"}
        for split, rows in (("train", 4 + number), ("test", PROMPTS)):
            texts = random_texts(rows, seed=10 * number + (split == "test"))
            lines = [
                {"inputs": text, "targets": ("mill", "river", "hills")[index % 3], "template": index % 2}
                for index, text in enumerate(texts)
            ]
            path = folder / split / f"{name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "tasks.json").write_text(json.dumps(clusters))
    return folder


@pytest.fixture(scope="module")
def tuned_config(tiny, tmp_path_factory):
    """A configuration over four small tasks."""
    place = tmp_path_factory.mktemp("analyses")
    config = load_config(write_config(place / "config.py", tiny.folder, write_tasks(place / "tasks"), analyses=True))
    config.tokens.max_tokens = config.tokens.row_length = 96
    config.tuning.score_prompts, config.compare.permutations = 8, 3
    return config


def open_run(config, folder):
    """Opens a run whose adapters are random; those of one name are the same in every folder."""
    run = pipeline.Run(config, pipeline.open_run(config, str(folder)), Stop())
    prepare(run)
    for seed, name in enumerate(["tuned", *run.controls]):
        if not run.is_tuned(name):
            adapter = initial_adapter(run.architecture, ("q_proj", "v_proj"), 2, 16.0, 0, (seed,))
            for matrices in adapter.values():
                matrices["b"] = 0.2 * np.random.default_rng(seed).standard_normal(matrices["b"].shape, np.float32)
            about = {"template": run.tokenizer.record, "digest": run.model_digest(name)}
            save_adapter(run.tuned_folder(name), adapter, run.base, about)
    return run


def all_tables(run):
    names = [name for analysis in wanted(run, ANALYSES) for name in analysis.table_names]
    return {
        f"{name}.{suffix}": (run.folder / f"results/{name}.{suffix}").read_bytes()
        for name in names
        for suffix in ("parquet", "csv")
    }


@pytest.fixture(scope="module")
def whole_run(tuned_config, tmp_path_factory):
    """The tables of a run that nothing interrupted."""
    run = open_run(tuned_config, tmp_path_factory.mktemp("whole") / "run")
    compare(run)
    analyse(run)
    run.folder.close()
    return run, all_tables(run)


class Killed(Exception):
    """Stands for the end of a process."""


def test_every_analysis_has_its_tables_with_a_row_for_every_task_it_looks_at(whole_run):
    run, tables = whole_run
    assert len(tables) >= 2 * len(wanted(run, ANALYSES)) > 0
    for analysis in wanted(run, ANALYSES):
        parts = pd.concat([run.read_part(analysis.parts, task) for task in analysis.tasks(run)])
        assert set(parts.task) == {task.name for task in analysis.tasks(run)}
        assert all(len(pd.read_parquet(run.folder / f"results/{name}.parquet")) for name in analysis.table_names)


@pytest.mark.parametrize("analysis", ANALYSES, ids=lambda analysis: analysis.name)
def test_a_run_that_is_killed_in_an_analysis_continues_to_the_same_bytes(
    analysis, tuned_config, whole_run, tmp_path, monkeypatch
):
    if analysis not in wanted(whole_run[0], ANALYSES):
        pytest.skip("this run does not make it")
    run = open_run(tuned_config, tmp_path / "run")
    write = context.Run.write_part
    # The last part of the analysis but one is not written.
    doomed = analysis.tasks(run)[-1].name

    def write_or_die(self, kind, task, rows):
        if kind.stage == analysis.name and task.name == doomed:
            raise Killed
        write(self, kind, task, rows)

    with monkeypatch.context() as patch:
        patch.setattr(context.Run, "write_part", write_or_die)
        with pytest.raises(Killed):
            compare(run)
            analyse(run)
    run.folder.close()
    again = open_run(tuned_config, tmp_path / "run")
    compare(again)
    analyse(again)
    again.folder.close()
    assert all_tables(again) == whole_run[1]


def test_an_analysis_of_a_finished_run_computes_its_states_once_more_and_changes_nothing_else(
    tuned_config, whole_run, tmp_path
):
    run = open_run(tuned_config, tmp_path / "run")
    fields = [analysis.name for analysis in ANALYSES]
    before = {name: getattr(tuned_config.analyse, name) for name in fields}
    try:
        for name in fields:
            setattr(tuned_config.analyse, name, False)
        compare(run)
        analyse(run)
        assert not any((run.folder / f"results/{name}.parquet").exists() for a in ANALYSES for name in a.table_names)
    finally:
        for name, value in before.items():
            setattr(tuned_config.analyse, name, value)
    similarities = (run.folder / "results/cka.parquet").read_bytes()
    analyse(run)
    run.folder.close()
    assert all_tables(run) == whole_run[1]
    assert (run.folder / "results/cka.parquet").read_bytes() == similarities


@pytest.mark.parametrize("field", ["measures_tasks", "layers_tasks", "trajectory_tasks"])
def test_a_name_that_is_no_task_is_refused_before_anything_is_tuned(tuned_config, tmp_path, field):
    config = copy.deepcopy(tuned_config)
    config.tuning.snapshots = 1
    setattr(config.analyse, field, ("task9",))
    run = pipeline.Run(config, pipeline.open_run(config, str(tmp_path / "run")), Stop())
    try:
        with pytest.raises(Refusal, match=f"config.analyse.{field}.*task9") as caught:
            pipeline.run_all(run)
    finally:
        run.folder.close()
    assert caught.value.code == 2 and not (run.folder / "adapters").exists()


def test_an_analysis_that_the_run_has_nothing_for_is_named_with_its_reason(whole_run, caplog):
    run, _ = whole_run
    with caplog.at_level("INFO", logger="mossa_jax"):
        announce(run)
    assert "trajectory: left out, since it needs snapshots (tuning.snapshots)" in caplog.text


def test_changed_settings_ask_for_new_parts_of_what_rests_on_them_alone(tuned_config, whole_run, tmp_path):
    config = copy.deepcopy(tuned_config)
    folder = shutil.copytree(
        whole_run[0].folder.path, tmp_path / "run", ignore=shutil.ignore_patterns(".lock", ".holder")
    )
    config.analyse.prompts += 1
    run = open_run(config, folder)
    for analysis in wanted(run, ANALYSES):
        missing = run.without_part(analysis.parts, analysis.tasks(run))
        assert missing == (list(analysis.tasks(run)) if analysis.needs_states else []), analysis.name
    run.folder.close()
    assert run.folder.variant == f"analyse.prompts={config.analyse.prompts}"
    # Nothing is removed: the settings of before find their parts again.
    before = open_run(tuned_config, folder)
    assert not any(before.without_part(analysis.parts, analysis.tasks(before)) for analysis in wanted(before, ANALYSES))
    before.folder.close()
