"""The split by factors in a run: its tables against the comparison, the same bytes twice, answers by embedding."""

import numpy as np
import pandas as pd
import pytest

from mossa_jax.processes.stop import Stop
from mossa_jax.run import pipeline
from mossa_jax.run.analyse import answer_factor as answers
from mossa_jax.run.analyse import factors, task_states
from mossa_jax.run.lineup import line_up
from mossa_jax.similarity.projections import FACTORS
from tests.support.run_folders import part_of
from tests.support.tiny_llama import torch_model


@pytest.fixture(scope="module")
def results(analysed_run):
    """Reads a table of the finished run."""
    return lambda name: pd.read_parquet(analysed_run[1] / f"results/{name}.parquet")


@pytest.fixture(scope="module")
def run(analysed_run, tmp_path_factory):
    """The finished run, opened again in a folder of its own."""
    config, workdir = analysed_run
    folder = tmp_path_factory.mktemp("factors") / "run"
    run = pipeline.Run(config, pipeline.open_run(config, str(folder)), Stop())
    (folder / "adapters").symlink_to(workdir / "adapters")
    yield run
    run.folder.close()


@pytest.fixture(scope="module")
def states(run):
    task = run.suite.tasks[0]
    return task, task_states(run, task, line_up(run, task).names)


def test_parts_sum_to_the_debiased_cka_of_the_comparison(results):
    table, cka = results("factors"), results("cka")
    assert set(table["factor"]) == set(FACTORS)
    own = cka[(cka["estimator"] == "debiased") & (cka["control"] == cka["task"])]
    keys = ["task", "experimental", "layer"]
    sums = table.groupby(keys, as_index=False).agg(parts=("cka", "sum"), whole=("whole", "first"))
    both = sums.merge(own[[*keys, "cka"]], on=keys, validate="one_to_one")
    both = both[both["whole"].notna() | both["cka"].notna()]
    assert len(both) > 10
    np.testing.assert_allclose(both["whole"], both["cka"], atol=1e-6)
    np.testing.assert_allclose(both["parts"], both["cka"], atol=1e-6)


def test_within_none_repeats_the_comparison_and_its_change(results):
    within, change = results("within"), results("change")
    tuned = within[(within["within"] == "none") & (within["experimental"] == "tuned")]
    both = tuned.merge(change[change["estimator"] == "debiased"], on=["task", "layer"], suffixes=("", "_compared"))
    both = both[both["change_compared"].notna()]
    assert len(both) > 5
    np.testing.assert_allclose(both["change"], both["change_compared"], atol=1e-6)


def test_a_task_computed_again_gives_the_same_bytes(analysed_run, run, states):
    task, kept = states
    again = pd.DataFrame(factors.ANALYSIS.rows(run, task, kept))
    part = pd.read_parquet(part_of(analysed_run[1], "factors", task.name))
    pd.testing.assert_frame_equal(again, part, check_exact=True)


def test_fewer_prompts_are_the_first_ones(run, states, monkeypatch):
    task, kept = states
    monkeypatch.setattr(run.config.analyse, "factor_prompts", 8)
    rows = pd.DataFrame(factors.ANALYSIS.rows(run, task, kept))
    assert set(rows["n"]) == {8}


def test_too_few_prompts_are_undefined_with_the_reason(run, states, monkeypatch):
    task, kept = states
    monkeypatch.setattr(run.config.analyse, "factor_prompts", 3)
    rows = pd.DataFrame(factors.ANALYSIS.rows(run, task, kept))
    assert rows["cka"].isna().all() and set(rows["undefined"]) == {"3 items; at least 4 are needed"}
    tables = factors.ANALYSIS.tables(run, rows.assign(task=task.name, cluster="c", held_out=False))
    assert set(tables) == {"factors", "within"}


def test_free_text_stands_for_itself_by_the_base_s_embedding(run, states, tiny, monkeypatch):
    task, kept = states
    monkeypatch.setattr(answers, "ROWS_PER_LEVEL", 1000)
    monkeypatch.setattr(answers, "COLUMNS_SHARE", 0.3)
    rows = pd.DataFrame(factors.ANALYSIS.rows(run, task, kept))
    assert set(rows["answer"]) == {answers.EMBEDDING}
    own = rows[(rows["factor"] == "answer") & (rows["layer"] == "2")]
    assert (own["degrees"] == int(0.3 * len(kept.prompts))).all() and own["cka"].notna().all()
    gold = answers.gold_answers(run.encoded(task, "test"), kept.prompts.rows)
    embedding = torch_model(tiny.folder).get_input_embeddings().weight.detach().double().numpy()
    expected = np.stack([embedding[list(answer)].mean(0) for answer in gold])
    np.testing.assert_allclose(answers.mean_embeddings(run.model, gold), expected, atol=1e-6)
