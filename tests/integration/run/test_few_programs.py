"""A run compiles a number of programs that does not grow with its tasks, by JAX's own log, and its figures stay."""

import collections
import json
import logging
import re

import jax
import numpy as np
import pandas as pd
import pytest

import mossa_jax as mossa
from mossa_jax.llama.adapters import initial_adapter
from mossa_jax.llama.files.peft import save_adapter
from mossa_jax.processes.stop import Stop
from mossa_jax.run import pipeline
from mossa_jax.run.analyse import profile, stages
from mossa_jax.run.compare import compare
from mossa_jax.run.prepare import prepare
from mossa_jax.run.score import SCORES, score
from tests.conftest import load_config
from tests.support.tiny_llama import random_texts, write_config

# Test prompts of the tasks. Every other task shares an instruction; the last ones have long prompts besides.
SIZES = (24, 610, 40, 450, 61, 380, 100, 310, 150, 530, 190, 250)
INSTRUCTION = "the mill stands near a river:"


def write_suite(folder, sizes):
    clusters = {}
    for number, size in enumerate(sizes):
        name = f"task{number}"
        clusters[name] = {"cluster": f"cluster{number % 3}"}
        lead = f"{INSTRUCTION} " if number % 2 else ""
        for split, rows in (("train", 2), ("test", size)):
            lines = [
                json.dumps({"inputs": f"{lead}{text} {'hills ' * (index % (1 + number // 4))}", "targets": "mill"})
                for index, text in enumerate(random_texts(rows, seed=number))
            ]
            path = folder / split / f"{name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lines) + "\n")
    (folder / "tasks.json").write_text(json.dumps(clusters))
    return folder


@pytest.fixture
def open_run(tiny, tmp_path):
    """Opens a run over a suite of tasks of these sizes, whose adapters are random."""
    folders = []

    def open_it(sizes, **changes):
        place = tmp_path / str(len(folders))
        config = load_config(write_config(tmp_path / "config.py", tiny.folder, write_suite(place / "tasks", sizes)))
        config.tokens.max_tokens = config.tokens.row_length = 96
        config.tuning.score_prompts, config.compare.permutations = 70, 3
        for name, value in changes.items():
            part, field = name.split("__")
            setattr(getattr(config, part), field, value)
        run = pipeline.Run(config, pipeline.open_run(config, str(place / "run")), Stop())
        folders.append(run.folder)
        prepare(run)
        for seed, name in enumerate(["tuned", *run.controls]):
            adapter = initial_adapter(run.architecture, ("q_proj", "v_proj"), 2, 16.0, 0, (seed,))
            for matrices in adapter.values():
                matrices["b"] = 0.2 * np.random.default_rng(seed).standard_normal(matrices["b"].shape, np.float32)
            about = {"template": run.tokenizer.record, "digest": run.model_digest(name)}
            save_adapter(run.tuned_folder(name), adapter, run.base, about)
        return run

    yield open_it
    for folder in folders:
        folder.close()


class Compilations(logging.Handler):
    """Counts what JAX's own log says it compiles, by the program's name."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def emit(self, record):
        match = re.match(r"Compiling (?:jit\()?([^\s()]+)", record.getMessage())
        if match:
            self.counts[match[1]] += 1


def compilations(stage, run):
    """Runs a stage and returns program name -> how often it is compiled."""
    jax.clear_caches()
    handler, logger = Compilations(), logging.getLogger("jax._src.interpreters.pxla")
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            stage(run)
    finally:
        logger.removeHandler(handler)
    return dict(handler.counts)


def most(counts):
    """The programs of one name, the digest of weights aside: that has one for each shape of the base's weights."""
    return max(count for name, count in counts.items() if name != "_sums")


def test_twelve_tasks_share_programs_and_their_figures_are_those_of_a_task_alone(open_run, tiny):
    run = open_run(SIZES)
    counts = compilations(score, run)
    # Tasks with further seeds or a twin have more models than others; some tasks' prompts share ids and others' do not;
    # prompts are answered in two widths.
    assert counts["read_rows"] <= 4 and counts["branch_losses"] <= 4 and counts["greedy"] <= 4, counts
    assert most(counts) <= 4, counts
    counts = compilations(compare, run)
    # Two shapes of prompts, for tasks with further seeds and a twin, and for tasks without.
    assert counts["keep_batch"] == 4 and counts["read_prefix"] == 2, counts
    # No other program has a shape for each task either.
    assert most(counts) <= 4 and counts["gram_sums"] in (2, 4), counts
    assert [shape.prefix_length > 0 for shape in run.pass_shapes] == [False, True]
    table = pd.read_parquet(run.folder / "results/cka.parquet")
    for number in (0, 1, 6):
        task = f"task{number}"
        prompts = [example.inputs for example in run.suite.tasks[number].examples("test")]
        again = mossa.compare(str(tiny.folder), "pretrained", str(run.tuned_folder(task)), prompts, max_tokens=96)
        rows = table[(table.task == task) & (table.control == task) & (table.experimental == "pretrained")]
        assert rows.layer.tolist() == again.layer.tolist() and set(rows.n) == {SIZES[number]}
        np.testing.assert_allclose(rows.cka, again.cka, atol=1e-5)


def test_layer_profiles_of_twelve_tasks_are_one_program_and_end_in_the_scores(open_run):
    run = open_run(SIZES, analyse__profile=True, analyse__profile_prompts=12, tuning__score_prompts=12)
    counts = compilations(lambda run: stages.analyse(run, [profile.ANALYSIS]), run)
    assert counts["variant_losses"] == 1 and most(counts) <= 4, counts
    table = pd.read_parquet(run.folder / "results/profile.parquet")
    assert set(table.n) == {12} and len(table) == 12 * 30
    # With every layer a variant is the model itself, with none it is the base, whose losses the scores have too.
    score(run)
    for task in run.suite.tasks:
        rows, scores = table[table.task == task.name], run.read_part(SCORES, task)
        losses = scores[scores.metric == "answer_nll"].set_index("model")["value"]
        for name, model, layer in (("base", "tuned", 0), ("tuned", "tuned", 3), ("control", "control", 3)):
            (ours,) = rows[(rows.model == model) & (rows.kept == "upto") & (rows.layer == layer)].answer_nll
            assert ours == pytest.approx(losses[name], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["kept", "moments"])
def test_sixty_tasks_have_no_more_programs(open_run, engine):
    run = open_run([24 + 7 * number % 587 for number in range(60)], compare__engine=engine)
    counts = compilations(score, run)
    assert max(counts.pop(name) for name in ("read_rows", "branch_losses", "greedy")) <= 4, counts
    counts |= compilations(compare, run)
    assert max(counts.values()) <= 4 and {"kept": "keep_batch", "moments": "stream_batch"}[engine] in counts, counts


@pytest.mark.slow
def test_two_lengths_of_rows(open_run):
    run = open_run(SIZES, tokens__row_length=48, tokens__long_row_length=96)
    counts = compilations(compare, run)
    assert counts["keep_batch"] <= 8 and max(counts.values()) <= 8, counts
