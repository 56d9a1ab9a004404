"""Rows sharded over eight devices give the values of one device, and sums are spread."""

from tests.support.tiny_programs import on_eight_devices

PROGRAM = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from mossa_jax.similarity import cka, compare_states

assert len(jax.devices()) == 8
mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
rng = np.random.default_rng(0)
states = rng.normal(size=(3, 2, 320, 16)).astype(np.float32) + 20
states[1] += states[0]
states[2, 1, 5, 0] = np.nan
valid = np.arange(320) < 300
placed = jax.device_put(states, NamedSharding(mesh, P(None, None, ("fsdp", "tensor"))))
one = compare_states(states, valid, [(0, 1), (0, 2)], permutations=21)
many = compare_states(placed, valid, [(0, 1), (0, 2)], permutations=21)
assert (many.n, many.dropped) == (299, 1)
for name in ("value", "low", "high", "null_mean", "p", "participation_ratio"):
    a, b = getattr(one, name), getattr(many, name)
    assert np.isfinite(a).all()
    np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-5, err_msg=name)
# Items of 1 to 7 rows, more than a tile of them.
items = rng.permutation(np.repeat(np.arange(90), np.arange(90) % 7 + 1)[:320])
one = compare_states(states, valid, [(0, 1), (0, 2)], permutations=21, items=items)
many = compare_states(placed, valid, [(0, 1), (0, 2)], permutations=21, items=items)
assert one.units == many.units < 91 and one.repairing == "items"
for name in ("value", "low", "high", "null_mean", "p", "replicates"):
    a, b = getattr(one, name), getattr(many, name)
    assert np.isfinite(a).all()
    np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-5, err_msg=name)
rows = jax.device_put(states[:2, 0], NamedSharding(mesh, P(None, ("fsdp", "tensor"))))
assert abs(cka(rows[0], rows[1]) - cka(states[0, 0], states[1, 0])) < 1e-6
print("equal")
"""


def test_eight_devices_equal_one():
    assert on_eight_devices(PROGRAM).endswith("equal\n")


MOMENTS = """
import functools
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from mossa_jax.similarity.streamed import moments
from mossa_jax.similarity.streamed.values import similarities_of
from tests.support.traps import PAIRS, benign, expected

mesh = jax.make_mesh((1, 4, 2), ("adapter", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
layers = np.stack([benign(n=256, d=256, seed=k) + 20 for k in range(2)])
layers[1, 2, 5, 0] = np.nan
state = jax.jit(jax.vmap(functools.partial(moments.start_stream, pairs=PAIRS, mesh=mesh)))(layers[:, :, :5].mean(2))

@jax.jit
def forward(state, x):
    return jax.lax.scan(lambda _, at: (None, moments.update(*at, jnp.ones(64, bool))), None, (state, x))[1]

for first in range(0, 256, 64):
    x = jax.device_put(layers[:, :, first : first + 64], NamedSharding(mesh, P(None, None, "fsdp")))
    state = forward(state, x)
for sums in (state.sums, state.carry):
    for leaf in (sums.own, sums.cross):
        assert leaf.addressable_shards[0].data.size == leaf.size // 8, leaf.sharding
found = similarities_of(state)
assert (found.n, found.dropped) == (255, 1)
for k, states in enumerate((layers[0], np.delete(layers[1], 5, 1))):
    exact = expected(states)
    assert np.abs(found.value[:, k] - [exact[pair] for pair in PAIRS]).max() < 1e-6
print("spread")
"""


def test_sums_of_a_stream_are_spread():
    assert on_eight_devices(MOMENTS).endswith("spread\n")
