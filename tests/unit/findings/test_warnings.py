"""Warnings: a sound run has none, and each planted fault has its own, which qualifies the claims it touches alone."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mossa_jax.findings import find
from mossa_jax.findings.warning_kinds import DATA, EVERY, GROUPS, KINDS
from mossa_jax.findings.warnings import RunWarning, data_warnings, in_order, late_lines, pooling_warnings
from mossa_jax.tasks.suite import LeftOut
from tests.support.planted_report import report_scores, report_table

TASKS = [f"t{number:02}" for number in range(22)]
HELD_OUT = ("t18", "t19", "t20", "t21")
CHANGES = {"transition", "shift", "specificity", "shared"}
MIXTURE = {*CHANGES, "clusters", "ability"}
"""The claims of the planted run that rest on tasks of the mixture: it has neither a profile nor factors, and too few
held-out tasks for a test, which is a verdict of its own."""


@pytest.fixture(scope="module")
def table():
    return report_table()


@pytest.fixture(scope="module")
def scores(table):
    return report_scores(table)


def data_of(**faults):
    """The table of tasks of a sound suite; a fault is column=(task -> figure)."""
    sound = {
        "test": 100, "distinct_prompts": 100, "item_max": 1, "item_source": "rows", "overlap": 0.0,
        "overlap_others": 0.0, "duplicates": 0, "train": 400, "top_answer": 0.1, "truncated": 0.0,
        "truncated_test": 0.0, "control_steps": 60, "mixture": 400, "bad_rows": 0,
    }  # fmt: skip
    rows = [sound | {"task": task, "cluster": f"c{n // 2:02}"} for n, task in enumerate(TASKS)]
    frame = pd.DataFrame(rows).assign(held_out=[task in HELD_OUT for task in TASKS]).set_index("task", drop=False)
    for column, figures in faults.items():
        for task, figure in figures.items():
            frame.loc[task, column] = figure
    return frame.reset_index(drop=True)


def said_of(tasks=None, missing=(), steps=500, left_out=()):
    suite = SimpleNamespace(missing=missing, left_out=left_out)
    return data_warnings(data_of() if tasks is None else tasks, suite, steps)


def qualified(analysis):
    return {finding["id"] for finding in analysis["findings"] if finding["qualifications"]}


def kinds(analysis):
    return [warning["kind"] for warning in analysis["warnings"]]


def test_a_sound_run_has_no_warning_and_no_qualification(table, scores):
    assert said_of() == [] and pooling_warnings("last") == []
    counters = {task: {"skipped": 0, "spikes": 0, "steps": 60} for task in TASKS}
    analysis = find(table, scores, draws=100, warnings=said_of(), counters=counters)
    assert analysis["warnings"] == [] and qualified(analysis) == set() and late_lines(analysis["warnings"]) == []


def test_the_catalogue_is_whole():
    for kind in KINDS.values():
        assert kind.group in GROUPS and set(kind.claims) <= set(EVERY), kind.name
        assert bool(kind.claims) == bool(kind.qualification), kind.name
        assert all(text and not text.endswith((".", ";")) for text in (kind.problem, kind.effect, kind.knob)), kind.name
    assert {kind.column for kind in DATA} <= set(data_of().columns)


THREE = ("t00", "t04", "t09")


@pytest.mark.parametrize(
    ("faults", "kind", "claims", "words"),
    [
        ({"truncated_test": 1.0}, "cut_prompts", MIXTURE, "have more than half of the test prompts cut"),
        ({"truncated_test": 0.4}, "cut_prompts", set(), ""),
        ({"truncated": 0.9}, "cut_rows", MIXTURE, "have more than half of the training rows cut"),
        ({"distinct_prompts": 1}, "few_distinct_prompts", MIXTURE, "have fewer than 4 distinct test prompts"),
        ({"distinct_prompts": 40}, "equal_prompts", MIXTURE, "test prompts of which less than half are distinct"),
        ({"control_steps": 11}, "few_steps", MIXTURE, "have a specialist of fewer than 20 steps"),
        ({"mixture": 60}, "few_examples", CHANGES, "have fewer than 100 examples in the mixture"),
        ({"overlap": 0.3}, "memorised_prompts", MIXTURE, "among the training prompts"),
        ({"overlap": 0.02}, "memorised_prompts", set(), ""),
        ({"top_answer": 0.9}, "one_answer", {"ability"}, "have one answer to more than 80% of the test prompts"),
        ({"overlap_others": 0.5}, "known_prompts", set(), ""),
        ({"bad_rows": 4}, "bad_rows", set(), ""),
    ],
)  # fmt: skip
def test_a_fault_of_some_tasks_qualifies_the_claims_that_it_touches(table, scores, faults, kind, claims, words):
    ((column, figure),) = faults.items()
    warnings = said_of(data_of(**{column: dict.fromkeys(THREE, figure)}))
    assert [warning.kind for warning in warnings] == [kind] and warnings[0].tasks == THREE
    assert warnings[0].line.startswith("warning: ") and all(task in warnings[0].line for task in THREE)
    analysis = find(table, scores, draws=100, warnings=warnings)
    assert kinds(analysis) == [kind] and qualified(analysis) == claims
    for finding in analysis["findings"]:
        if finding["id"] in claims:
            (sentence,) = finding["qualifications"]
            total = 22 if finding["id"] == "ability" else 18
            assert sentence.startswith(f"3 of its {total} tasks ") and sentence.endswith(words)
            assert analysis["warnings"][0]["touches"][finding["id"]] == sentence


def test_verdicts_stay_when_they_are_qualified(table, scores):
    def verdicts(warnings):
        return [finding["verdict"] for finding in find(table, scores, draws=100, warnings=warnings)["findings"]]

    assert verdicts(()) == verdicts(said_of(data_of(truncated_test=dict.fromkeys(TASKS, 1.0)), steps=11))


def test_a_fault_of_few_tasks_qualifies_nothing(table, scores):
    analysis = find(table, scores, draws=100, warnings=said_of(data_of(truncated_test={"t04": 1.0})))
    assert kinds(analysis) == ["cut_prompts"] and qualified(analysis) == set()


def test_a_fault_of_tasks_that_are_left_out_qualifies_nothing(table):
    scores = report_scores(table, THREE)
    analysis = find(table, scores, draws=100, warnings=said_of(data_of(truncated_test=dict.fromkeys(THREE, 1.0))))
    assert kinds(analysis) == ["cut_prompts", "idle_specialists"] and qualified(analysis) == set()


def test_a_fault_of_held_out_tasks_touches_what_is_said_of_those_alone(scores):
    table = report_table(held_out=8)
    clusters = sorted(table[table.held_out].cluster.unique())
    tasks = sorted(table[table.held_out].task.unique())
    assert len(clusters) == 8 and len(tasks) == 16
    data = data_of(overlap_others=dict.fromkeys(tasks[:5], 0.4))
    analysis = find(table, report_scores(table), draws=100, warnings=said_of(data))
    assert qualified(analysis) == {"unseen"}
    (sentence,) = next(f for f in analysis["findings"] if f["id"] == "unseen")["qualifications"]
    assert sentence == "E was trained on more than 10% of the test prompts of 5 of its 16 tasks under another name"


def test_an_e_of_few_steps_qualifies_what_rests_on_e(table, scores):
    warnings = said_of(steps=11)
    assert [warning.line.split(";")[0] for warning in warnings] == ["warning: fewer than 20 steps for E: 11"]
    analysis = find(table, scores, draws=100, warnings=warnings)
    assert qualified(analysis) == {*CHANGES, "unseen"}
    assert {q for f in analysis["findings"] for q in f["qualifications"]} == {"E took fewer than 20 steps"}


@pytest.mark.parametrize("pool", ["all", "mean"])
def test_a_pooling_qualifies_levels_and_the_claim_of_no_change(table, scores, pool):
    (warning,) = pooling_warnings(pool)
    assert f"compare.pool={pool}" in warning.line and "compare.pool=last" in warning.about.knob
    assert qualified(find(table, scores, draws=100, warnings=[warning])) == {"shared", "clusters", "ability"}


def test_specialists_that_learned_nothing_are_named_and_half_of_them_qualifies_every_claim(table):
    few, many = (find(table, report_scores(table, tuple(TASKS[:n])), draws=100) for n in (4, 12))
    assert kinds(few) == kinds(many) == ["idle_specialists"] and qualified(few) == set()
    assert few["warnings"][0]["tasks"] == TASKS[:4]
    assert "t00 (+0.01 nats, -0.09 to +0.11)" in few["warnings"][0]["sentence"]
    # Six tasks show no transition, so that nothing is said of the layers before it.
    assert qualified(many) == MIXTURE - {"shared"}
    (said,) = next(finding["qualifications"] for finding in many["findings"] if finding["id"] == "shift")
    assert said == "12 of its 18 tasks are left out, for want of a specialist that is shown to use its prompts"
    assert late_lines(few["warnings"])[0].startswith("warning: specialists that are not shown to use their prompts: ")


def test_a_run_without_a_competent_specialist_gives_that_as_the_reason(table):
    analysis = find(table, report_scores(table, tuple(TASKS)), draws=50)
    absent = [finding for finding in analysis["findings"] if finding["verdict"] == "not measured"]
    assert absent and all("No specialist is shown to use its prompts" in finding["sentence"] for finding in absent)
    assert not any(finding["qualifications"] for finding in absent)


def test_specialists_without_a_score_are_named_and_qualify_what_rests_on_them(table, scores):
    analysis = find(table, scores[~scores.task.isin(THREE)], draws=100)
    assert kinds(analysis) == ["unscored"] and analysis["warnings"][0]["tasks"] == list(THREE)
    assert qualified(analysis) == MIXTURE - {"ability"}  # which rests on scores, and so on the other tasks
    none = find(table, scores[:0], draws=100)
    assert kinds(none) == ["unscored"] and qualified(none) == {*CHANGES, "clusters", "unseen"}


def lowered(scores, model, tasks, metric="information", value=0.02):
    rows = (scores.model == model) & (scores.metric == metric) & scores.task.isin(tasks)
    scores = scores.copy()
    scores.loc[rows, ["value", "low", "high"]] = [value, value - 0.1, value + 0.1]
    return scores


@pytest.mark.parametrize(
    ("model", "kind", "claims", "words"),
    [
        ("base", "idle_base", {"clusters", "ability"}, "the base is not shown to use the prompts of all its "),
        ("tuned", "idle_e", CHANGES, "E is not shown to use the prompts of all its 18 tasks"),
    ],
)
def test_a_model_at_the_floor_qualifies_what_is_said_of_it(table, scores, model, kind, claims, words):
    analysis = find(table, lowered(scores, model, TASKS), draws=100)
    assert kinds(analysis) == [kind] and qualified(analysis) == claims
    assert all(q.startswith(words) for f in analysis["findings"] for q in f["qualifications"])
    assert kinds(find(table, lowered(scores, model, TASKS[:8]), draws=100)) == []  # on a third of the tasks


def test_tasks_that_nobody_answers_are_warned_of_and_touch_scores_of_exact_match_alone(table, scores):
    for model in ("base", "tuned", "control"):
        scores = lowered(scores, model, TASKS, "exact_match", 0.0)
    scores = scores[scores.model != "majority"]
    analysis = find(table, scores, draws=100)
    assert kinds(analysis) == ["no_exact_match"] and qualified(analysis) == set()
    assert "(0)" not in analysis["warnings"][0]["sentence"]
    by_answers = find(table, scores[scores.metric == "exact_match"], draws=100)
    assert kinds(by_answers) == ["unscored", "no_exact_match"]
    assert by_answers["warnings"][1]["touches"] == {
        "ability": "no model gives a single right answer to all its 22 tasks"
    }


def convergence_of(late):
    models = [("tuned", "tuned"), *((task, "control") for task in TASKS)]
    rows = [(task, model, task not in late, "still moves" if task in late else "") for task, model in models]
    return {"convergence": pd.DataFrame(rows, columns=["task", "model", "converged", "reason"])}


def test_models_that_have_not_converged_qualify_what_rests_on_them(table, scores):
    analysis = find(table, scores, draws=100, analyses=convergence_of(THREE))
    assert kinds(analysis) == ["moving_specialists"] and qualified(analysis) == MIXTURE
    assert "t04 (still moves)" in analysis["warnings"][0]["sentence"]
    of_e = find(table, scores, draws=100, analyses=convergence_of(("tuned",)))
    assert kinds(of_e) == ["moving_e"] and qualified(of_e) == {*CHANGES, "unseen"}
    assert kinds(find(table, scores, draws=100, analyses=convergence_of(()))) == []


def test_skipped_updates_and_jumps_are_named_and_many_skips_qualify(table, scores):
    def said(skipped, model="t00", steps=60):
        counters = {task: {"skipped": 0, "spikes": 0, "steps": steps} for task in ["tuned", *TASKS]}
        for task in (model, "t04", "t09") if model != "tuned" else (model,):
            counters[task]["skipped"] = skipped
        return find(table, scores, draws=100, counters=counters)

    few, many, of_e = said(2), said(6), said(6, "tuned")
    assert kinds(few) == kinds(many) == ["skipping_specialists"] and qualified(few) == set()
    assert qualified(many) == MIXTURE and "t00 (6)" in many["warnings"][0]["sentence"]
    assert kinds(of_e) == ["skipping_e"] and qualified(of_e) == {*CHANGES, "unseen"}
    jumps = find(table, scores, draws=100, counters={"t00": {"skipped": 0, "spikes": 3, "steps": 60}})
    assert kinds(jumps) == ["spikes"] and qualified(jumps) == set() and "t00 (3)" in jumps["warnings"][0]["sentence"]


def test_each_kind_is_said_once_in_the_order_of_the_catalogue_with_notes_last():
    warnings = said_of(
        data_of(duplicates={"t00": 1}, truncated={"t01": 0.5}, test={"t02": 20}, distinct_prompts={"t02": 20}),
        ("gone",),
    )
    assert [w.kind for w in warnings] == ["few_prompts", "cut_rows", "missing_tasks", "few_repeated_rows"]
    assert warnings[-1].line.startswith("note: ")
    assert in_order([*reversed(warnings), *warnings]) == warnings
    assert [RunWarning.of_record(warning.record()) for warning in warnings] == warnings


def test_lone_clusters_qualify_the_ranking_of_clusters(scores):
    sizes = (2,) * 9 + (1,) * 4
    table = report_table(sizes, held_out=0)
    data = data_of().assign(held_out=False)
    data["cluster"] = np.repeat([f"c{n:02}" for n in range(len(sizes))], sizes)
    (warning,) = said_of(data)
    assert warning.kind == "lone_clusters" and "c09 (t18)" in warning.line
    analysis = find(table, report_scores(table), draws=100, warnings=[warning])
    assert qualified(analysis) == {"clusters"}


def test_what_a_source_holds_and_a_run_does_not_read_comes_first_and_moves_no_verdict():
    names = [f"train/{number}.csv" for number in range(9)]
    left_out = [LeftOut("unread_columns", ("lang",)), LeftOut("other_files", tuple(names))]
    first, *_, last = said_of(data_of(truncated={TASKS[0]: 0.5}), left_out=left_out)
    assert first.kind == "other_files" and first.line.startswith("warning: files and folders beside the tasks")
    assert "train/4.csv and 4 more;" in first.line and not first.about.claims
    assert last.kind == "unread_columns" and last.line.startswith("note: fields of rows that are not read: lang;")
    assert RunWarning.of_record(json.loads(json.dumps(first.record()))) == first
