"""Every layer with every layer, with rows spread over eight devices."""

import pytest

from tests.support.tiny_programs import on_eight_devices

EIGHT = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from mossa_jax.similarity import matrix
from tests.support.traps import benign, expected

mesh = jax.make_mesh((1, 4, 2), ("adapter", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
for n, spec in ((320, P(None, "fsdp")), (320, P(None, ("fsdp", "tensor"))), (300, P(None, "fsdp")), (12, P())):
    states = benign(n)
    states[0, 3, 0] = np.nan
    found = matrix.cka_matrix(jax.device_put(states, NamedSharding(mesh, spec)), np.arange(n) != 5)
    exact = expected(np.delete(states, [3, 5], 1))
    error = np.abs(np.stack([found.biased, found.debiased], -1) - exact).max()
    assert error < 1e-6 and (found.n, found.dropped) == (n - 2, 1), (n, spec, error)

    items = np.random.default_rng(1).integers(0, n // 3, n)
    spread = jax.device_put(states, NamedSharding(mesh, spec))
    related = matrix.cka_matrix(spread, np.arange(n) != 5, items=items)
    one = matrix.cka_matrix(jax.device_put(states, jax.devices()[0]), np.arange(n) != 5, items=items)
    error = np.abs(related.debiased - one.debiased).max()
    assert error < 1e-6 and np.abs(related.debiased - found.debiased).max() > 1e-4, (n, spec, error)

# Many rows, compiled only: a device holds its rows and much less than all of them beside.
shape = (24, 16384, 1024)
states = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(None, ("fsdp", "tensor"))))
tile = matrix.tile_rows(24, 16384, 1024, 8)
compiled = matrix.matrix_sums.lower(states, jax.ShapeDtypeStruct((16384,), bool), tile=tile, mesh=mesh).compile()
memory = compiled.memory_analysis()
total = 4 * np.prod(shape)
assert memory.argument_size_in_bytes < total / 7
assert memory.temp_size_in_bytes < total / 8, (memory.temp_size_in_bytes, total)
print("right")
"""


@pytest.mark.slow
def test_rows_stay_spread_over_eight_devices():
    assert on_eight_devices(EIGHT).endswith("right\n")
