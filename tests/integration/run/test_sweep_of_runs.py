"""The published sweep at a tiny size: interrupted after its first run, continued, and every run as it is configured."""

import json
import weakref
from types import SimpleNamespace

import pytest

from mossa_jax.config import load_runs, with_fields
from mossa_jax.errors import STOPPED, Refusal
from mossa_jax.processes.stop import Stop
from mossa_jax.run import pipeline
from mossa_jax.run.sweep import run_sweep

TINY = {
    "tasks.only": ("facts_country", "sentiment_review"),
    "tasks.max_train": 32,
    "tasks.max_test": 24,
    "pretraining.layers": 1,
    "pretraining.hidden": 16,
    "pretraining.feed_forward": 32,
    "pretraining.steps": 4,
    "pretraining.documents": 500,
    "tuning.targets": ("q_proj",),
    "tuning.control.max_steps": 2,
    "tuning.experimental.max_steps": 2,
    "tuning.reproducible": False,
    "tuning.control_seeds": 1,
    "tuning.twins": (),
    "tuning.score_prompts": 0,
}


def adapters(folder):
    files = sorted(folder.glob("*/adapters/*/adapter_model.safetensors"))
    return {str(path.relative_to(folder)): (path.stat().st_ino, path.read_bytes()) for path in files}


def test_the_published_sweep_in_small_stops_after_a_run_continues_and_keeps_no_run_in_memory(tmp_path):
    # Each run is a tuning of its own, compiled anew for each rank: three of the four show all that differs.
    published = list(load_runs("sweep_demo_rank").items())[:3]
    runs = {name: with_fields(config, TINY) for name, config in published}
    process = SimpleNamespace(stop=Stop(), runs_native_code=[], before_leaving=[])
    seen, left = [], []

    def stage(run):
        left.extend(one() for one in seen)
        seen.append(weakref.ref(run))
        pipeline.tune(run)
        process.stop.asked = len(seen) == 1

    with pytest.raises(Refusal) as caught:
        run_sweep(process, runs, str(tmp_path), stage)
    assert caught.value.code == STOPPED and str(caught.value).startswith("tuning.rank=4,seed=1: stopped on request")
    first = adapters(tmp_path)
    assert len(first) == 3 and all(name.startswith("tuning.rank=4,seed=0/") for name in first)

    process.stop.asked = False
    assert str(tmp_path / "tuning.rank=8,seed=0") in run_sweep(process, runs, str(tmp_path), stage)
    after = adapters(tmp_path)
    assert len(after) == 9 and first.items() <= after.items()
    assert len({content for _, content in after.values()}) == 9
    for name, config in runs.items():
        about = json.loads((tmp_path / name / "adapters/tuned/adapter_config.json").read_text())
        record = json.loads((tmp_path / name / "config.json").read_text())
        assert (about["r"], record["seed"]) == (config.tuning.rank, config.seed)
    assert len(seen) == 4 and left == [None] * len(left)
