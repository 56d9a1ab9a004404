"""The claims as cards: their figures, and the view of its chart to which each leads."""

from urllib.parse import parse_qs

import pytest

from mossa_jax.findings.claims import CLAIMS
from mossa_jax.findings.warnings import RunWarning
from mossa_jax.report.catalogue import all_charts
from mossa_jax.report.numbers import fixed
from mossa_jax.report.page.cards import claim_cards
from tests.support.planted_report import report_change, report_inputs, report_scores, report_table

CUT = RunWarning("cut_prompts", "prompts are cut: t02", ("t02", "t03", "t08"), grave=("t02", "t03", "t08"))


@pytest.fixture(scope="module")
def inputs():
    table = report_table()
    falls = (table.experimental == "tuned") & (table.control == table.task) & table.task.isin(["t01", "t04"])
    table = table.assign(cka=table.cka - 0.5 * falls)
    return report_inputs(table, report_scores(table), report_change(table), warnings=(CUT,))


@pytest.fixture(scope="module")
def charts(inputs):
    return all_charts(inputs)


@pytest.fixture(scope="module")
def cards(inputs, charts):
    return {card.name: card for card in claim_cards(inputs.analysis, charts)}


def test_each_claim_has_a_card_with_its_verdict_and_its_figures(cards, inputs):
    assert list(cards) == [claim.name for claim in CLAIMS]
    for finding in inputs.analysis["findings"]:
        card = cards[finding["id"]]
        assert (card.claim, card.verdict) == (finding["claim"], finding["verdict"])
        assert card.is_exploratory == (finding["family"] == "exploratory")
    shift, card = inputs.analysis["shift"], cards["shift"]
    assert card.figure == f"{fixed(shift['mean'], signed=True)} CKA"
    assert card.detail == f"[{fixed(shift['low'], signed=True)}, {fixed(shift['high'], signed=True)}]"
    assert card.units.startswith("9 clusters, 18 tasks, p = 0.0")
    assert cards["gain"].figure == "–" and cards["gain"].units == ""


def test_a_link_leads_to_a_view_that_its_chart_has(cards, charts):
    """Every choice in a view is one of the chart's, every layer and every task is on it."""
    for card in cards.values():
        for link in (card.link, *card.tasks):
            if link is None or not link.view:
                continue
            chart, view = charts[link.target], parse_qs(link.view)
            marks = [mark for each in chart.views for panel in each.panels for mark in panel.marks]
            for name in set(view) - {"mark", "task"}:
                assert view[name][0] in chart.choices[name].options
            for task in view.get("task", ()):
                assert task in {mark.on_request for mark in marks}
            for layers in view.get("mark", ()):
                assert set(layers.split("-")) <= set(chart.views[0].panels[0].x.names)


def test_claims_mark_the_layers_on_which_they_rest(cards, inputs):
    first, last = (
        inputs.analysis["sections"]["fit"]["start"]["layer"],
        inputs.analysis["sections"]["fit"]["end"]["layer"],
    )
    assert cards["transition"].link.view == f"estimator=debiased&mark={first}-{last}"
    assert cards["shift"].link.view == "estimator=debiased&mark=5-8" and cards["shift"].link.target == "change"
    assert cards["specificity"].link.target == "specificity"
    assert cards["clusters"].link.target == "cluster_slopes" and "mark" not in cards["clusters"].link.view


def test_tasks_that_fall_are_named_with_their_change_and_lead_to_their_curves(cards, inputs):
    fallers = inputs.analysis["shift"]["fallers"]
    assert {each["task"] for each in fallers} == {"t01", "t04"}
    assert [link.text for link in cards["shift"].tasks] == [
        f"{each['task']} ({fixed(each['change'], signed=True)})" for each in fallers
    ]
    assert parse_qs(cards["shift"].tasks[0].view)["task"] == [fallers[0]["task"]]
    assert cards["shift"].more_tasks == 0 and not cards["unseen"].tasks


def test_a_name_from_outside_stays_one_value_of_the_view():
    names = {"t01": "a&mark=1-2#x", "t04": "=b c"}
    table = report_table(names=names)
    falls = (table.experimental == "tuned") & (table.control == table.task) & table.task.isin(names.values())
    inputs = report_inputs(table.assign(cka=table.cka - 0.5 * falls))
    card = next(card for card in claim_cards(inputs.analysis, all_charts(inputs)) if card.name == "shift")
    views = [parse_qs(link.view) for link in card.tasks]
    assert {view["task"][0] for view in views} == set(names.values())
    assert {view["mark"][0] for view in views} == {"5-8"}


def test_many_tasks_that_fall_are_counted():
    table = report_table()
    falls = (table.experimental == "tuned") & (table.control == table.task)
    inputs = report_inputs(table.assign(cka=table.cka - 0.5 * falls))
    card = next(card for card in claim_cards(inputs.analysis, all_charts(inputs)) if card.name == "shift")
    assert len(card.tasks) == 6 and card.more_tasks == 12 and card.verdict == "contradicted"


def test_a_claim_without_its_chart_leads_to_the_section_that_says_why():
    inputs = report_inputs(report_table((1,) * 3, 4, None, held_out=0))
    cards = {card.name: card for card in claim_cards(inputs.analysis, all_charts(inputs))}
    assert cards["unseen"].link.target == "section-unseen" and cards["unseen"].link.view == ""
    assert cards["shared"].link.target == "section-where" and cards["ability"].link.target == "section-training"
    assert cards["gain"].link is None


def test_what_qualifies_a_claim_and_what_holds_it_back_stand_on_its_card(cards, inputs):
    assert "cut_prompts" in cards["shift"].qualifications
    assert cards["shift"].qualifications["cut_prompts"].startswith("3 of its 18 tasks")
    held = {card.name for card in cards.values() if card.reservations}
    undecided = {each["id"] for each in inputs.analysis["findings"] if each["verdict"] == "undecided"}
    assert held <= undecided
    analysis = inputs.analysis | {
        "findings": [each | {"reservations": ["It is -0.1."]} for each in inputs.analysis["findings"]]
    }
    assert claim_cards(analysis, {})[0].reservations == ("It is −0.1.",)
