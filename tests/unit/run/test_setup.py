"""What the set-up table of the page says: read off config, record and environment, and nothing that is not known."""

from types import SimpleNamespace

import pytest

from mossa_jax.config import Config
from mossa_jax.llama.architecture import Architecture
from mossa_jax.run import setup
from mossa_jax.tasks.controls import Control

# The sizes of Llama 2 7B, whose matrices have 6,738,149,376 parameters: all of its 6,738,415,616 but the norms'.
LLAMA = {
    "vocab": 32000, "hidden": 4096, "feed_forward": 11008, "layers": 32, "heads": 32, "kv_heads": 32, "head_dim": 128,
    "norm_eps": 1e-5, "rope": {}, "positions": 4096, "tied_head": False, "a_later_field": 1,
}  # fmt: skip


def split(rows):
    return {"rows": rows}


def record(**fingerprints):
    return {
        "suite": "two tasks",
        "fingerprints": fingerprints,
        "template": {"name": "none", "text": "{content}", "digest": "9e5a"},
        "tasks": {
            "a": {"cluster": "x", "held_out": False, "train": split(500), "test": split(64)},
            "b": {"cluster": "y", "held_out": True, "train": split(700), "test": split(64)},
        },
    }


def described(environment=None, steps=None, controls=(), **fingerprints):
    steps = {"tuned": 600, "a": 150, "b": 160} if steps is None else steps
    return setup.run_setup(Config(), record(**fingerprints), environment or {}, list(controls), steps)


def test_the_base_is_told_by_its_name_its_weights_and_its_sizes():
    base = described(architecture=LLAMA, weights="350d")["Base model"]
    assert base["Digest of the weights"] == "350d" and base["Layers"] == "32" and base["Width of a state"] == "4,096"
    assert base["Parameters of its matrices"] == "6.74 billion" and base["Attention heads"] == "32"
    assert setup.parameters(setup.recorded_architecture(record(architecture=LLAMA))) == 6_738_149_376


def test_adapters_are_counted_by_hand():
    """Rank 8 on q and v of Llama 2 7B: 32 layers of two projections of 8 x (4096 + 4096) numbers."""
    architecture = setup.recorded_architecture(record(architecture=LLAMA))
    assert isinstance(architecture, Architecture)
    assert setup.adapter_parameters(Config(), architecture) == 32 * 2 * 8 * 8192 == 4_194_304
    assert described(architecture=LLAMA)["Tuning"]["Parameters of an adapter"] == "4.19 million"


def test_tasks_and_schedules_are_ranges_and_counts():
    groups = described()
    assert groups["Tasks"]["Tasks"] == "2 in 2 clusters" and groups["Tasks"]["Held out of the mixture"] == "1"
    assert groups["Tasks"]["Training rows per task"] == "500 to 700"
    assert groups["Tasks"]["Training rows of the tasks in the mixture"] == "500"
    assert groups["Tasks"]["Test prompts per task"] == "64"
    assert groups["Tasks"]["Template"] == "none: {content}"
    assert groups["E"]["Steps"] == "600" and groups["Specialists"]["Steps"] == "150 to 160"
    assert groups["E"]["Peak learning rate"].startswith("5e-05")


def test_seeds_and_twins_are_counted():
    task = SimpleNamespace(name="a")
    controls = [Control("a", task), Control("a.seed1", task), Control("a.twin", task, is_twin=True)]
    tuning = described(controls=controls)["Tuning"]
    assert [tuning[name] for name in ("Specialists", "Further seeds of specialists", "Twins")] == ["1", "1", "1"]


def test_all_machines_and_commits_of_a_run_are_named_once():
    start = {"commit": "abc", "device": "TPU v5", "devices": 4, "processes": 2}
    here = {"commit": "", "device": "cpu", "devices": 1, "processes": 1}
    machine = described({"packages": {"mossa_jax": "0.1", "jax": "0.2"}, "starts": [start, here, start]})["Machine"]
    assert machine["Devices"] == "4 × TPU v5 (2 processes); 1 × cpu (1 process)"
    assert machine["Commit of mossa_jax"] == "abc; none, an installed package"
    assert machine["mossa_jax, JAX"] == "0.1, 0.2"


def test_what_is_not_known_is_absent():
    groups = described(steps={})
    assert "Layers" not in groups["Base model"] and "Revision" not in groups["Base model"]
    assert "Steps" not in groups["E"] and groups["Machine"] == {}
    assert "Parameters of an adapter" not in groups["Tuning"]


@pytest.mark.parametrize(
    ("number", "text"),
    [(7, "7"), (999, "999"), (78_100, "78.1 thousand"), (6_738_149_376, "6.74 billion"), (999_900, "1,000 thousand")],
)
def test_large_numbers_have_three_digits(number, text):
    assert setup.short_count(number) == text
