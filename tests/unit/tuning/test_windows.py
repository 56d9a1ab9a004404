"""The losses of a curve: sums over windows of a model's own steps."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossa_jax.files.run_folder import RunFolder
from mossa_jax.tuning.curves import LossCurves, LossSinceLine, mean_loss
from mossa_jax.tuning.windows import Window, add_loss, ends_window


def windows_of(losses, length, state=None, first=0):
    """Returns the window after each step."""
    step = jax.jit(partial(add_loss, length=length))
    state = Window.of(lambda dtype: jnp.zeros((), dtype)) if state is None else state
    states = []
    for number, loss in enumerate(losses, first):
        state = step(state, jnp.int32(number), jnp.float32(loss), jnp.isfinite(jnp.float32(loss)))
        states.append(jax.tree.map(np.asarray, state))
    return states


@pytest.mark.parametrize("length", [1, 3, 20, 100])
def test_a_window_has_the_mean_of_its_own_steps_alone(length):
    losses = np.random.default_rng(0).uniform(0.1, 9.0, 50)
    states, begin = windows_of(losses, length), 0
    for done in range(1, len(losses) + 1):
        if ends_window(done, length, len(losses)):
            assert mean_loss(states[done - 1]) == pytest.approx(losses[begin:done].mean(), rel=1e-6)
            begin = done
    assert begin == len(losses)  # the last window ends with the last step


def test_a_window_cut_anywhere_goes_on_with_the_same_bits():
    losses = np.random.default_rng(1).uniform(0.1, 9.0, 12)
    whole = windows_of(losses, 5)
    for cut in range(1, 12):
        rest = windows_of(losses[cut:], 5, whole[cut - 1], cut)
        assert [tuple(map(float, state)) for state in rest] == [tuple(map(float, state)) for state in whole[cut:]]


def test_losses_that_are_not_finite_are_left_out():
    states = windows_of([1.0, np.nan, 3.0, np.inf, np.nan, np.nan], 3)
    assert mean_loss(states[2]) == 2.0 and states[2].losses == 2
    assert np.isnan(mean_loss(states[5]))


def test_the_record_has_the_mean_and_null_where_there_is_none(tmp_path):
    run_folder = RunFolder(tmp_path)
    curves = LossCurves(run_folder)
    curves.append("a", 20, Window(losses=np.int32(4), total=np.float32(3.0)), skipped=0, spikes=0)
    curves.append("a", 40, Window(losses=np.int32(0), total=np.float32(0.0)), skipped=2, spikes=1)
    assert run_folder.metrics() == [
        {"model": "a", "step": 20, "loss": 0.75},
        {"model": "a", "step": 40, "loss": None, "skipped": 2, "spikes": 1},
    ]


def test_the_loss_of_a_line_is_the_mean_over_models_and_steps_since_the_last_line():
    loss = LossSinceLine()
    assert loss.report() == ""
    loss.add(Window(losses=np.int32(10), total=np.float32(30.0)))
    loss.add(Window(losses=np.int32(2), total=np.float32(2.0)))
    assert loss.report() == "loss 2.667"
    assert loss.report() == ""  # nothing since
    loss.add(Window(losses=np.int32(4), total=np.float32(1.0)))
    assert loss.report() == "loss 0.250"
