"""The map of the states: which layers and prompts, and tables that are kept for equal parts."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from etils import epath

from mossa_jax.config import Analyse
from mossa_jax.run.analyse import map as state_map
from mossa_jax.run.analyse.analysis import TaskStates
from mossa_jax.similarity.sample import random_basis
from mossa_jax.tokens.test_prompts import TestPrompts

LAYERS, WIDTH = 6, 24
NAMES = ("embed", *(str(layer) for layer in range(1, LAYERS + 1)), "final_norm")


@pytest.fixture
def run(tmp_path):
    architecture = SimpleNamespace(layers=LAYERS, hidden=WIDTH, state_names=lambda: NAMES)
    return SimpleNamespace(
        config=SimpleNamespace(seed=3, analyse=Analyse(map_prompts=8, map_dimensions=16)),
        architecture=architecture,
        folder=epath.Path(tmp_path),
        seed=lambda name: (3, int(name.removeprefix("task"))),
    )


def states_of(number, prompts=20):
    """States [3, 8, 24, 24] of a task; the prompts are every other row of its test split."""
    rng = np.random.default_rng(number)
    values = rng.normal(size=(3, len(NAMES), 24, WIDTH)).astype(np.float32) + 5 * (number // 2)
    kept = SimpleNamespace(states=jnp.asarray(values), names=NAMES, valid=np.arange(24) < prompts, rows=24)
    rows = 2 * np.arange(prompts)
    ids = [np.arange(3)] * prompts
    labels = np.arange(prompts, dtype=np.int32)
    return values, TaskStates((None, "tuned", f"task{number}"), kept, TestPrompts(ids, labels, labels % 2, "", rows))


def parts_of(run):
    frames = []
    for number in range(6):
        task = SimpleNamespace(name=f"task{number}")
        rows = state_map.ANALYSIS.rows(run, task, states_of(number)[1])
        frames.append(pd.DataFrame(rows).assign(task=task.name, cluster=f"cluster{number // 2}", held_out=number == 5))
    return pd.concat(frames, ignore_index=True)


def test_depths_are_the_papers():
    assert state_map.map_layers(32) == ["1", "10", "15", "20", "32"]
    assert state_map.map_layers(8) == ["1", "2", "4", "5", "8"]
    assert state_map.map_layers(1) == ["1"]


def test_a_part_holds_the_states_of_a_drawn_sample_of_prompts_in_the_base_and_in_e(run):
    values, states = states_of(2)
    table = pd.DataFrame(state_map.ANALYSIS.rows(run, SimpleNamespace(name="task2"), states))
    assert len(table) == 2 * len(NAMES) * 8
    prompts = table.prompt.unique()
    assert len(prompts) == 8 and (prompts % 2 == 0).all() and prompts.max() < 40 and (np.diff(prompts) > 0).all()
    assert list(prompts) != list(2 * np.arange(8))
    basis = random_basis(WIDTH, 16, 3)
    for model, at in (("pretrained", 0), ("tuned", 1)):
        for k, layer in enumerate(NAMES):
            rows = table[(table.model == model) & (table.layer == layer)]
            expected = values[at, k, rows.prompt // 2] @ basis
            np.testing.assert_allclose(np.stack(list(rows.state)), expected, rtol=1e-4, atol=1e-4)
            assert (rows["item"] == rows.prompt // 2).all() and (rows.template == rows.prompt // 2 % 2).all()


def test_a_task_with_few_prompts_gives_each_of_them_once(run):
    table = pd.DataFrame(state_map.ANALYSIS.rows(run, SimpleNamespace(name="task2"), states_of(2, prompts=5)[1]))
    assert list(table[(table.model == "tuned") & (table.layer == "3")].prompt) == [0, 2, 4, 6, 8]


def test_tables_have_every_prompt_at_each_depth_and_every_layer_is_measured(run):
    tables = state_map.ANALYSIS.tables(run, parts_of(run))
    drawn = state_map.map_layers(LAYERS)
    counts = tables["map"].groupby(["model", "layer", "method"]).size()
    assert len(counts) == 2 * len(drawn) * 2 and (counts == 48).all()
    assert tables["map"][["x", "y"]].notna().all(axis=None) and tables["map"].held_out.sum() == len(tables["map"]) / 6
    assert set(tables["separation"].layer) == set(NAMES)
    # Clusters lie five apart at every coordinate, before and after the projection.
    across = tables["separation"].query("label == 'cluster' and left_out == 'task' and method == 'neighbours'")
    assert (across.value == 1).all() and (across.chance < 0.6).all()


def test_tables_of_equal_parts_are_read_and_not_made_again(run, monkeypatch):
    parts = parts_of(run)
    first = state_map.ANALYSIS.tables(run, parts)
    calls = []
    make = state_map.make_tables

    def count(*arguments):
        calls.append(arguments)
        return make(*arguments)

    monkeypatch.setattr(state_map, "make_tables", count)
    again = state_map.ANALYSIS.tables(run, parts)
    assert not calls
    for name in first:
        pd.testing.assert_frame_equal(first[name], again[name], check_exact=True)
    other = parts.copy()
    other.at[7, "state"] = other.at[7, "state"] + np.float32(1e-3)
    state_map.ANALYSIS.tables(run, other)
    assert len(calls) == 1
    assert len(list((run.folder / "results/parts/map_tables").glob("*.parquet"))) == 4
