"""A run opened from Python: its tables, states and figures are those of the run, and what is missing is said."""

import filecmp
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

import mossa_jax as mossa
from mossa_jax.errors import Refusal
from mossa_jax.existing.runs import TABLES
from mossa_jax.processes.stop import Stop
from mossa_jax.run import models, pipeline
from mossa_jax.run.analyse import ANALYSES
from tests.support.run_folders import rewrite, rewrite_table
from tests.support.tiny_llama import distance

ORDER = ["embed", "1", "2", "3", "final_norm"]


@pytest.fixture(scope="module")
def run(tiny_run):
    return mossa.Run(tiny_run[1])


@pytest.fixture(scope="module")
def own_run(tiny_run, tmp_path_factory):
    """The run as its own stages open it, on a copy."""
    config, finished = tiny_run
    folder = tmp_path_factory.mktemp("own") / "tiny"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns(".lock", ".holder"))
    run_folder = pipeline.open_run(config, str(folder))
    yield pipeline.Run(config, run_folder, Stop())
    run_folder.close()


def copy(tiny_run, tmp_path):
    return shutil.copytree(tiny_run[1], tmp_path / "run", ignore=shutil.ignore_patterns(".lock", ".holder"))


def test_it_has_the_runs_configuration_and_prints_as_one_line(run, tiny_run):
    assert run.config == tiny_run[0]
    assert re.fullmatch(r"Run\('.*tiny'\): tiny, 3 tasks, 3 layers, \d+ tables", repr(run))
    assert run.page == run.folder / "report.html" and run.page.exists() and run.is_finished
    said = json.loads((tiny_run[1] / "results/findings.json").read_text())["warnings"]
    assert run.variants == [] and run.warnings == [warning["sentence"] for warning in said] != []


def test_tables_are_those_of_the_folder_with_layers_in_order_and_as_numbers(run, tiny_run):
    plain = pd.read_parquet(tiny_run[1] / "results/cka.parquet")
    table = run.cka
    assert table.layer.cat.ordered and list(table.layer.cat.categories) == ORDER
    assert table.groupby("layer", observed=True).depth.first().tolist() == [0, 1, 2, 3, 4]
    assert table.groupby("layer", observed=True).relative_depth.first().tolist() == [0, 1 / 3, 2 / 3, 1, 1]
    pd.testing.assert_frame_equal(
        table.drop(columns=["depth", "relative_depth"]).assign(layer=table.layer.astype(str)), plain, check_dtype=False
    )
    assert set(run.tables) == {path.stem for path in (tiny_run[1] / "results").glob("*.parquet")}
    assert {"cka", "change", "scores"} <= set(dir(run))
    assert len(run.table("change")) == len(run.change) and "depth" in run.change and "depth" not in run.scores
    findings = json.loads((tiny_run[1] / "results/findings.json").read_text())
    assert run.findings.verdict.tolist() == [row["verdict"] for row in findings["findings"]]
    # A change to a table that was handed out changes no later one.
    table["cka"] = 0.0
    assert not (run.cka.cka == 0).all()


def test_pairs_of_layers_have_depths_too(analysed_run):
    table = mossa.Run(analysed_run[1]).layers
    assert (table.depth_a == table.layer_a.cat.codes).all() and (table.depth_b == table.layer_b.cat.codes).all()
    assert "relative_depth" not in table


def test_every_table_of_every_analysis_is_known():
    made = {name: analysis.name for analysis in ANALYSES for name in analysis.table_names}
    assert {name: field for name, field in TABLES.items() if field} == made


def test_its_models_are_the_base_e_and_the_specialists(run, own_run):
    assert run.models[:2] == ["pretrained", "tuned"]
    assert set(run.models[2:]) == set(own_run.controls)


@pytest.mark.parametrize("pool", ["last", "mean"])
def test_states_are_those_that_the_run_compares(run, own_run, pool):
    task = next(task for task in own_run.suite.tasks if task.name == "count_words")
    ids = own_run.test_prompts(task).ids
    config = models.PassConfig(pool, own_run.config.compare.batch_rows, own_run.pass_config.packing)
    names = [None, "tuned", "count_words", next(name for name in run.models if name.endswith(".seed1"))]
    wanted = np.asarray(models.model_states(own_run, names, ids, config).states)
    for at, name in enumerate(names):
        states = run.states(name, task="count_words", pool=pool)
        assert list(states) == ORDER
        for number, layer in enumerate(ORDER):
            assert distance(states[layer], wanted[at, number, : len(ids)]) < 1e-6
    assert not np.allclose(wanted[0], wanted[1], atol=1e-4)


def test_states_of_texts_are_cut_and_templated_as_the_runs_own(run):
    examples = run.examples("last_word")
    of_task = run.states("last_word")
    assert len(examples) == len(of_task["1"])
    of_texts = run.states("last_word", [example.inputs for example in examples])
    assert distance(of_texts["2"], of_task["2"]) < 1e-6
    # A prompt that is too long loses its beginning, as in the run, so its end decides its state.
    words = "one two three four five six seven eight nine ten " * 20
    cut = run.states(None, [words + "end", "x " + words + "end", words + "other"])
    assert distance(cut["3"][1], cut["3"][0]) < 1e-6 and distance(cut["3"][2], cut["3"][0]) > 1e-3


def test_states_of_tokens_say_whose_they_are(run):
    states = run.states("tuned", ["one two", "three"], pool="tokens")
    assert set(states.prompt.tolist()) == {0, 1} and len(states["1"]) == len(states.token)


def test_figures_equal_those_of_the_run_and_take_other_colours_and_views(run, tmp_path):
    figures = run.figures
    names = figures.save(tmp_path / "same")
    files = {f"{name}.{suffix}" for name in names for suffix in ("png", "svg", "pdf", "csv")}
    assert {path.name for path in (run.folder / "figures").iterdir()} == files
    for name in files:
        if not name.startswith("time."):
            assert filecmp.cmp(tmp_path / "same" / name, run.folder / "figures" / name, shallow=False), name
    own = figures.draw("training", palette={"tuned": "#123456"})
    colours = [{line.get_color() for line in figure.axes[0].lines} for figure in (figures["training"], own)]
    assert colours[1] - colours[0] == {"#123456"}
    # No specialist of this run is competent, so other charts are empty.
    drawn = (run.figure("heatmap"), figures.draw("heatmap", estimator="biased"), figures["heatmap"])
    words = [{text.get_text() for text in figure.findobj(Text) if "biased" in text.get_text()} for figure in drawn]
    assert {text.replace("debiased", "biased") for text in words[0]} == words[1] != words[0] == words[2]


def test_figures_are_listed_with_their_numbers(run):
    figures = run.figures
    assert list(figures) == figures.names and len(figures) == len(figures.names)
    assert "layers" in figures and "figure2_layers" in figures and "nothing" not in figures
    assert repr(figures).startswith(f"{len(figures)} figures of {run.folder}: ") and "layers" in repr(figures)
    data, cka = figures.data("heatmap"), run.raw_table("cka")
    row = data[(data["show"] == "tuned") & (data["estimator"] == "debiased")].iloc[-1]
    same = (cka.experimental == "tuned") & (cka.control == row.task) & (cka.task == row.task)
    same &= (cka.estimator == "debiased") & (cka.layer.astype(str) == str(row.layer))
    assert cka[same].cka.tolist() == [row.value]


@pytest.mark.parametrize(
    ("name", "choices", "said"),
    [
        ("layer", {}, "no figure 'layer'; there is .*layers.*; did you mean 'layers'"),
        ("layers", {"estimator": "x"}, "estimator='x' is none of debiased, biased"),
        ("layers", {"colour": "x"}, "no choice 'colour'; there is estimator"),
        ("layers", {"palette": {"x": "red"}}, "'x' is no role; there is pretrained, tuned"),
    ],
)
def test_figures_that_do_not_exist_are_refused_with_the_list(run, name, choices, said):
    with pytest.raises(Refusal, match=said) as refusal:
        run.figures.draw(name, **choices)
    assert refusal.value.code == 2


def test_a_variant_has_tables_of_its_own(tiny_run, tmp_path):
    folder = copy(tiny_run, tmp_path)
    place = folder / "variants/compare.pool=mean"
    place.mkdir(parents=True)
    record = json.loads((folder / "config.json").read_text())
    record["compare"]["pool"] = "mean"
    (place / "config.json").write_text(json.dumps(record))
    shutil.copytree(folder / "results", place / "results")
    rewrite_table(place / "results/cka.parquet", pd.read_parquet(folder / "results/cka.parquet").assign(cka=0.5))
    run = mossa.Run(folder)
    assert run.variants == ["compare.pool=mean"] and run.config.compare.pool == "last"
    for variant in (run.variant("compare.pool=mean"), mossa.Run(place), mossa.Run(folder, "compare.pool=mean")):
        assert variant.config.compare.pool == "mean" and (variant.cka.cka == 0.5).all()
        assert variant.folder == run.folder and variant.page == place / "report.html"
        assert variant.models == run.models and "variant='compare.pool=mean'" in repr(variant)
    with pytest.raises(Refusal, match=r"no variant 'x'; there is compare\.pool=mean"):
        run.variant("x")


@pytest.mark.parametrize(
    ("ask", "code", "words"),
    [
        (lambda run: run.table("ckaa"), 2, "'ckaa' is no table of a run; there is cka"),
        (lambda run: run.spectrum, 3, "analyse.spectrum is off; mossa run --workdir=.* --config.analyse.spectrum=true"),
        (lambda run: run.table("../cka"), 2, "is no table"),
        (lambda run: run.states("nobody", task="last_word"), 2, "no model 'nobody'; there is"),
        (lambda run: run.states("tuned"), 2, "give `prompts`, or `task=`"),
        (lambda run: run.states("tuned", task="last_words"), 2, "no task 'last_words'; there is last_word"),
        (lambda run: run.states("tuned", ["a"], task="last_word"), 2, "give one of them"),
        (lambda run: run.states("tuned", ["a"], pool="first"), 2, "pool 'first' is unknown"),
        (lambda run: run.states("tuned", "a text"), 3, "give a list"),
        (lambda run: run.states("tuned", []), 3, "there are no prompts"),
        (lambda run: run.figure("layer"), 2, "no figure 'layer'; there is .*layers"),
        (lambda run: run.figure("layers", {"tunde": "red"}), 2, "'tunde' is no role; there is pretrained, tuned"),
        (lambda run: run.figure("layers", {"tuned": "reddish"}), 2, "tuned='reddish' is no colour"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(run, ask, code, words):
    with pytest.raises(Refusal, match=words) as caught:
        ask(run)
    assert caught.value.code == code and "\n" not in str(caught.value)


def test_a_name_that_is_neither_attribute_nor_table_is_an_attribute_error(run):
    assert not hasattr(run, "nothing") and not hasattr(run, "_nothing")
    with pytest.raises(AttributeError, match="its tables are answers, change, cka"):
        run.nothing  # noqa: B018


def test_a_folder_that_is_no_run_or_not_finished_is_refused(tiny_run, tmp_path):
    with pytest.raises(Refusal, match="nowhere is no run folder: it does not exist"):
        mossa.Run(tmp_path / "nowhere")
    with pytest.raises(Refusal, match=r"it has no config\.json"):
        mossa.Run(tmp_path)
    folder = copy(tiny_run, tmp_path)
    shutil.rmtree(folder / "results")
    (folder / "report.html").unlink()
    run = mossa.Run(folder)
    assert repr(run).endswith("tiny, not finished") and run.tables == []
    for ask in (lambda: run.cka, lambda: run.findings, lambda: run.figure("layers")):
        with pytest.raises(Refusal, match=r"yet; mossa run --workdir=.* continues the run") as caught:
            ask()
        assert caught.value.code == 3
    (folder / "config.json").write_text("{")
    with pytest.raises(Refusal, match=r"config\.json is not as it was written"):
        mossa.Run(folder).config  # noqa: B018
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(Refusal, match="not valid JSON"):
        mossa.Run(folder).config  # noqa: B018


def test_a_damaged_table_is_refused(tiny_run, tmp_path):
    folder = copy(tiny_run, tmp_path)
    for name, ask in (("cka.parquet", lambda run: run.cka), ("findings.json", lambda run: run.findings)):
        path = folder / "results" / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
        with pytest.raises(Refusal, match=rf"{name} is not as it was written.*launch\.run makes it anew") as caught:
            ask(mossa.Run(folder))
        assert caught.value.code == 3


def test_rows_that_have_changed_since_are_refused(tiny_run, tmp_path):
    folder = copy(tiny_run, tmp_path)
    rewrite(folder / "data.json", lambda record: record["tasks"]["last_word"]["test"].update(fingerprint="other"))
    with pytest.raises(Refusal, match="test rows of task 'last_word' have changed") as caught:
        mossa.Run(folder).states("last_word")
    assert caught.value.code == 3


def test_tables_are_read_without_jax(run, root):
    code = (
        "import sys, mossa_jax as mossa\n"
        f"run = mossa.Run({str(run.folder)!r})\n"
        "repr(run), run.cka, run.findings, run.config\n"
        "heavy = {'jax', 'matplotlib', 'transformers', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
