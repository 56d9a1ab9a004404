"""The subset of the panel: the largest that its share allows, and the same in every attempt."""

from types import SimpleNamespace

import pytest

from mossa_jax.run.analyse import measures_subset
from mossa_jax.run.analyse.measures_subset import choose_subset


@pytest.fixture
def choose(monkeypatch):
    """Chooses a subset of a network of 32 blocks and tasks of 1,000 rows; a panel costs prompts^2 x layers."""
    monkeypatch.setattr(measures_subset, "panel_tasks", lambda run: ["a", "b"])
    monkeypatch.setattr(measures_subset, "_test_rows", lambda run, task: run.rows)
    monkeypatch.setattr(measures_subset, "comparison_operations", lambda run: 256.0**2 * 8 * 5)
    monkeypatch.setattr(measures_subset, "subset_operations", lambda run, prompts, layers: float(prompts**2 * layers))

    def subset(share, prompts=256, layers=8, rows=1000):
        config = SimpleNamespace(measures_share=share, measures_prompts=prompts, measures_layers=layers)
        run = SimpleNamespace(
            config=SimpleNamespace(analyse=config), architecture=SimpleNamespace(layers=32), rows=rows
        )
        return choose_subset(run)

    return subset


def test_a_panel_within_its_share_is_whole(choose):
    subset = choose(0.2)
    assert (subset.prompts, len(subset.layers), subset.share) == (256, 8, pytest.approx(0.2))
    assert subset.layers == (1, 5, 10, 14, 19, 23, 28, 32)
    assert choose(0.0, prompts=900, layers=32).prompts == 900
    assert choose(0.2, rows=60).prompts == 60


@pytest.mark.parametrize("share", [0.1, 0.05, 0.02])
def test_a_panel_beyond_its_share_is_the_largest_that_fits(choose, share):
    subset = choose(share)
    size = subset.prompts * len(subset.layers)
    assert subset.share <= share and subset == choose(share)
    assert subset.layers[0] == 1 and subset.layers[-1] == 32
    for prompts in range(48, 257, 16):
        for layers in range(4, 9):
            fits = prompts**2 * layers / (256.0**2 * 8 * 5) <= share
            assert not fits or prompts * layers <= size


def test_the_smallest_panel_is_made_whatever_its_share(choose):
    subset = choose(1e-6)
    assert (subset.prompts, len(subset.layers)) == (48, 4) and subset.share > 1e-6
