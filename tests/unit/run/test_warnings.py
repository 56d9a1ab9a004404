"""What went wrong in training and was overcome, per model."""

from types import SimpleNamespace

from mossa_jax.run.warnings import training_counters


def test_counters_of_training_count_once_per_model():
    records = [
        {"model": "a", "spikes": 1, "step": 9},
        {"model": "a", "spikes": 4, "skipped": 0, "step": 19},
        {"model": "b", "spikes": 0, "skipped": 2, "step": 4},
        {"model": "b", "step": 9},
        {"stage": "data", "step": 99},
    ]
    assert training_counters(SimpleNamespace(metrics=lambda: records)) == {
        "a": {"spikes": 4, "skipped": 0, "steps": 19},
        "b": {"spikes": 0, "skipped": 2, "steps": 9},
    }
