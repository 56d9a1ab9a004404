"""The choice between engines: costs by hand, and every way the choice can fall."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossa_jax.errors import Refusal
from mossa_jax.similarity import compare_states, engine
from mossa_jax.similarity.streamed import moments
from mossa_jax.similarity.streamed.values import similarities_of

PAIRS = [(0, 1), (0, 2), (2, 0), (1, 1)]
LLAMA = dict(models=3, layers=34, width=4096, pairs=PAIRS)


def test_costs_of_llama_2_7b():
    costs = engine.estimate_costs(rows=10_000, devices=16, pool="last", **LLAMA)
    # 5.41 GB of float32 states a model on 16 devices; a layer of three models whole, twice; four tiles of 1000^2.
    assert costs.kept.bytes == pytest.approx(3 * 34 * 1e4 * 4096 * 4 / 16 + 2 * 3 * 1e4 * 4096 * 4, rel=0.02)
    # Half of 2 n^2 D per model and layer, a tenth more for diagonal tiles.
    assert costs.kept.flops == pytest.approx(1.1 * 34 * 3 * 1e4**2 * 4096, rel=0.01)
    # Three symmetric products (36 of 64 blocks) and two crossed ones; sums and carry.
    entries = (3 * 36 / 64 + 2) * 4096**2
    assert costs.moments.bytes == pytest.approx(2 * 4 * 34 * entries / 16, rel=0.01)
    assert costs.moments.flops == pytest.approx(2 * 34 * 1e4 * entries, rel=0.01)
    more = engine.estimate_costs(rows=10_000_000, devices=16, pool="all", **LLAMA)
    assert more.moments.bytes == costs.moments.bytes and more.moments.flops == 1000 * costs.moments.flops


def test_estimates_are_what_the_programs_do():
    """Operations are those that XLA counts, and bytes those that the state of the stream takes."""
    costs = engine.estimate_costs(2, 1, 512, 256, [(0, 1)], 1, "last")
    state = moments.start_stream(np.zeros((2, 256)), [(0, 1)])
    held = sum(leaf.nbytes for leaf in jax.tree.leaves((state.sums, state.carry)))
    assert held == pytest.approx(costs.moments.bytes, rel=0.02)
    rows, valid = jnp.zeros((2, 512, 256)), np.ones(512, bool)
    counted = moments.update.lower(state, rows, valid).compile().cost_analysis()
    assert counted["flops"] == pytest.approx(costs.moments.flops, rel=0.1)


@pytest.mark.parametrize(
    "rows, pool, memory, chosen, said",
    [
        (10_000, "last", 16 << 30, "kept", "with intervals"),
        (1_000_000, "last", 16 << 30, "moments", "kept rows do not fit"),
        (20_000, "all", 80 << 30, "moments", "fewer operations"),
        (2_000, "all", 80 << 30, "kept", "with intervals"),
    ],
)
def test_choice(rows, pool, memory, chosen, said, caplog):
    costs = engine.estimate_costs(rows=rows, devices=16, pool=pool, **LLAMA)
    with caplog.at_level(logging.DEBUG, logger="mossa_jax"):
        assert engine.choose(costs, memory) == chosen
    (line,) = caplog.messages
    assert line.startswith(f"similarities from {chosen}: {said}") and "GiB per device" in line


def test_choice_is_overridden_and_refused():
    costs = engine.estimate_costs(rows=1_000_000, devices=1, pool="last", **LLAMA)
    assert engine.choose(costs, 1 << 30, "kept") == "kept"
    with pytest.raises(Refusal, match=r"neither engine .* fits into .*use more devices") as raised:
        engine.choose(costs, 1 << 30)
    assert raised.value.code == 2
    with pytest.raises(Refusal, match="engine is 'gram'; give one of auto, kept, moments"):
        engine.choose(costs, 1 << 30, "gram")
    assert engine.memory_per_device() > 1 << 28


def test_both_engines_give_the_same_table():
    rng = np.random.default_rng(0)
    states = rng.normal(size=(3, 2, 64, 10)).astype(np.float32)
    states[1] += states[0]
    state = jax.vmap(lambda shift: moments.start_stream(shift, PAIRS))(np.moveaxis(states[:, :, 0], 1, 0))
    state = jax.vmap(moments.update, (0, 0, None))(state, np.moveaxis(states, 1, 0), np.ones(64, bool))
    streamed, kept = similarities_of(state), compare_states(states, np.ones(64, bool), PAIRS)
    for name in ("value", "null_mean", "participation_ratio", "offset"):
        np.testing.assert_allclose(getattr(streamed, name), getattr(kept, name), rtol=1e-5, atol=1e-6, err_msg=name)
    assert (streamed.undefined == kept.undefined).all() and streamed.n == kept.n
