"""Streamed moments equal the whole set, whatever the batching, order, merging and number of rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossa_jax.errors import Refusal
from mossa_jax.similarity import ESTIMATORS, reference
from mossa_jax.similarity.streamed import moments
from mossa_jax.similarity.streamed.values import similarities_of
from tests.support.traps import PAIRS, benign, expected, shifted

BATCH = 32


def begin(shifts, pairs=PAIRS):
    """Returns a stream of one layer, with the leading axis that `similarities_of` expects."""
    return jax.vmap(functools.partial(moments.start_stream, pairs=pairs))(jnp.asarray(shifts, jnp.float32)[None])


add = jax.jit(jax.vmap(moments.update, in_axes=(0, 0, None)))
join = jax.jit(jax.vmap(moments.merge))


def stream(state, states, batch=BATCH):
    for first in range(0, states.shape[1], batch):
        rows = states[:, first : first + batch]
        missing = batch - rows.shape[1]
        padded = np.pad(rows, ((0, 0), (0, missing), (0, 0)), constant_values=np.nan)
        state = add(state, padded[None], np.arange(batch) < rows.shape[1])
    return state


def values(state):
    found = similarities_of(state)
    assert (found.undefined == "").all(), found.undefined
    return found.value[:, 0]


def exact(states, pairs=PAIRS):
    whole = expected(states)
    return np.array([whole[pair] for pair in pairs])


@pytest.mark.parametrize("width", [5, 24, 64, 131])
def test_any_width_is_cut_into_blocks(width):
    states = benign(n=200, d=width)
    pairs = [(0, 1), (2, 1), (1, 0), (2, 2)]
    found = similarities_of(stream(begin(states[:, :BATCH].mean(1), pairs), states))
    assert found.value[:, 0] == pytest.approx(exact(states, pairs), abs=1e-6)
    assert found.n == 200 and np.isnan(found.p).all() and np.isnan(found.low).all() and np.isnan(found.high).all()


@pytest.mark.parametrize("seed", range(6))
def test_any_order_batches_and_merging_give_the_same(seed):
    """A random order, cut into random streams with their own batches, merged in a random order."""
    rng = np.random.default_rng(seed)
    states = shifted(benign(n=150), 100)[:, rng.permutation(150)]
    empty = begin(states[:, :8].mean(1))
    cuts = np.sort(rng.choice(np.arange(1, 150), 3, replace=False))
    parts = [stream(empty, part, batch=int(rng.choice([16, BATCH]))) for part in np.split(states, cuts, axis=1)]
    while len(parts) > 1:
        first, second = (parts.pop(int(rng.integers(len(parts)))) for _ in range(2))
        parts.append(join(first, second))
    assert values(parts[0]) == pytest.approx(exact(states), abs=1e-6)
    assert values(stream(empty, states)) == pytest.approx(values(parts[0]), abs=1e-6)


def test_inside_a_scan_over_layers():
    layers = np.stack([shifted(benign(n=64, seed=k), 10 * k) for k in range(3)])
    state = jax.vmap(functools.partial(moments.start_stream, pairs=PAIRS))(layers[:, :, :8].mean(2))
    valid = np.arange(64) < 60

    @jax.jit
    def forward(state, x):
        return jax.lax.scan(lambda _, at: (None, moments.update(*at, valid)), None, (state, x))[1]

    found = similarities_of(forward(state, layers))
    for k, states in enumerate(layers):
        assert found.value[:, k] == pytest.approx(exact(states[:, :60]), abs=1e-6)


def test_the_first_rows_that_count_give_the_shift():
    """Earlier batches without valid or finite rows do not set it, and later ones do not change it."""
    states = shifted(benign(n=96), 1000)
    start = jax.jit(jax.vmap(moments.with_shift, in_axes=(0, 0, None)))
    state, valid = begin(np.zeros((3, 24))), np.ones(BATCH, bool)
    first = states[:, :BATCH].copy()
    first[1, 5] = np.inf
    for rows, counted in (
        (states[:, :BATCH], ~valid),
        (np.full_like(first, np.nan), valid),
        (first, valid),
        (states[:, BATCH : 2 * BATCH], valid),
        (states[:, 2 * BATCH :], valid),
    ):
        state = start(state, rows[None], counted)
        state = add(state, rows[None], counted)
    assert np.asarray(state.shift[0]) == pytest.approx(np.delete(first, 5, 1).mean(1), rel=1e-6)
    assert values(state) == pytest.approx(exact(np.delete(states, 5, 1)), abs=1e-6)


def test_a_long_stream_of_small_batches_keeps_its_digits():
    # 4000 additions: without carry-over the float32 sums of squares lose the seventh digit.
    states = np.random.default_rng(0).normal(size=(2, 4 * 4000, 2)).astype(np.float32) + 3
    state = begin(np.zeros((2, 2)), [(0, 1)])
    for first in range(0, states.shape[1], 4):
        state = add(state, states[None, :, first : first + 4], np.ones(4, bool))
    carried = np.asarray(state.sums.a, np.float64) - np.asarray(state.carry.a, np.float64)
    squares = carried[0] * 4.0 ** np.asarray(state.exponent)[0]
    assert squares == pytest.approx(np.square(states.astype(np.float64)).sum((1, 2)), rel=1e-7)


def test_rows_that_grow_by_forty_orders_of_magnitude():
    """The unit follows the largest entry; what came before is rescaled, not lost."""
    states = benign(n=96)
    states[:, :32] *= 1e-20
    states[:, 64:] *= 1e2
    assert values(stream(begin(np.zeros((3, 24))), states)) == pytest.approx(exact(states), abs=1e-6)
    assert values(stream(begin(np.zeros((3, 24))), states[:, ::-1])) == pytest.approx(exact(states), abs=1e-6)
    huge = benign(n=64) * np.float32(1e25)
    assert values(stream(begin(np.zeros((3, 24))), huge)) == pytest.approx(exact(huge / 1e25), abs=1e-6)


def test_a_trillion_rows():
    """Doubling a stream is exact, so closed forms of c copies of n rows are known; rows are counted one by one."""
    states = benign(n=61)
    state = once = stream(begin(states.mean(1)), states)
    copies = 1
    while 61 * copies < 10**12:
        state, copies = join(state, state), 2 * copies
    found = similarities_of(state)
    n = 61 * copies
    assert found.n == n and n > 10**12
    centred = states.astype(np.float64) - states.astype(np.float64).mean(1, keepdims=True)

    def debiased(x, y):
        r, s = np.square(x).sum(1), np.square(y).sum(1)
        traces = copies**2 * r.sum() * s.sum() / ((n - 1) * (n - 2))
        return copies**2 * np.square(x.T @ y).sum() - n / (n - 2) * copies * r @ s + traces

    for i, (a, b) in enumerate(PAIRS):
        x, y = centred[a], centred[b]
        assert found.value[i, 0, 0] == pytest.approx(reference.biased(x, y), abs=1e-6)
        ratio = debiased(x, y) / np.sqrt(debiased(x, x) * debiased(y, y))
        assert found.value[i, 0, 1] == pytest.approx(ratio, abs=1e-6)
    odd = benign(n=3)
    odd[0, 1] = np.nan
    more = similarities_of(stream(join(state, once), odd))
    assert (more.n, more.dropped) == (n + 61 + 2, 1)


def test_debiased_is_right_or_undefined_with_far_fewer_rows_than_columns():
    """It is then a small difference of large sums, whose rounding error is estimated and reported."""
    rng = np.random.default_rng(0)
    seen = set()
    for n in (4, 64):
        for width in (32, 2048):
            states = rng.normal(size=(3, n, width)).astype(np.float32)
            states[1] += states[0]
            found = similarities_of(stream(begin(states.mean(1)), states))
            for i, (a, b) in enumerate(PAIRS):
                assert found.value[i, 0, 0] == pytest.approx(reference.biased(states[a], states[b]), abs=1e-6)
                if found.undefined[i, 0, 1]:
                    assert "float32 sums are not exact" in found.undefined[i, 0, 1] and width > 8 * n
                else:
                    value = reference.debiased(states[a], states[b])
                    assert found.value[i, 0, 1] == pytest.approx(value, abs=1e-5)
                seen.add((width, bool(found.undefined[i, 0, 1])))
    assert seen >= {(32, False), (2048, True), (2048, False)}


def test_a_shift_far_from_the_mean_is_noticed():
    states = shifted(benign(), 300)
    found = similarities_of(stream(begin(np.zeros((3, 24))), states))
    assert (found.undefined == "float32 sums are not exact to 1e-5 here; keep the rows").all()
    assert np.isnan(found.value).all()
    constant = np.tile(states[:, :1], (1, 40, 1))
    found = similarities_of(stream(begin(np.zeros((3, 24))), constant))
    assert (found.undefined == "no variance in a and b").all()


def test_layers_drop_their_own_rows():
    layers = np.stack([benign(seed=1), benign(seed=2)])
    layers[1, 0, 5, 0] = np.inf
    state = jax.vmap(functools.partial(moments.start_stream, pairs=PAIRS))(np.zeros((2, 3, 24)))
    found = similarities_of(jax.vmap(moments.update, (0, 0, None))(state, layers, np.ones(40, bool)))
    assert (found.n, found.dropped) == (39, 1)
    assert found.value[:, 0] == pytest.approx(exact(layers[0]), abs=1e-6)
    assert found.value[:, 1] == pytest.approx(exact(np.delete(layers[1], 5, 1)), abs=1e-6)


def test_null_mean_is_that_over_all_pairings():
    states = benign(n=5, d=3)
    found = similarities_of(stream(begin(states.mean(1)), states))
    assert found.null_mean[:, 0, ESTIMATORS.index("debiased")] == pytest.approx(0)
    rows = np.array(np.meshgrid(*[range(5)] * 5)).reshape(5, -1).T
    rows = [order for order in rows if len(set(order)) == 5]
    for i, (a, b) in enumerate(PAIRS):
        mean = np.mean([reference.biased(states[a], states[b][order]) for order in rows])
        assert found.null_mean[i, 0, 0] == pytest.approx(mean, abs=1e-6)


def test_fast_products_are_asked_for():
    """On this platform they give the same values; the compiled text shows what a TPU or GPU is asked for."""
    states = benign()
    slow, fast = (moments.start_stream(states.mean(1), PAIRS, fast=fast) for fast in (False, True))
    texts = [moments.update.lower(state, states, np.ones(40, bool)).as_text() for state in (slow, fast)]
    assert "[HIGH, HIGH]" not in texts[0] and texts[1].count("[HIGH, HIGH]") == 1 + len(moments.crossed_pairs(PAIRS))


def test_pairs_without_a_model_are_refused():
    for pairs in ([], [(0, 3)]):
        with pytest.raises(Refusal, match="indices below 3"):
            moments.start_stream(np.zeros((3, 4)), pairs)
