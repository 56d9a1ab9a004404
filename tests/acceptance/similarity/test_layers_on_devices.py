"""Measures, spectra, variants and samples of rows sharded over eight devices are those of one device."""

import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from mossa_jax.planning.collectives import collectives
from mossa_jax.similarity import compare_states, layerwise
from mossa_jax.similarity.measures.panel import measure_panel
from mossa_jax.similarity.measures.same_layer import MEASURES, measure_states
from mossa_jax.similarity.measures.spectrum import spectrum
from mossa_jax.similarity.measures.variants import standardised, unit_rows, without_top_components
from mossa_jax.similarity.sample import sample_states

assert len(jax.devices()) == 8
mesh = jax.make_mesh((2, 2, 2), ("adapter", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
rng = np.random.default_rng(0)
states = rng.normal(size=(3, 3, 160, 16)).astype(np.float32) + 20
states[1] += states[0]
states[2, 1, 5, 0] = np.nan
valid = np.arange(160) < 150
pairs = [(0, 1), (2, 0)]
one = measure_states(states, valid, pairs), spectrum(states, valid)
placed = jax.device_put(states, NamedSharding(mesh, P(None, None, "fsdp")))
many = measure_states(placed, valid, pairs), spectrum(placed, valid)
assert (many[0].n, many[0].dropped, many[1].n) == (149, 1, 149)
for measure in MEASURES:
    a, b = one[0].value[measure], many[0].value[measure]
    assert np.isfinite(a).all()
    np.testing.assert_allclose(a, b, atol=1e-6, err_msg=measure)
for field in ("components", "participation_ratio", "top_component", "top_dimension"):
    np.testing.assert_allclose(getattr(one[1], field), getattr(many[1], field), rtol=1e-5, err_msg=field)
few = [spectrum(s, valid, models=2, rows=152) for s in (states[:2], placed)]
np.testing.assert_array_equal(few[0].components, few[1].components)
placed = jax.device_put(states, NamedSharding(mesh, P(None, None, "fsdp", "tensor")))
for width in (16, 5):
    samples = [sample_states(jnp.asarray(s), np.array([7, 149, 3]), 2, width, 0) for s in (states, placed)]
    np.testing.assert_allclose(*samples, atol=2e-5)
    assert samples[1].shape == (2, 3, 3, width)
placed = jax.device_put(states, NamedSharding(mesh, P(None, None, ("adapter", "fsdp", "tensor"))))
for variant in (standardised, without_top_components, unit_rows):
    alone, changed = variant(states, valid), variant(placed, valid)
    assert changed.sharding == placed.sharding
    np.testing.assert_allclose(alone, changed, atol=2e-5)
    a, b = (compare_states(s, valid, pairs).value for s in (alone, changed))
    assert np.isfinite(a).all()
    np.testing.assert_allclose(a, b, atol=1e-6)

# The panel, on rows spread over all axes.
for alone, spread in zip(measure_panel(states, valid, pairs), measure_panel(placed, valid, pairs), strict=True):
    assert (alone.measure, alone.variant, alone.n) == (spread.measure, spread.variant, spread.n)
    np.testing.assert_allclose(alone.value, spread.value, atol=1e-5, err_msg=f"{alone.measure}, {alone.variant}")

# The rows' axis becomes the layers' without any device holding all of both.
def norms(x, kept):
    return (x * x).sum((1, 2))

# One exchange deals them over the devices that share rows, and one over those that share columns; 3 layers become 8.
for shape, exchanges in (((1, 8, 1), 1), ((1, 4, 2), 2)):
    mesh = jax.make_mesh(shape, ("adapter", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    placed = jax.device_put(states, NamedSharding(mesh, P(None, None, "fsdp", "tensor")))
    program = jax.jit(lambda s, k: layerwise.over_layers(norms, s, k, mesh)).lower(placed, valid).compile()
    received = sum(c["bytes"] for c in collectives(program.as_text(), dict(mesh.shape)))
    assert received <= exchanges * 8 / 3 * placed.nbytes / 8, (shape, received, placed.nbytes)
print("equal")
"""


@pytest.mark.slow
def test_eight_devices_equal_one():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**os.environ, **flags, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0 and done.stdout.endswith("equal\n"), done.stderr[-2000:]
