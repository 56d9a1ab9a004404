"""Errors of differences between two runs over the rows that both share, against float64 with rows left out in turn."""

import shutil

import numpy as np
import pytest

import mossa_jax as mossa
from mossa_jax.existing.between_runs import compare_folders
from mossa_jax.existing.paired_rows import paired_rows
from tests.support.run_folders import edit_about, rewrite, rewrite_table

TASK = "count_words"


@pytest.fixture(scope="module")
def runs(tiny_run, tmp_path_factory):
    """A run, and one whose specialist of a task is that of another task, and whose E is a specialist."""
    here = tmp_path_factory.mktemp("paired")
    folders = [shutil.copytree(tiny_run[1], here / n, ignore=shutil.ignore_patterns(".lock", ".holder")) for n in "ab"]
    for name, other in ((TASK, "last_word"), ("tuned", "copy_first")):
        shutil.rmtree(folders[1] / "adapters" / name)
        copied = shutil.copytree(folders[0] / "adapters" / other, folders[1] / "adapters" / name)
        edit_about(copied, lambda about, name=name: about.update(model=name))
    return [mossa.Run(folder) for folder in folders]


def biased_cka(x, y):
    """CKA of two arrays of states, [n, D], in float64."""
    x, y = (np.asarray(each, np.float64) - np.mean(each, axis=0, dtype=np.float64) for each in (x, y))
    return np.sum((x.T @ y) ** 2) / np.sqrt(np.sum((x.T @ x) ** 2) * np.sum((y.T @ y) ** 2))


def test_errors_are_those_of_the_difference_itself(runs):
    table = paired_rows(runs[0].opened_models, runs[1].opened_models, [TASK])
    states = [[run.states(name, task=TASK)["2"] for name in (None, "tuned", TASK)] for run in runs]
    items = runs[0].opened_models.test_prompts(TASK).items
    units = np.unique(items)
    values = []
    for unit in units:
        keep = items != unit
        parts = [[biased_cka(model[keep], own[2][keep]) for model in own[:2]] for own in states]
        base, tuned = np.subtract(parts[1], parts[0])
        values.append({"pretrained": base, "tuned": tuned, "change": tuned - base})
    m = len(units)
    for quantity in ("pretrained", "tuned", "change"):
        left = np.array([value[quantity] for value in values])
        wanted = np.sqrt((m - 1) / m * np.sum((left - left.mean()) ** 2))
        row = table[(table.quantity == quantity) & (table.layer == "2") & (table.estimator == "biased")]
        assert row.error_paired.item() == pytest.approx(wanted, rel=1e-3) and row.units_paired.item() == m
        assert wanted > 1e-3


def test_they_replace_the_errors_of_both_runs_and_the_note_is_gone(runs):
    folder = runs[1].folder
    change = runs[1].raw_table("change")
    rewrite_table(folder / "results/change.parquet", change.assign(change=change.change + 0.1))
    plain, paired = (compare_folders([str(run.folder) for run in runs], paired=flag) for flag in (False, True))
    assert any("--paired" in note for note in plain.comparison.notes)
    assert not any("--paired" in note for note in paired.comparison.notes)
    cells = [each.comparison.cells for each in (plain, paired)]
    tested = cells[1].low.notna()
    assert tested.any() and cells[1][tested].is_paired.all() and not cells[0].is_paired.any()
    assert not np.allclose(cells[0].low[tested], cells[1].low[tested])
    np.testing.assert_array_equal(cells[0].difference, cells[1].difference)


def test_runs_with_other_prompts_are_not_run_again(runs):
    def change(record):
        for task in record["tasks"].values():
            task["test"] |= {"fingerprint": "other", "digest": "other"}

    rewrite(runs[1].folder / "data.json", change)
    inputs = compare_folders([str(run.folder) for run in runs], paired=True)
    assert not inputs.comparison.cells.is_paired.any() and not inputs.comparison.cells.same_prompts.any()
    assert any("other test prompts in all shared tasks" in note for note in inputs.comparison.notes)
