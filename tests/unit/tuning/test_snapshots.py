"""After how many steps an adapter is kept."""

import numpy as np
import pytest

from mossa_jax.tuning.optimizer import Optimizer
from mossa_jax.tuning.snapshots import snapshot_steps


def test_shares_of_the_steps_are_halved_from_the_end_to_the_beginning():
    assert snapshot_steps(160, 4) == (10, 20, 40, 80)
    assert snapshot_steps(600, 2) == (150, 300)
    assert snapshot_steps(7, 2) == (2, 4)  # 1.75 and 3.5
    assert snapshot_steps(160, 0) == ()


@pytest.mark.parametrize("steps", range(1, 40))
def test_short_models_have_fewer_snapshots_and_never_their_end(steps):
    kept = snapshot_steps(steps, 5)
    assert list(kept) == sorted(set(kept)) and len(kept) <= 5
    assert all(1 <= step < steps for step in kept)


def test_half_of_the_steps_leave_a_fifth_of_a_cosine_schedule():
    rates = np.asarray(Optimizer(1.0, 0.0, 0.9, 0.999, 0.0, 1.0).rate(np.arange(1000), np.full(1000, 1000)))
    (half,) = snapshot_steps(1000, 1)
    assert rates[half:].sum() / rates.sum() == pytest.approx(0.5 - 1 / np.pi, abs=1e-3)
