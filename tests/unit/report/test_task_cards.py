"""The task cards of the page: their numbers are those of the tables, and texts of others stay texts."""

import base64
import gzip
import html.parser
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mossa_jax.findings.warnings import RunWarning
from mossa_jax.foreign import is_hidden, visible
from mossa_jax.report.numbers import between, fixed, percent
from mossa_jax.report.page import task_cards
from mossa_jax.report.page.html_parts import templates
from tests.support.hostile_names import hostile_names
from tests.support.paper_like import Shape, paper_like, plain_clusters, planted_answers
from tests.support.planted_profile import planted_profile
from tests.support.planted_report import report_change, report_inputs, report_scores, report_table

INCOMPETENT = ("t05",)
WARNING = RunWarning("cut_prompts", "test prompts cut: t01 (60 %)", tasks=("t01",), figures=(0.6,))


def places(table):
    return table.drop_duplicates("task")[["task", "cluster", "held_out"]]


def inputs_of(table, **fields):
    answers = planted_answers(places(table))
    change = report_change(table).assign(share_of_ceiling=0.25)
    return report_inputs(
        table, report_scores(table, INCOMPETENT), change, (WARNING,), **({"answers": answers} | fields)
    )


@pytest.fixture(scope="module")
def inputs():
    return inputs_of(report_table((2,) * 5))


def section(inputs):
    """Returns the section of the page, with all bodies, as the elements and texts of a reader."""
    cards = task_cards.task_cards(inputs)
    page = templates().get_template("task_cards.html.j2").render(cards=cards, analysis=inputs.analysis)
    return cards, page + "".join(unpacked(cards))


def unpacked(cards):
    """Returns the bodies that the page's script would unpack."""
    if not cards["packed"]:
        return []
    data = json.loads(gzip.decompress(base64.b64decode(cards["packed"])))
    assert all(len(of_cards) == len(data["ids"]) for of_cards in data["pieces"])
    return ["".join(pieces) for pieces in zip(*data["pieces"], strict=True)]


class Reader(html.parser.HTMLParser):
    """Collects elements, attributes and texts."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.elements, self.attributes, self.texts = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.texts.append(data)


def heads(cards):
    return {head["task"]: head for _, group in cards["groups"] for head in group}


def test_cards_stand_by_cluster_with_changes_that_are_the_means_of_the_table(inputs):
    cards, _ = section(inputs)
    assert [cluster for cluster, _ in cards["groups"]] == sorted(set(inputs.table["cluster"]))
    assert cards["n"] == len(heads(cards)) == 10
    head = heads(cards)["t04"]
    change = inputs.change[(inputs.change["task"] == "t04") & (inputs.change["estimator"] == "debiased")]
    change = change.set_index("layer")
    for row, layers in zip(head["halves"], (["1", "2", "3", "4"], ["5", "6", "7", "8"]), strict=True):
        own = change.loc[layers]
        assert row["change"] == fixed(own["change"].mean(), signed=True)
        assert row["interval"] == between(own["low"].mean(), own["high"].mean(), signed=True)
        assert row["name"].endswith(f"half (layers {layers[0]} to {layers[-1]})") and row["share"] == "+25 %"
    assert head["change"] == head["halves"][-1]["change"]
    for task in inputs.analysis["unseen"]["tasks"]:
        lower, upper = (row["change"] for row in heads(cards)[task["task"]]["halves"])
        assert (lower, upper) == (fixed(task["lower"], signed=True), fixed(task["upper"], signed=True))


def test_a_card_says_why_its_task_is_held_out_or_left_out_and_what_is_warned_of(inputs):
    cards, page = section(inputs)
    by_task = heads(cards)
    assert by_task["t05"]["left_out"] and by_task["t05"]["left_out"] in page.replace("&gt;", ">").replace("&#39;", "'")
    assert [task for task, head in by_task.items() if head["held_out"]] == ["t06", "t07", "t08", "t09"]
    assert page.count("E was not tuned on this task") == 4
    body = cards["bodies"][by_task["t01"]["id"]]
    assert "warning-cut_prompts" in body and "warning-cut_prompts" not in cards["bodies"][by_task["t02"]["id"]]


def test_the_curve_has_the_values_of_the_table_and_the_ceiling_of_the_seeds(inputs):
    builder = task_cards._Builder(inputs)
    table = inputs.table[(inputs.table["estimator"] == "debiased") & (inputs.table["task"] == "t03")]
    ceiling, base, tuned = builder.curve(builder.cells.tasks.index("t03")).traces
    for trace, model in ((base, "pretrained"), (tuned, "tuned")):
        own = table[(table["experimental"] == model) & (table["control"] == "t03")].set_index("layer")
        for name, column in (("values", "cka"), ("low", "low"), ("high", "high")):
            np.testing.assert_array_equal(getattr(trace, name), own.loc[builder.cells.layers, column].to_numpy(float))
    assert trace.role == "tuned" and set(ceiling.values[1:]) == {0.93} and np.isnan(ceiling.values[0])
    # The second task has no second seed, hence no ceiling.
    assert len(builder.curve(builder.cells.tasks.index("t01")).traces) == 2


def test_scores_counts_and_the_training_curve_are_those_of_the_tables(inputs):
    builder = task_cards._Builder(inputs)
    body = builder.body(builder.cells.tasks.index("t02"))
    assert body["counts"]["training rows"] == "50" and body["counts"]["steps of the specialist"] == "5"
    scores = inputs.scores[(inputs.scores["task"] == "t02") & (inputs.scores["model"] == "control")]
    row = scores.set_index("metric").loc["information"]
    names = body["scores"]["metrics"]
    cells = dict(body["scores"]["rows"])["specialist (C_t)"]
    at = names.index("information (nats per prompt)")
    assert cells[at] == (fixed(row["value"], signed=True), between(row["low"], row["high"], signed=True))
    assert [name for name, _ in body["scores"]["rows"]][-1] == "most frequent answer"
    curve = inputs.curves[inputs.curves["model"] == "t02"]
    assert list(body["training"].traces[0].values) == curve["loss"].tolist()
    assert list(body["training"].x) == curve["step"].tolist() and body["training"].high >= 3.0


def test_long_training_curves_are_thinned_and_end_where_they_end(inputs):
    steps = range(1, 1001)
    curves = (
        inputs.curves.iloc[:0].reindex(range(1000)).assign(model="t02", step=steps, loss=[1 / step for step in steps])
    )
    chart = task_cards._Builder(replace(inputs, curves=curves)).training("t02")
    assert len(chart.x) <= 30 and chart.x[-1] == 1000
    assert list(chart.traces[0].values) == [1 / step for step in chart.x]


def test_profile_and_factors_are_those_of_the_analyses_and_absent_without_them(inputs):
    builder = task_cards._Builder(inputs)
    assert builder.body(0)["profile"] is None and builder.body(0)["factors"] == []
    task = builder.cells.tasks[0]
    rows = [
        {"task": task, "experimental": model, "layer": layer, "factor": "answer", "cka": level + 0.1 * int(layer)}
        for model, level in (("pretrained", 0.1), ("tuned", 0.2))
        for layer in ("1", "5", "6", "7", "8")
    ]
    factors = pd.DataFrame(rows)
    profile = planted_profile({task: "c00"}, np.full(8, 1 / 8), noise=0.01)
    builder = task_cards._Builder(replace(inputs, analyses={"profile": profile, "factors": factors}))
    # Means over layers 5 to 8.
    assert builder.body(0)["factors"] == [
        {"name": "answer", "pretrained": "0.750", "tuned": "0.850", "change": "+0.100"}
    ]
    chart = builder.profile(task)
    own = profile[(profile["model"] == "control") & (profile["kept"] == "upto")].set_index("layer")
    (trace,) = [each for each in chart.traces if each.name == "specialist, layers 1 to k"]
    wanted = own["share_of_information"]
    assert [trace.values[list(chart.x).index(layer)] for layer in wanted.index] == pytest.approx(wanted.tolist())
    assert percent(wanted.iloc[-1]) in chart.hover(list(chart.x).index(wanted.index[-1]))
    # Where information has no share, likelihood stands in.
    profile = planted_profile({task: "c00"}, np.full(8, 1 / 8), information=False)
    assert "likelihood" in task_cards._Builder(replace(inputs, analyses={"profile": profile})).profile(task).title


def test_examples_show_every_text_and_keep_its_lines(inputs):
    long = "a" * 399 + "\n" + "<b>" * 300
    answers = inputs.answers.assign(prompt=long, answer=["", *inputs.answers["answer"][1:]])
    cards, page = section(replace(inputs, answers=answers))
    body = cards["bodies"][heads(cards)[answers["task"].iloc[0]]["id"]]
    assert "(nothing)" in body and "the other 900 characters" in body and "<b>" not in page
    assert "a\n" in body and body.count("&lt;b&gt;") == 3 * 300
    assert body.count("✓ exact match") == 5 and body.count("✗ no exact match") == 4


def test_a_run_without_answers_scores_changes_or_curves_has_cards_all_the_same(inputs):
    bare = report_inputs(report_table((2,) * 5, held_out=0), curves=inputs.curves.iloc[:0])
    cards, page = section(bare)
    assert cards["n"] == 10 and "has recorded no answers" in page and "Example 1" not in page
    head = heads(cards)["t00"]
    assert head["matches"] is None and head["halves"][0]["interval"] == "–" and head["halves"][0]["change"] != "–"
    undefined = report_table((2,) * 5, held_out=0).assign(cka=np.nan, low=np.nan, high=np.nan, undefined="no variance")
    cards, page = section(replace(bare, table=undefined))
    assert heads(cards)["t00"]["change"] == "–" and "tuned: undefined" in page


def test_cards_of_many_tasks_are_packed_to_the_same_html_and_stay_small(inputs, monkeypatch):
    plain, _ = section(inputs)
    monkeypatch.setattr(task_cards, "MOST_INLINE", 1000)
    packed, page = section(inputs)
    assert packed["bodies"] == {} and unpacked(packed) == list(plain["bodies"].values())
    assert "need JavaScript" in page and task_cards.task_cards(inputs)["packed"] == packed["packed"]
    # The most important numbers are there without scripts.
    assert all(head["change"] in page for head in heads(packed).values())


def test_a_card_takes_at_most_six_kilobytes_beside_its_texts():
    shape = Shape(clusters=plain_clusters(60, 12), held_out=(), layers=31, incompetent=())
    planted = replace(paper_like(shape), answers=None)
    cards = task_cards.task_cards(planted)
    page = templates().get_template("task_cards.html.j2").render(cards=cards, analysis=planted.analysis)
    assert cards["packed"] and len(page.encode()) < 60 * 6_000


def test_two_hundred_hostile_strings_are_texts_and_nothing_else():
    names = hostile_names(200, seed=3)
    table = report_table((2,) * 5, 3, (1, 2), held_out=1)
    there = [*places(table)["task"], *places(table)["cluster"].unique()]
    hostile = report_table((2,) * 5, 3, (1, 2), held_out=1, names=dict(zip(there, names, strict=False)))
    strings = names[len(there) :]
    pages = []
    for each, texts in ((table, ["plain"]), (hostile, strings)):
        answers = planted_answers(places(each), texts).assign(target=texts[0])
        pages.append(Reader(section(inputs_of(each, answers=answers))[1]))
    plain, page = pages
    # Long texts have a part that opens on a click, and names decide the order of the cards.
    assert set(page.elements) == set(plain.elements)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert {name for name, _ in page.attributes} == {name for name, _ in plain.attributes}
    assert not [value for name, value in page.attributes if name == "href" and not value.startswith("#")]
    shown = "".join(page.texts)
    assert not {char for char in shown if is_hidden(char)} - {"\n"}
    assert len(strings) >= 180
    for text in strings[:90]:
        pieces = [visible(line).strip() for line in text.split("\n")]
        assert all(piece[:100] in shown for piece in pieces), text
