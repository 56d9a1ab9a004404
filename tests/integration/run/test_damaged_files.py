"""Damaged files of a run folder: made anew with one line each, or refused; the whole matrix is in tests/acceptance."""

import random
import shutil

import pytest

from mossa_jax.errors import Refusal
from mossa_jax.processes.stop import Stop
from mossa_jax.run import compare, pipeline, prepare, report, rounds, score, tune, warnings
from mossa_jax.tuning.checkpoints import checkpoint_folder
from tests.support.damage import OTHERS, copy_run, harm
from tests.support.run_folders import part_of, rewrite

TASKS = ["last_word", "copy_first", "count_words"]


@pytest.fixture
def run(tiny_run, tmp_path):
    """A run on a copy of a finished one, claimed."""
    config, finished = tiny_run
    folder = pipeline.open_run(config, str(copy_run(finished, tmp_path / "run")))
    yield pipeline.Run(config, folder, Stop())
    folder.close()


def flip(path):
    harm(path, "flipped", random.Random(0), path)


def said(caplog, words):
    return [record.message for record in caplog.records if words in record.message]


@pytest.mark.parametrize("kinds", [("flipped", "cut", "swapped"), ("zeroed", "emptied", "deleted")])
def test_damaged_parts_are_made_anew_with_one_line_each(run, tiny_run, kinds, caplog):
    folder, wanted = run.folder.path, tiny_run[1]
    assert set(kinds) < {"flipped", *OTHERS}
    parts = [part_of(wanted, "cka", task).relative_to(wanted) for task in TASKS]
    harmed = set()
    for kind, part in zip(kinds, parts, strict=True):
        other = folder / (parts[1] if kind == "swapped" else part)
        harm(folder / part, kind, random.Random(kind), other)
        harmed |= {part, other.relative_to(folder)}
    compare.compare(run)
    for part in parts:
        assert (folder / part).read_bytes() == (wanted / part).read_bytes()
        assert len(said(caplog, str(part))) == (part in harmed)
    assert len(harmed) == 3 and (folder / "results/cka.csv").read_bytes() == (wanted / "results/cka.csv").read_bytes()


def test_damaged_answers_are_made_anew_and_absent_ones_are_not_missed(run, tiny_run, caplog):
    folder, wanted = run.folder.path, tiny_run[1]
    prepare.prepare(run)
    damaged = run.part(score.ANSWERS, run.suite.tasks[0]).path
    harm(damaged, "cut", random.Random(0), damaged)
    scored = run.part(score.SCORES, run.suite.tasks[1]).path
    before = scored.stat().mtime
    score.score(run)
    assert len(said(caplog, damaged.name)) == 1 and scored.stat().mtime == before
    assert damaged.read_bytes() == part_of(wanted, "answers", run.suite.tasks[0].name).read_bytes()
    # A version that kept no answers left scores alone.
    shutil.rmtree(damaged.parent)
    (folder / "results/answers.parquet").unlink()
    assert report.task_answers(run) is None
    run._whole.clear()
    score.score(run)
    report.report(run)
    assert not damaged.parent.exists() and not (folder / "results/answers.parquet").exists()


def test_a_part_of_another_task_is_not_taken_for_ones_own_even_with_its_digest(run, caplog):
    prepare.prepare(run)
    own, other = (run.part(score.SCORES, task) for task in run.suite.tasks[:2])
    rows = other.read()
    own.path.write_bytes(other.path.read_bytes())
    (own.path.parent / "SHA256SUMS").unlink()
    own.path.parent.joinpath("SHA256SUMS").write_text("")
    other.write(rows)
    sums = other.path.parent / "SHA256SUMS"
    sums.write_text(sums.read_text() + sums.read_text().replace(other.path.name, own.path.name))
    assert not run.has_part(score.SCORES, run.suite.tasks[0])
    assert said(caplog, f"{own.path} is of another task: made anew")


def test_a_report_refuses_damaged_tables_and_parts(run):
    folder = run.folder.path
    for path in (
        folder / "results/cka.parquet", folder / "results/change.parquet", part_of(folder, "scores", "last_word")
    ):  # fmt: skip
        data = path.read_bytes()
        flip(path)
        with pytest.raises(Refusal, match=r"is not as it was written.*; launch\.run makes it anew") as caught:
            report.report(run)
        assert caught.value.code == 3
        path.write_bytes(data)
    (folder / "results/cka.parquet").unlink()
    with pytest.raises(Refusal, match=r"cka\.parquet cannot be read"):
        report.report(run)


def test_a_lost_record_of_the_data_is_made_anew_where_its_models_fit(run, tiny_run, monkeypatch, caplog):
    path, wanted = run.folder / "data.json", (tiny_run[1] / "data.json").read_bytes()
    for kind in ("flipped", "deleted"):
        harm(path, kind, random.Random(kind), path)
        prepare.prepare(pipeline.Run(run.config, run.folder, Stop()))
        assert path.read_bytes() == wanted and len(said(caplog, "and all 8 do")) == 1
        caplog.clear()
    path.unlink()
    monkeypatch.setattr(type(run), "is_tuned", lambda self, name: name != "last_word")  # it rests on other rows
    with pytest.raises(Refusal, match=r"'last_word'.*; restore data\.json from a copy, or name a new") as caught:
        prepare.prepare(run)
    assert caught.value.code == 3 and not path.exists()


def test_a_lost_record_of_rounds_leads_to_the_same_checkpoints(run, caplog):
    prepare.prepare(run)
    path, models = run.folder / "rounds.json", {name: run.model_digest(name) for name in run.controls}
    flip(path)
    assert rounds.interrupted(run) == [] and path.read_text() == "{}\n"
    assert len(said(caplog, "rounds.json is not as it was written: begun anew")) == 1
    assert rounds.next_round(run, "controls", models, ["last_word"]) == rounds.Round("controls", ("last_word",))
    # Checkpoints of the first round are of all models; of a further one, nobody knows of which.
    for label, of_round, names in (("controls", "controls", models), ("controls 2", "controls 3", ["last_word"])):
        rewrite(path, lambda record: record.pop("controls"))
        checkpoint_folder(run.folder, label).mkdir(parents=True)
        assert rounds.next_round(run, "controls", models, ["last_word"]) == rounds.Round(of_round, tuple(names))


def test_lost_records_of_training_are_warned_of(run, caplog):
    prepare.prepare(run)
    assert warnings.lost_records(run) == []
    path, curves = run.folder.path / "metrics.jsonl", len(report.training_curves(run.folder))
    lines = path.read_bytes().splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if b'"model": "copy_first"' in line)
    path.write_bytes(b"".join([*lines[:at], lines[at].replace(b"copy", b"c\xffpy"), *lines[at + 1 :]]))
    lost = [f"line {at + 1} is damaged in metrics.jsonl", "1 points of the curves of 'copy_first'"]
    assert warnings.lost_records(run) == lost and len(report.training_curves(run.folder)) == curves - 1
    assert len(said(caplog, f"line {at + 1} is damaged and left out")) == 1
    (warning,) = [each for each in warnings.early_warnings(run) if each.kind == "lost_records"]
    assert all(words in warning.sentence for words in lost)
    path.unlink()
    assert warnings.lost_records(run) == [f"{curves} points of the curves of 8 models, first 'tuned'"]


def test_an_undamaged_run_says_nothing(run, caplog):
    tune.tune(run)
    compare.compare(run)
    assert not [record for record in caplog.records if "anew" in record.message or "damaged" in record.message]
