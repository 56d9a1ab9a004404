"""Rows sharded over eight devices give what one device gives."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]

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
rows = jax.device_put(states[:2, 0], NamedSharding(mesh, P(None, ("fsdp", "tensor"))))
assert abs(cka(rows[0], rows[1]) - cka(states[0, 0], states[1, 0])) < 1e-6
print("equal")
"""


def test_eight_devices_equal_one():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**os.environ, **flags, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and done.stdout.endswith("equal\n"), done.stderr[-2000:]
