"""A whole run on a tiny model and three tasks: what it leaves, what it says, and that it is done once."""

import dataclasses
import fnmatch
import json
import os
import pathlib
import shutil
import sys
from types import SimpleNamespace

import fsspec
import numpy as np
import pandas as pd
import pytest
from markupsafe import escape

import mossa_jax as mossa
from mossa_jax.errors import Refusal
from mossa_jax.files import checked, lease
from mossa_jax.files.csv_text import read_csv
from mossa_jax.processes.stop import Stop
from mossa_jax.report.page.task_cards import anchor
from mossa_jax.run import compare, lineup, parity, pipeline, report
from mossa_jax.run import models as run_models
from mossa_jax.run.environment import command
from mossa_jax.run.prepare import prepare
from mossa_jax.run.rounds import remove_checkpoints
from mossa_jax.similarity import engine
from tests.support.run_folders import part_of

TASKS = ["last_word", "copy_first", "count_words"]
NAMES = ["embed", "1", "2", "3", "final_norm"]


@pytest.fixture(scope="module")
def table(tiny_run):
    return pd.read_parquet(tiny_run[1] / "results/cka.parquet")


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_what_a_run_leaves(tiny_run):
    _, workdir = tiny_run
    for name in (
        "config.json environment.json metrics.jsonl report.html results/cka.parquet results/cka.csv "
        "results/findings.json results/scores.parquet"
    ).split():
        assert (workdir / name).stat().st_size > 0, name
    for model in ("tuned", *TASKS):
        folder = workdir / "adapters" / model
        assert (folder / "adapter_config.json").exists() and (folder / "adapter_model.safetensors").exists()
        about = json.loads((folder / "mossa.json").read_text())
        assert about["tasks"] == (sorted(TASKS) if model == "tuned" else [model])
        assert about["rows"] == (72 if model == "tuned" else 24)
    assert list((workdir / "figures").glob("*.png")) and list((workdir / "figures").glob("*.pdf"))
    assert not list(workdir.rglob("*.tmp"))


def test_the_table_is_tidy_and_complete(table):
    first = "experimental control task cluster held_out layer estimator cka low high n".split()
    assert [name for name in table.columns if name in first] == [*first[:4], "held_out", *first[5:]]
    assert set("participation_ratio_a offset_b null_mean p q undefined".split()) <= set(table.columns)
    matched = table[table.control == table.task]
    assert len(matched) == 3 * 2 * len(NAMES) * 2  # tasks, E pre-trained and tuned, layers, estimators
    apart = table[table.control == "tuned"]  # E beside the base it came from
    assert len(apart) == 3 * len(NAMES) * 2 and set(apart.experimental) == {"pretrained"}
    others = table[table.control.isin(TASKS) & (table.control != table.task)]
    assert len(others) == len(matched)  # one mismatched control a task
    seeded = {"last_word", "count_words"}  # the first of each cluster
    for end in (".seed1", ".twin"):
        rows = table[table.control == table.task + end]
        sides = {"pretrained", "tuned"} | ({"control"} if end == ".seed1" else set())
        assert set(rows.task) == seeded and set(rows.experimental) == sides
        assert len(rows) == len(seeded) * len(sides) * len(NAMES) * 2
    assert len(table) == 2 * len(matched) + len(apart) + len(seeded) * 5 * len(NAMES) * 2
    assert (table.units == table.n).all() and set(table.repairing) <= {"rows", ""}
    assert list(dict.fromkeys(table.task)) == TASKS
    assert list(dict.fromkeys(table.layer)) == NAMES
    assert set(table.n) == {12} and not table.held_out.any()
    clusters = {"last_word": "words", "copy_first": "words", "count_words": "numbers"}
    assert (table.cluster == table.task.map(clusters)).all()
    assert (others.task.map(clusters) != others.control.map(clusters)).all()
    defined = table[table.undefined == ""]
    assert len(defined) and defined.p.between(1 / 21 - 1e-9, 1).all()
    both = defined[(defined.control == defined.task) & (defined.estimator == "biased")]
    assert both.q[both.layer == "embed"].isna().all()  # the embedding is the base's in all models
    both = both[both.layer != "embed"]
    order = both.p.to_numpy().argsort()
    ranks = np.arange(1, len(both) + 1)
    wanted = np.minimum.accumulate((both.p.to_numpy()[order] * len(both) / ranks)[::-1])[::-1]
    np.testing.assert_allclose(both.q.to_numpy()[order], np.minimum(wanted, 1))
    assert table[table.control != table.task].q.isna().all()


@pytest.mark.parametrize("task", ["copy_first", "count_words"])
def test_its_cells_are_those_of_comparing_the_exported_adapters(tiny_run, table, tiny, tasks_folder, task):
    _, workdir = tiny_run
    lines = (tasks_folder / "test" / f"{task}.jsonl").read_text().splitlines()
    prompts = [json.loads(line)["inputs"] for line in lines]
    for experimental in ("pretrained", "tuned"):
        adapter = "pretrained" if experimental == "pretrained" else str(workdir / "adapters/tuned")
        again = mossa.compare(str(tiny.folder), adapter, str(workdir / "adapters" / task), prompts, max_tokens=48)
        rows = table[(table.task == task) & (table.control == task) & (table.experimental == experimental)]
        assert rows.layer.tolist() == again.layer.tolist() and rows.estimator.tolist() == again.estimator.tolist()
        np.testing.assert_allclose(rows.cka, again.cka, atol=1e-5)
        # The run's intervals hold the noise between seeds, too.
        low, high = (rows[end].to_numpy() for end in ("low", "high"))
        assert (low <= again.low.to_numpy() + 1e-5).all() and (high >= again.high.to_numpy() - 1e-5).all()
        assert (rows.error_seeds[rows.layer == "2"] > 0).all()


def test_changes_are_those_of_the_cells_with_shares_of_the_ceiling(tiny_run, table):
    change = pd.read_parquet(tiny_run[1] / "results/change.parquet")
    first = "task cluster held_out layer estimator change low high p q share_of_ceiling competent"
    assert change.columns.tolist() == [*first.split(), "error_rows", "error_seeds"]
    assert len(change) == 3 * len(NAMES) * 2
    cells = table.set_index(["task", "experimental", "control", "layer", "estimator"]).cka
    row = change[(change.task == "count_words") & (change.layer == "3") & (change.estimator == "biased")].iloc[0]
    at = ("3", "biased")
    wanted = cells["count_words", "tuned", "count_words", *at] - cells["count_words", "pretrained", "count_words", *at]
    assert row.change == pytest.approx(wanted) and row.low < row.change < row.high
    ceiling = cells["count_words", "control", "count_words.seed1", *at]
    assert row.share_of_ceiling == pytest.approx(wanted / ceiling)
    assert change.q.notna().equals(change.layer.isin(["1", "2", "3"]) & change.p.notna())


def test_a_twin_is_trained_on_permuted_answers(tiny_run):
    _, workdir = tiny_run
    about = json.loads((workdir / "adapters/last_word.twin/mossa.json").read_text())
    assert about["tasks"] == ["last_word"] and about["answers"] == "permuted" and about["rows"] == 24
    assert json.loads((workdir / "adapters/last_word.seed1/mossa.json").read_text())["answers"] == "own"
    assert not (workdir / "adapters/copy_first.twin").exists()
    weights = {(workdir / f"adapters/last_word{end}/adapter_model.safetensors").read_bytes() for end in ("", ".twin")}
    assert len(weights) == 2


def test_scores_are_a_tidy_table_of_measures_of_the_prompts_asked_for(tiny_run):
    scores = pd.read_parquet(tiny_run[1] / "results/scores.parquet")
    assert scores.columns.tolist() == "task cluster held_out model metric value low high n".split()
    counts = scores.groupby(["task", "model", "metric"]).size()
    assert (counts == 1).all() and set(scores.n) == {8}
    metrics = {"exact_match", "rouge_l", "answer_nll", "information"}
    for task, rows in scores.groupby("task"):
        models = rows.groupby("model").metric.agg(set)
        assert models.pop("majority") == {"exact_match"}
        assert {"base", "tuned", "control"} <= set(models.index) and all(each == metrics for each in models), task
    exact = scores[scores.metric == "exact_match"]
    assert (exact.value * 8 % 1 == 0).all() and exact.value.between(0, 1).all()
    assert ((scores.low <= scores.value) & (scores.value <= scores.high)).all()
    rouge, nll = (scores[scores.metric == name] for name in ("rouge_l", "answer_nll"))
    assert (rouge.value.to_numpy() >= exact[exact.model != "majority"].value.to_numpy()).all() and (nll.value > 0).all()
    # Each task's majority answer, counted by hand.
    majority = exact[exact.model == "majority"].set_index("task").value
    assert majority["copy_first"] < 1 and (majority > 0).all()


def test_answers_are_those_that_the_models_give_and_exact_where_the_scores_say_so(tiny_run, tiny, tasks_folder):
    answers = pd.read_parquet(tiny_run[1] / "results/answers.parquet")
    assert answers.columns.tolist() == "task cluster held_out example model prompt target answer exact".split()
    assert list(answers.model) == ["base", "tuned", "control"] * 9 and list(dict.fromkeys(answers.task)) == TASKS
    scores = pd.read_parquet(tiny_run[1] / "results/scores.parquet")
    match = scores[scores.metric == "exact_match"].set_index(["task", "model"]).value
    for task, rows in answers.groupby("task"):
        lines = (tasks_folder / "test" / f"{task}.jsonl").read_text().splitlines()
        target_of = {each["inputs"]: each["targets"] for each in map(json.loads, lines)}
        for model, own in rows.groupby("model"):
            # Eight prompts were scored, and three of them are shown.
            right = match[task, model] * 8
            assert 0 <= right - own.exact.sum() <= 5
            assert (own.exact == (own.answer.str.strip() == own.target.str.strip())).all()
            assert own.prompt.nunique() == 3
            shown = own.prompt.str.removeprefix("<s>").str.strip()
            assert shown.map(target_of).tolist() == own.target.tolist()
    from_csv = read_csv(tiny_run[1] / "results/answers.csv")
    assert from_csv.answer.fillna("").tolist() == answers.answer.tolist()
    page = (tiny_run[1] / "report.html").read_text()
    for task in TASKS:
        card = page.split(f'id="{anchor(task)}"')[1].split('<details class="task"')[0]
        assert all(str(escape(prompt)) in card for prompt in answers[answers.task == task].prompt)


def test_the_base_is_beside_transformers_in_the_run_and_on_its_page(tiny_run):
    _, workdir = tiny_run
    parity = pd.read_parquet(workdir / "results/parity.parquet")
    assert parity.columns.tolist() == ["layer", "max_abs_difference", "largest"]
    assert parity.layer.tolist() == [*NAMES, "logits"]
    lines = (workdir / "results/parity.csv").read_text().splitlines()
    assert lines[0] == "layer,max_abs_difference,largest" and len(lines) == 1 + 3 + 3
    worst = (parity.max_abs_difference / parity.largest).max()
    assert 0 < worst < 1e-4 and not (workdir / "results/parity.json").exists()
    section = (workdir / "report.html").read_text().split('id="parity"')[1].split("</section>")[0]
    assert f"{worst:.1e}".replace("-", "−") + " of the largest value" in section and "in float32 against" in section
    assert all(f'<th scope="row">{name}</th>' in section for name in parity.layer)


@pytest.fixture
def copied(tiny_run, tmp_path):
    """(config, run folder) of a copy of the finished run, claimed."""
    config, workdir = tiny_run
    run_folder = pipeline.open_run(config, str(shutil.copytree(workdir, tmp_path / "copy")))
    yield config, run_folder
    run_folder.close()


def test_parity_is_checked_once_and_tried_again_after_a_reason(copied, tiny_run, monkeypatch, caplog):
    config, run_folder = copied
    results = pathlib.Path(run_folder.path) / "results"

    def again():
        caplog.clear()
        found = parity.base_parity(pipeline.Run(config, run_folder, Stop()))
        return found, [record.getMessage() for record in caplog.records]

    with caplog.at_level("INFO", "mossa_jax"):
        before = stamps(results)
        with monkeypatch.context() as absent:
            absent.setitem(sys.modules, "torch", None)
            assert len(again()[0]) == 6 and stamps(results) == before
            os.unlink(results / "parity.csv")
            why = "torch is not installed"
            assert again() == (why, [f"base model: not compared with transformers: {why}"])
            assert json.loads((results / "parity.json").read_text()) == {"not_checked": why}
        table, (line, gone) = again()  # torch is there again
    assert gone == f"{results / 'parity.csv'} is gone: made anew"
    worst = (table.max_abs_difference / table.largest).max()
    assert line == f"base model: its layer states are those of transformers, to a relative {worst:.1e}"
    assert stamps(results).keys() == before.keys()
    assert (results / "parity.csv").read_bytes() == (tiny_run[1] / "results/parity.csv").read_bytes()


def test_the_page_is_made_anew_where_the_base_model_is_gone(copied, monkeypatch, tmp_path):
    config, run_folder = copied
    monkeypatch.setattr(report, "write_figures", lambda *arguments: [])  # they are there
    monkeypatch.setattr(report, "remove_former_figures", lambda *arguments: None)
    os.unlink(run_folder / "results/parity.parquet")
    moved = dataclasses.replace(config, base=str(tmp_path / "moved"))
    pipeline.report(pipeline.Run(moved, run_folder, Stop()))
    why = json.loads((run_folder / "results/parity.json").read_text())["not_checked"]
    assert why.startswith("model folder") and "does not exist" in why
    section = (run_folder / "report.html").read_text().split('id="parity"')[1].split("</section>")[0]
    assert "<p>Not checked: model folder &#39;" in section and "<table>" not in section


def test_the_same_run_again_does_nothing_twice(tiny_run, tmp_path):
    config, finished = tiny_run
    workdir = shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns(".lock", ".holder"))
    before = stamps(workdir)
    run_folder = pipeline.open_run(config, str(workdir))
    known = len(run_folder.metrics())
    pipeline.tune(pipeline.Run(config, run_folder, Stop()))
    # A part that got lost is made again, alone.
    part = part_of(workdir, "cka", "copy_first")
    os.unlink(part)
    wanted = pd.read_parquet(workdir / "results/cka.parquet")
    found = compare.compare(pipeline.Run(config, run_folder, Stop()))
    run_folder.close()
    after = stamps(workdir)
    changed = {str(path.relative_to(workdir)) for path in after if after[path] != before.get(path)}
    assert changed - {".holder", ".lock", "environment.json", "SHA256SUMS"} == {
        str(part.relative_to(workdir)), "results/cka.parquet", "results/cka.csv",
        "results/change.parquet", "results/change.csv", "metrics.jsonl",
    }  # fmt: skip
    new = run_folder.metrics()[known:]  # nothing but where the time of doing it again went
    assert {record["stage"] for record in new} == {"data", "compare"}
    assert all(record["useful"] == 0 and set(record["lost"]) <= {"restart"} for record in new)
    pd.testing.assert_frame_equal(found.reset_index(drop=True), wanted)


def test_the_engine_is_that_of_the_whole_run_wherever_it_goes_on(tiny_run, tmp_path, monkeypatch):
    config, finished = tiny_run
    workdir = shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns(".lock", ".holder"))
    run_folder = pipeline.open_run(config, str(workdir))
    os.unlink(part_of(workdir, "cka", "copy_first"))
    asked = []

    def choose(run, models, prompts, pairs):
        asked.append((models, prompts))
        return engine.KEPT

    monkeypatch.setattr(run_models, "choose_engine", choose)
    opened = pipeline.Run(config, run_folder, Stop())
    try:
        compare.compare(opened)
    finally:
        run_folder.close()
    # Of the task with the most models and the most prompts, not of the one that is left.
    lineups = [lineup.line_up(opened, task).lineup.models for task in opened.suite.tasks]
    assert asked == [(max(lineups), max(len(opened.encoded(task, "test")) for task in opened.suite.tasks))]


def test_other_specialists_are_drawn_for_each_task_among_tasks_of_the_mixture():
    names = [f"task{number}" for number in range(60)]
    tasks = [SimpleNamespace(name=name, cluster=f"cluster {number // 6}") for number, name in enumerate(names)]
    suite = SimpleNamespace(tasks=tasks, held_out=set(names[54:]))

    def run(held_out=suite.held_out):
        return SimpleNamespace(
            suite=SimpleNamespace(tasks=tasks, held_out=held_out),
            config=SimpleNamespace(seed=0, compare=SimpleNamespace(mismatched=2)),
        )

    drawn = {task.name: lineup.draw_mismatched(run(), task) for task in tasks}
    assert drawn == {task.name: lineup.draw_mismatched(run(), task) for task in reversed(tasks)}
    cluster = {task.name: task.cluster for task in tasks}
    for name, others in drawn.items():
        assert len(set(others)) == 2 and not set(others) & suite.held_out
        assert cluster[name] not in {cluster[other] for other in others}
    assert len({other for others in drawn.values() for other in others}) > 35  # of 54, 120 draws
    assert lineup.draw_mismatched(run(set(names)), tasks[0])  # where there are no others, any


def test_a_stage_without_the_one_before_is_refused(tiny_run, tmp_path):
    config, _ = tiny_run
    run_folder = pipeline.open_run(config, str(tmp_path / "new"))
    for stage, word in ((pipeline.compare, "adapter"), (pipeline.report, "cka.parquet")):
        with pytest.raises(Refusal, match=word) as caught:
            stage(pipeline.Run(config, run_folder, Stop()))
        assert caught.value.code == 3
    run_folder.close()


def test_the_command_is_recorded_as_one_types_it():
    wanted = "python -m launch.run --config=c.py '--config.tasks.only=(1, 2)'"
    assert command(["/some/where/launch/run.py", "--config=c.py", "--config.tasks.only=(1, 2)"]) == wanted


@pytest.mark.parametrize("how", [{"pool": "all"}, {"engine": "moments"}])
@pytest.mark.slow
def test_streamed_sums(tiny_run, tmp_path, how, table):
    """Over the tuned models of the finished run: every token a row, and the kept rows' values without keeping them."""
    config, finished = tiny_run
    config = dataclasses.replace(config, compare=dataclasses.replace(config.compare, **how))
    (tmp_path / "run").mkdir()
    shutil.copytree(finished / "adapters", tmp_path / "run" / "adapters")
    run_folder = pipeline.open_run(config, str(tmp_path / "run"))
    try:
        run = pipeline.Run(config, run_folder, Stop())
        found = compare.compare(run)
        tokens = {task.name: sum(map(len, run.test_prompts(task).ids)) for task in run.suite.tasks}
    finally:
        run_folder.close()
    assert len(found) == len(table)
    assert found.low.isna().all() and found.p.isna().all()
    if how.get("pool"):
        assert (found.n == found.task.map(tokens)).all()
        return
    keys = ["experimental", "control", "task", "layer", "estimator"]
    both = table.merge(found, on=keys)
    assert len(both) == len(table)
    defined = both.undefined_y == ""
    # 12 rows of 32 columns: the debiased value is what is left of large terms, and often not claimed.
    assert defined[both.estimator == "biased"].mean() > 0.9
    assert np.abs(both.cka_x - both.cka_y)[defined].max() < 2e-5


@pytest.mark.parametrize("is_exported", [True, False])
def test_checkpoints_go_once_all_models_of_their_round_are_exported(tiny_run, tmp_path, is_exported):
    """A stop between the last export and the record of its round leaves the round open for good."""
    config, finished = tiny_run
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    run_folder = pipeline.open_run(config, str(folder))
    try:
        run = pipeline.Run(config, run_folder, Stop())
        prepare(run)
        open_rounds = {"E": [{"label": "E", "models": {"tuned": run.model_digest("tuned")}, "done": False}]}
        checked.write_json(run_folder.path / "rounds.json", open_rounds)
        checkpoint = folder / "checkpoints/E/10"
        checkpoint.mkdir(parents=True)
        if not is_exported:
            shutil.rmtree(folder / "adapters/tuned")
        remove_checkpoints(run)
        assert checkpoint.exists() != is_exported
    finally:
        run_folder.close()


class StopsLater(Stop):
    """Is asked to stop when it has been looked at so many times."""

    def __init__(self, looks: int):
        super().__init__()
        self.looks = looks

    @property
    def asked(self) -> bool:
        self.looks -= 1
        return self.looks < 0

    @asked.setter
    def asked(self, value: bool) -> None:
        pass


@pytest.mark.slow
def test_the_same_run_in_memory_stopped_twice_and_gone_on_with(tiny_run, tmp_path, monkeypatch):
    """An object store that fsspec knows and Orbax does not; the disk of this machine is wiped after every stop."""
    config, finished = tiny_run
    monkeypatch.setattr(lease, "SETTLE", 0)
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    cache = tmp_path / "cache"
    monkeypatch.setenv("MOSSA_CACHE", str(cache))

    def run(stop: Stop) -> None:
        run_folder = pipeline.open_run(config, "memory://bucket/run")
        try:
            pipeline.run_all(pipeline.Run(config, run_folder, stop))
        finally:
            run_folder.close()
            shutil.rmtree(cache)

    def names() -> set[str]:
        return {name.removeprefix("/bucket/run/") for name in filesystem.find("/bucket/run")}

    # It looks at 3 tasks' data, after each of E's 10 and the controls' 6 steps, 3 tasks' scores, data, 3 comparisons.
    for looks, done in ((14, (1, 0, 0)), (13, (8, 3, 1))):  # in the controls' training, in the comparisons
        with pytest.raises(Refusal) as caught:
            run(StopsLater(looks))
        kinds = ("adapters/*/mossa.json", "results/parts/scores/*.parquet", "results/parts/cka/*.parquet")
        assert caught.value.code == 75
        assert tuple(len(fnmatch.filter(names(), kind)) for kind in kinds) == done
    run(Stop())
    here = {str(path.relative_to(finished)): path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert {name for name in here.keys() ^ names() if "checkpoints/" not in name} == {".holder", ".lock"}
    same = [name for name in here if name.endswith((".csv", ".parquet", ".safetensors")) and "curves" not in name]
    assert len(same) > 12
    for name in same:
        assert filesystem.cat(f"/bucket/run/{name}") == here[name], name
    assert len(filesystem.cat("/bucket/run/report.html")) > 10**6
