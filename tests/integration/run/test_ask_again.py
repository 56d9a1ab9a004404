"""A finished run is asked again: other settings, other tasks, another folder. What was computed is never lost."""

import copy
import json
import shutil

import numpy as np
import pandas as pd
import pytest

from mossa_jax.errors import Refusal
from mossa_jax.processes.stop import Stop
from mossa_jax.run import compare, parts, pipeline, tune
from mossa_jax.run.options import Options
from mossa_jax.tuning.population_run import PopulationRun

MODELS = ("tuned", "copy_first", "last_word", "count_words")


@pytest.fixture
def copied(tiny_run, tmp_path):
    """A copy of a finished run and of its tasks: (config, run folder)."""
    config = copy.deepcopy(tiny_run[0])
    folder = shutil.copytree(tiny_run[1], tmp_path / "run", ignore=shutil.ignore_patterns(".lock", ".holder"))
    config.tasks.folder = str(shutil.copytree(config.tasks.folder, tmp_path / "tasks"))
    return config, folder


@pytest.fixture
def trained(monkeypatch):
    """Names of the models that were trained, in each round."""
    rounds = []
    started = PopulationRun.initial_state

    def initial_state(self):
        rounds.append([member.name for member in self.roster.members])
        return started(self)

    monkeypatch.setattr(PopulationRun, "initial_state", initial_state)
    return rounds


def ask(config, folder, *stages, **options):
    run = pipeline.Run(config, pipeline.open_run(config, str(folder)), Stop(), options=Options(**options))
    try:
        return [stage(run) for stage in stages or (pipeline.tune, compare.compare)][-1]
    finally:
        run.folder.close()


def add_task(config, name="reverse"):
    """A task like another one of its cluster, with other texts."""
    for split in ("train", "test"):
        text = open(f"{config.tasks.folder}/{split}/last_word.jsonl").read().replace("last_word", name)
        with open(f"{config.tasks.folder}/{split}/{name}.jsonl", "w") as file:
            file.write(text)
    change_tasks(config, lambda tasks: tasks.update({name: {"cluster": "words"}}))


def remove_task(config, name):
    change_tasks(config, lambda tasks: tasks.pop(name))
    for split in ("train", "test"):
        shutil.move(f"{config.tasks.folder}/{split}/{name}.jsonl", f"{config.tasks.folder}/../{split}.away")


def change_tasks(config, change):
    path = f"{config.tasks.folder}/tasks.json"
    tasks = json.load(open(path))
    change(tasks)
    json.dump(tasks, open(path, "w"))


def adapters(folder):
    return {path.parent.name: path.read_bytes() for path in folder.glob("adapters/*/adapter_model.safetensors")}


def results(folder):
    return {path.name: path.read_bytes() for path in (folder / "results").glob("*.csv")}


def test_a_later_setting_gives_a_variant_over_the_same_models(copied, trained):
    config, folder = copied
    before, scores = results(folder), sorted((folder / "results/parts/scores").iterdir())
    config.compare.pool = "mean"
    ask(config, folder)
    assert trained == [] and results(folder) == before
    assert sorted((folder / "results/parts/scores").iterdir()) == scores  # scores rest on no pooling
    variant = folder / "variants/compare.pool=mean"
    assert json.loads((variant / "config.json").read_text())["compare"]["pool"] == "mean"
    ours = pd.read_parquet(variant / "results/cka.parquet")
    theirs = pd.read_parquet(folder / "results/cka.parquet")
    assert len(ours) == len(theirs) and not np.allclose(ours.cka, theirs.cka, equal_nan=True)
    # The same as that of a run that never was anything else, which shares nothing with this one but its adapters.
    other = folder.parent / "other"
    pipeline.open_run(config, str(other)).close()
    shutil.copytree(folder / "adapters", other / "adapters")
    ask(config, other)
    pd.testing.assert_frame_equal(ours, pd.read_parquet(other / "results/cka.parquet"))
    # Asked for the first settings, the folder has them still.
    config.compare.pool = "last"
    ask(config, folder)
    assert results(folder) == before and trained == []


def test_settings_that_only_the_findings_rest_on_compute_nothing(copied, trained, monkeypatch):
    config, folder = copied
    parts = sorted(folder.glob("results/parts/*/*"))
    monkeypatch.setattr(compare, "_compare_task", None)
    config.compare.draws, config.name, config.tuning.skips = 77, "renamed", 9
    ask(config, folder)
    assert trained == [] and sorted(folder.glob("results/parts/*/*")) == parts
    assert (folder / "variants/compare.draws=77/results/cka.csv").read_bytes() == results(folder)["cka.csv"]


def test_an_earlier_setting_is_refused_with_the_way_to_take_over(copied):
    config, folder = copied
    config.tuning.rank = 4
    with pytest.raises(Refusal, match=rf"tuning.rank was 2, now 4.*--from={folder}") as caught:
        ask(config, folder)
    assert caught.value.code == 2


def test_a_task_that_comes_trains_its_specialist_alone_where_e_is_kept(copied, trained):
    config, folder = copied
    before = adapters(folder)
    add_task(config)
    for stage in (pipeline.tune, compare.compare):
        with pytest.raises(Refusal, match=r"added reverse.*'tuned'.*with reverse.*--stale=keep") as caught:
            ask(config, folder, stage)
        assert caught.value.code == 3
    assert adapters(folder) == before and trained == []
    assert "reverse" not in json.loads((folder / "data.json").read_text())["tasks"]
    ask(config, folder, stale="keep")
    assert trained == [["reverse"]]
    after = adapters(folder)
    assert {name: after[name] for name in before} == before and set(after) - set(before) == {"reverse"}
    table = pd.read_parquet(folder / "results/cka.parquet")
    assert set(table[table.held_out].task) == {"reverse"}  # E has not seen it
    # The decision stands; nothing is done twice.
    ask(config, folder, pipeline.tune, compare.compare, pipeline.report)
    assert trained == [["reverse"]] and adapters(folder) == after
    page = (folder / "report.html").read_text()
    assert "it has not seen reverse" in page and "added reverse" in page
    # The report rests on what was computed, wherever the tasks are.
    shutil.rmtree(config.tasks.folder)
    found = ask(config, folder, pipeline.report)
    assert found["template"]["name"] == "none"


def test_a_task_that_comes_or_goes_trains_e_again_as_asked(copied, trained):
    config, folder = copied
    before = adapters(folder)
    add_task(config)
    ask(config, folder, stale="retrain")
    assert trained == [["tuned"], ["reverse"]]
    after = adapters(folder)
    assert after["tuned"] != before["tuned"] and after["last_word"] == before["last_word"]
    (replaced,) = (folder / "replaced").iterdir()
    assert (replaced / "adapter_model.safetensors").read_bytes() == before["tuned"]
    table = pd.read_parquet(folder / "results/cka.parquet")
    assert "reverse" in set(table.task) and not table.held_out.any()
    remove_task(config, "reverse")
    ask(config, folder, stale="retrain")
    # Without the task all is as it was, to the last bit; its specialist is still there.
    assert trained[2:] == [["tuned"]] and adapters(folder) == {**after, "tuned": before["tuned"]}


def test_a_task_that_goes_is_named_in_the_log_and_on_the_page(copied, trained, caplog):
    config, folder = copied
    remove_task(config, "copy_first")
    with pytest.raises(Refusal, match=r"removed copy_first.*'tuned'.*without copy_first") as caught:
        ask(config, folder)
    assert caught.value.code == 3
    with caplog.at_level("WARNING", logger="mossa_jax"):
        ask(config, folder, pipeline.tune, compare.compare, pipeline.report, stale="keep")
    assert trained == [] and "removed: copy_first" in caplog.text
    page = (folder / "report.html").read_text()
    assert "it has also seen copy_first" in page and "removed copy_first" in page
    assert set(pd.read_parquet(folder / "results/cka.parquet").task) == {"last_word", "count_words"}


def test_a_task_whose_rows_changed_is_tuned_and_measured_anew_and_no_other(copied, trained):
    config, folder = copied
    before, parts = adapters(folder), set((folder / "results/parts/scores").iterdir())
    with open(f"{config.tasks.folder}/train/count_words.jsonl", "a") as file:
        file.write('{"inputs": "count_words: the mill", "targets": "2"}\n')
    with pytest.raises(Refusal, match=r"changed count_words.*other rows of count_words") as caught:
        ask(config, folder, stale="keep")
    assert caught.value.code == 3
    ask(config, folder, stale="retrain")
    own = {"count_words", "count_words.seed1", "count_words.twin"}
    assert [set(names) for names in trained] == [{"tuned"}, own]
    after = adapters(folder)
    assert {name for name in before if before[name] != after[name]} == {"tuned", *own}
    # Scores of every task rest on E, so that all are made anew beside the old ones.
    assert len(set((folder / "results/parts/scores").iterdir()) - parts) == 3


def test_a_new_folder_takes_over_what_rests_on_the_same(copied, trained, tmp_path):
    config, folder = copied
    before = adapters(folder)
    same = copy.deepcopy(config)
    same.compare.permutations = 5
    ask(same, tmp_path / "same", take_from=str(folder))
    assert trained == [] and adapters(tmp_path / "same") == before
    for kind in ("adapter_config.json", "mossa.json"):
        for name in MODELS:
            theirs = (folder / f"adapters/{name}" / kind).read_bytes()
            assert (tmp_path / f"same/adapters/{name}" / kind).read_bytes() == theirs
    scores = {path.name for path in (folder / "results/parts/scores").iterdir()}
    assert {path.name for path in (tmp_path / "same/results/parts/scores").iterdir()} == scores
    curves = [[r for r in pipeline.RunFolder(place).metrics() if "model" in r] for place in (folder, tmp_path / "same")]
    key = json.dumps
    assert sorted(map(key, curves[0])) == sorted(map(key, curves[1])) != []
    taken = json.loads((tmp_path / "same/takeover.json").read_text())
    assert set(taken["models"]) == set(before) and taken["anew"] == {}

    other = copy.deepcopy(config)
    other.tuning.rank = 4
    ask(other, tmp_path / "rank", pipeline.tune, take_from=str(folder))
    reasons = json.loads((tmp_path / "rank/takeover.json").read_text())
    assert reasons["models"] == [] and set(reasons["anew"].values()) == {"tuning.rank was 2, now 4"}
    assert {name for names in trained for name in names} == set(before)
    trained.clear()

    other = copy.deepcopy(config)
    other.tuning.experimental.learning_rate = 1e-3
    ask(other, tmp_path / "rate", pipeline.tune, take_from=str(folder))
    assert trained == [["tuned"]]
    trained.clear()

    with open(f"{config.tasks.folder}/train/count_words.jsonl", "a") as file:
        file.write('{"inputs": "count_words: the mill", "targets": "2"}\n')
    ask(config, tmp_path / "rows", pipeline.tune, take_from=str(folder))
    found = adapters(tmp_path / "rows")
    assert [found[name] == before[name] for name in ("copy_first", "last_word", "count_words")] == [True, True, False]
    assert {name for names in trained for name in names} == {
        "tuned", "count_words", "count_words.seed1", "count_words.twin",
    }  # fmt: skip


class Killed(Exception):
    """Stands for the end of a process."""


@pytest.mark.parametrize("doomed", ["takeover", "export", "part"])
def test_killed_on_the_way_it_goes_on_to_the_same_tables(copied, tmp_path, monkeypatch, doomed):
    config, folder = copied
    add_task(config)
    whole = shutil.copytree(folder, tmp_path / "whole")
    ask(config, whole, stale="retrain")
    place, options = folder, {"stale": "retrain"}
    if doomed == "takeover":
        place, options = tmp_path / "new", {"take_from": str(folder)}
    calls = []

    def dies_at_second(function):
        def call(*arguments, **more):
            calls.append(1)
            if len(calls) == 2:
                raise Killed
            return function(*arguments, **more)

        return call

    with monkeypatch.context() as patch:
        if doomed == "takeover":
            patch.setattr(pipeline.takeover, "_copy", dies_at_second(pipeline.takeover._copy))
        elif doomed == "export":
            patch.setattr(tune, "save_adapter", dies_at_second(tune.save_adapter))
        else:
            patch.setattr(parts.PartFile, "write", dies_at_second(parts.PartFile.write))
        with pytest.raises(Killed):
            ask(config, place, **options)
    ask(config, place, **options)
    assert results(place)["cka.csv"] == results(whole)["cka.csv"]
    assert adapters(place) == adapters(whole)
