"""The tables of the page: what stands in their cells."""

import pandas as pd
import pytest

from mossa_jax.findings.claims import CLAIMS
from mossa_jax.findings.trust import reason_in_words
from mossa_jax.report.page import tables
from tests.support.planted_report import report_change, report_inputs, report_scores, report_table

INCOMPETENT = ("t05", "t06", "t07", "t20")


@pytest.fixture(scope="module")
def inputs():
    table = report_table()
    return report_inputs(table, report_scores(table, INCOMPETENT), report_change(table))


def test_every_claim_has_its_figures(inputs):
    rows = {row["title"]: row for row in tables.claim_rows(inputs.analysis["findings"])}
    assert list(rows) == [claim.title for claim in CLAIMS]
    shift, figures = rows["What tuning adds in the upper half"], inputs.analysis["shift"]
    assert shift["estimate"] == f"{figures['mean']:+.3f} CKA [{figures['low']:+.3f}, {figures['high']:+.3f}]"
    assert shift["units"] == "8 clusters, 15 tasks" and shift["least_p"] == "0.0078" and shift["p"] == "0.008"
    assert shift["p_adjusted"] == "0.023" and shift["family"] == "primary" and shift["verdict"] == "supported"
    assert shift["least_effect"] == f"{figures['least_effect']:.3f}"
    unseen = rows["Tasks held out of the mixture"]
    assert unseen["p"] == "–" and unseen["verdict"] == "too few"
    assert rows["Which layers carry the gain"]["estimate"] == "–"


def test_definitions_stand_beside_the_papers(inputs):
    parting, plateau, crossing, paper = tables.definition_rows(inputs.analysis["sections"], 8)
    assert parting["answer"] == "shared 1 to 3, transition 4 to 5, refinement 6 to 8"
    assert parting["depth"] == "0 to 38 %, 38 to 62 %, 62 to 100 %" and "begins in 4" in parting["interval"]
    assert "0.05 of the ceiling" in plateau["meaning"] and plateau["answer"] == "nowhere"
    assert crossing["answer"].endswith("to 8")
    assert paper["answer"] == "shared 1 to 9, transition 10 to 15, refinement 16 to 32"
    assert paper["depth"] == "0 to 28 %, 28 to 47 %, 47 to 100 %"


def test_another_shape_is_named_instead_of_sections():
    sections = report_inputs(report_table(breaks=None)).analysis["sections"]
    row = tables.definition_rows(sections, 8)[0]
    assert row["answer"] == f"no sections: {sections['reason']}" and row["depth"] == "–"


def test_a_cluster_names_what_is_left_out_and_comes_last_without_competent_tasks(inputs):
    rows = tables.cluster_rows(inputs)
    assert {row["cluster"] for row in rows} == {f"c{number:02}" for number in range(9)}
    assert rows[-1]["cluster"] == "c03" and rows[-1]["rank"] is None and rows[-1]["note"] == "left out: t06, t07"
    every = report_scores(inputs.table, tuple(inputs.table.task.unique()))
    nothing = tables.cluster_rows(report_inputs(inputs.table, every))
    assert [row["cluster"] for row in nothing] == [f"c{number:02}" for number in range(9)]
    (partly,) = [row for row in rows if row["cluster"] == "c02"]
    assert "left out: t05" in partly["note"] and partly["n_tasks"] == 1
    assert all(0 < row["information_share"] < 1 for row in rows[:-1])


def test_scores_say_which_specialists_are_competent(inputs):
    rows = {row["task"]: row for row in tables.score_rows(inputs)}
    assert len(rows) == 22 and rows["t20"]["held_out"] and not rows["t00"]["held_out"]
    assert {task for task, row in rows.items() if row["competent"] is False} == set(INCOMPETENT)
    assert "is not shown to use its prompts" in rows["t05"]["reason"] and rows["t00"]["reason"] == ""
    assert rows["t00"]["exact_match"]["majority"] == 0.42 and rows["t00"]["information"]["majority"] is None
    assert rows["t05"]["low"] < 0 < rows["t05"]["high"]


def test_means_are_over_competent_tasks_of_the_mixture(inputs):
    metrics, rows = tables.mean_rows(inputs)
    assert metrics == ["information", "exact_match", "rouge_l", "answer_nll"]
    names = [row["name"] for row in rows]
    assert names[:3] == ["pre-trained", "multi-task (E)", "specialist (C_t)"]
    assert names[3:] == ["specialist (C_t), seed 1", "specialist (C_t), twin", "most frequent answer"]
    by_name = {row["name"]: row["means"] for row in rows}
    assert by_name["specialist (C_t)"]["exact_match"] == {"mean": pytest.approx(0.7), "n_tasks": 15}
    assert by_name["pre-trained"]["answer_nll"]["mean"] == pytest.approx(1.8)
    assert by_name["most frequent answer"]["rouge_l"] is None


def test_without_scores_the_tables_are_empty():
    inputs = report_inputs(report_table((1,) * 3, 4, None, held_out=0))
    assert tables.score_rows(inputs) == [] and tables.mean_rows(inputs) == ([], [])


def test_the_page_says_what_was_repaired(inputs):
    table = inputs.table
    assert tables.repairing(table) == tables.repairing(table.assign(repairing="none")) == "rows"
    mixed = ["items within templates" if task == "t00" else "items" for task in table.task]
    assert tables.repairing(table.assign(repairing=mixed)) == "items or items within templates"


def test_notes_say_what_is_left_out_and_nothing_twelve_times(inputs):
    notes = [row["note"] for row in tables.cluster_rows(inputs)]
    assert {note for note in notes if note} == {"left out: t05", "left out: t06, t07"}


def test_the_head_counts_tasks_and_prompts():
    tasks = pd.DataFrame({"held_out": [True, False, False]})
    assert tables.task_counts(tasks, {"smallest": 256.0, "largest": 256.0}) == {
        "all": 3, "held_out": 1, "prompts": "256 prompts",
    }  # fmt: skip
    assert tables.task_counts(tasks, {"smallest": 20, "largest": 2048})["prompts"] == "20 to 2,048 prompts"
    assert tables.task_counts(tasks, {"smallest": 1, "largest": 1})["prompts"] == "1 prompt"


def test_undefined_embeddings_are_expected_and_other_cells_are_not(inputs):
    table = inputs.table
    plain = tables.undefined_cells(inputs.analysis["trust"])
    assert plain["alarming"] == 0 and plain["expected"] == int((table["undefined"] != "").sum()) > 0
    odd = table["layer"].eq("3") & table["task"].eq("t01")
    changed = table.assign(undefined=table["undefined"].mask(odd, "no variance in a and b"), cka=table["cka"].mask(odd))
    cells = tables.undefined_cells(report_inputs(changed).analysis["trust"])
    assert cells["alarming"] == int(odd.sum()) and cells["expected"] == plain["expected"]
    assert "no variance in the states of either model" in [row["reason"] for row in cells["reasons"]]
    assert reason_in_words("no variance in b") == "no variance in the states of the specialist"
    assert reason_in_words("two items") == "two items"
