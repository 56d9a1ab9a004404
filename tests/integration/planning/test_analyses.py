"""The price of every analysis: counts by hand, what is left out, and one command for the table."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from mossa_jax.config import Analyse, Compare, Config, Mesh, Schedule, Tasks, Tokens, Tuning
from mossa_jax.function.profile import profile_variants, sources
from mossa_jax.llama.architecture import architecture_from_config
from mossa_jax.llama.published import PUBLISHED
from mossa_jax.planning import analyses
from mossa_jax.planning.analyses import ANALYSES, AnalysisWork, plan_analyses
from mossa_jax.planning.hardware import Hardware
from mossa_jax.planning.plan_table import format_analyses
from mossa_jax.planning.stages import PlannedRun
from mossa_jax.planning.workload import count_work
from mossa_jax.tasks.flan_names import CLUSTERS

LLAMA = architecture_from_config(PUBLISHED["llama2-7b"], "llama2-7b")
# Float32 products take six times as long, and nothing waits for transfers.
CHIPS = Hardware("chips", 8, 64 * 2**30, 1e14, 1e12, 1e15, 1e15, 8)
FLAN = Config(
    name="flan",
    base="meta-llama/Llama-2-7b-hf",
    dtype="bfloat16",
    tasks=Tasks(suite="flan2021", only=CLUSTERS),
    tokens=Tokens(template="none"),
    tuning=Tuning(slots=4, control=Schedule(batch_rows=4), experimental=Schedule(batch_rows=4), snapshots=3),
    mesh=Mesh(-1, 1, 1),
)


def planned_run(config=FLAN, hardware=CHIPS, prompts=0):
    work = count_work(config, example_ids=100, prompts=prompts, has_tokenizer=False)
    return PlannedRun(config, LLAMA, config.base, work, hardware, answers=512, use=0.5)


def rows_of(plan):
    return {row["analysis"]: row for row in plan["rows"]}


def with_analyse(**fields):
    return replace(FLAN, analyse=Analyse(**fields))


def test_every_analysis_of_a_run_has_a_price():
    from mossa_jax.run.analyse import ANALYSES as OF_A_RUN
    from mossa_jax.run.analyse.measures_subset import MODELS, PAIRS

    assert sorted(ANALYSES) == sorted(each.name for each in OF_A_RUN)
    assert set(analyses._OF_STATES) == {each.name for each in OF_A_RUN if each.needs_states}
    assert (analyses._PANEL_MODELS, analyses._PANEL_PAIRS) == (MODELS, PAIRS)


def test_hours_are_those_of_products_factorisations_transfers_and_the_host():
    plan = plan_analyses(planned_run(), price=2.0)
    for row in plan["rows"]:
        products = row["flops"] + row["factorisations"] / analyses.FACTORISATION_SHARE
        seconds = products / (0.5 * 8 * 1e14) + row["transfer_seconds"] + row["host_seconds"]
        assert row["hours"] == pytest.approx(seconds / 3600) and row["chip_hours"] == pytest.approx(8 * row["hours"])
        assert seconds > 0 and row["wanted"] and row["price"] == pytest.approx(2 * row["chip_hours"])
    assert plan["chip_hours"] == pytest.approx(sum(row["chip_hours"] for row in plan["rows"]))
    assert plan["price"] == pytest.approx(2 * plan["chip_hours"])


def test_passes_are_counted_by_hand():
    """A position takes 2 operations per parameter of the blocks, and 4 per head, head width, layer and key."""
    rows = rows_of(plan_analyses(planned_run()))
    position = 2 * 6_476_005_376 + 4 * 32 * 128 * 32 * (1024 + 1) / 2
    # Six models: before training, three snapshots, the end, another seed; of E and of the specialist, in 11 tasks.
    assert (rows["trajectory"]["tasks"], rows["trajectory"]["models"], rows["trajectory"]["passes"]) == (11, 6, 132)
    assert rows["trajectory"]["flops"] == pytest.approx(132 * 256 * 100 * position, rel=0.01)
    # 2,000 prompts, and five answers to each of 1,000; 60 specialists of rank 8 make one of rank 480.
    adapter = 2 * 480 * 32 * 2 * (4096 + 4096)
    assert rows["merged"]["flops"] == pytest.approx(60 * 7_000 * 100 * (position + adapter), rel=0.02)
    assert "5,000 answers with rank 480" in rows["merged"]["reason"]
    cut = rows_of(plan_analyses(planned_run(with_analyse(merged_rank=16))))["merged"]
    assert cut["flops"] == pytest.approx(60 * 7_000 * 100 * (position + adapter / 30), rel=0.02)


def test_variants_of_a_profile_run_each_state_once():
    """Independent of the schedule: states after k blocks are as many as there are different beginnings of length k."""
    variants = sources(profile_variants(32, 0))
    blocks = sum(len({tuple(row[:k]) for row in variants.tolist()}) for k in range(1, 33))
    row = rows_of(plan_analyses(planned_run()))["profile"]
    assert row["reason"].startswith(f"{blocks} blocks") and row["models"] == len(variants)
    # Lanes without work are few, and count.
    assert blocks / 32 <= row["passes"] / 60 < 1.1 * blocks / 32
    fewer = rows_of(plan_analyses(planned_run(with_analyse(profile_layers=8))))["profile"]
    assert fewer["flops"] < 0.4 * row["flops"] and fewer["bytes"] < 0.4 * row["bytes"]


def test_products_of_states_are_counted_by_hand():
    rows = rows_of(plan_analyses(planned_run(prompts=1_000)))
    # [1000, 4096] states: a Gram matrix each, of 60 tasks, three models and 34 layers.
    assert rows["spectrum"]["flops"] == 6 * 60 * 3 * 34 * 2 * 1_000**2 * 4_096
    assert rows["spectrum"]["factorisations"] == 6 * 60 * 3 * 34 * 10 * 1_000**3
    # 102 states of 11 tasks: the upper half of each Gram matrix, and of the products of all pairs.
    assert rows["layers"]["flops"] == 6 * 11 * (102 * 1_000**2 * 4_096 + 102**2 * 1_000**2)
    # Long states: the smaller matrix is that of the dimensions.
    long = rows_of(plan_analyses(planned_run(prompts=10_000)))
    assert long["spectrum"]["flops"] == 6 * 60 * 3 * 34 * 2 * 10_000 * 4_096**2
    # Cut to 4,000 prompts.
    assert long["factors"]["prompts"] == 4_000 and long["factors"]["bytes"] == 144 * 4_000**2
    assert long["factors"]["flops"] / rows["factors"]["flops"] == pytest.approx(64, rel=0.25)


def test_chips_wait_for_the_host():
    row = rows_of(plan_analyses(planned_run()))["map"]
    assert row["host_seconds"] > 60 and row["chip_hours"] == pytest.approx(8 * row["host_seconds"] / 3600, rel=0.01)
    # Twice the prompts: four times the pairs of states.
    more = rows_of(plan_analyses(planned_run(with_analyse(map_prompts=64))))["map"]
    assert 2 < more["host_seconds"] / row["host_seconds"] < 4


def test_what_is_not_made_is_priced_and_not_summed():
    quiet = with_analyse(**dict.fromkeys(ANALYSES, False))
    plan = plan_analyses(planned_run(replace(quiet, analyse=replace(quiet.analyse, layers=True))))
    assert plan["hours"] == rows_of(plan)["layers"]["hours"] > 0
    assert all(row["hours"] > 0 and row["wanted"] is (row["analysis"] == "layers") for row in plan["rows"])
    without = replace(FLAN, tuning=replace(FLAN.tuning, snapshots=0))
    row = rows_of(plan_analyses(planned_run(without)))["trajectory"]
    assert not row["wanted"] and "priced for 4" in row["note"] and row["models"] == 7
    tokens = rows_of(plan_analyses(planned_run(replace(FLAN, compare=Compare(pool="all")))))
    assert {name for name, row in tokens.items() if not row["wanted"]} == set(analyses._OF_STATES)
    text = format_analyses(plan | {"analyses": plan, "config": "c", "model": "m", "topology": "t", "use": 0.5})
    assert "not made: analyse.map=false" in text and "BY FORMULA" in text


def test_a_comparison_that_keeps_no_rows_keeps_the_first_ones_for_analyses():
    streamed = planned_run(replace(FLAN, compare=Compare(engine="moments")))
    assert AnalysisWork(streamed).spectrum().prompts == 1_000 < AnalysisWork(planned_run()).spectrum().prompts


def test_one_command_gives_the_table(root, tmp_path):
    out = tmp_path / "plan.json"
    flags = ("--topology=h100:8", "--stage=analyses", "--price_per_chip_hour=3", f"--out={out}")
    command = [sys.executable, "-m", "launch.plan", "--config=configs/llama2_7b_flan2021.py", *flags]
    done = subprocess.run(command, cwd=root, env=os.environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    (plan,) = json.loads(out.read_text())
    assert list(rows_of(plan["analyses"])) == list(ANALYSES) and plan["rows"] == []
    assert all(np.isfinite(row["chip_hours"]) for row in plan["analyses"]["rows"])
    assert plan["analyses"]["price"] == pytest.approx(3 * plan["analyses"]["chip_hours"])
    for name in ANALYSES:
        assert f"| {name} " in done.stdout and f"\n{name}: " in done.stdout
    assert "compiled" not in done.stdout
