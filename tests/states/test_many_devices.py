"""Weights, states and tables on eight devices equal those on one."""

import json
import os
import subprocess
import sys

from tiny_llama import random_texts

PROGRAM = """
import json, sys
import jax, numpy as np
import mossa_jax as mossa
from mossa_jax.config import Mesh
from mossa_jax.mesh import make_mesh

folder, adapters, texts = json.loads(sys.argv[1])
assert len(jax.devices()) == 8
mesh = make_mesh(Mesh(adapter=1, fsdp=4, tensor=2))
one, many = mossa.load_model(folder), mossa.load_model(folder, mesh=mesh)
pairs = zip(jax.tree.leaves_with_path(one.state), jax.tree.leaves(many.state), strict=True)
for (path, whole), spread in pairs:
    assert np.array_equal(whole, spread), path
    if whole.ndim > 1 and "norm" not in str(path):
        part = spread.sharding.shard_shape(spread.shape)
        assert np.prod(part) * 8 == whole.size, (path, part)
a, b = (mossa.compare(model, *adapters, texts) for model in (one, many))
assert a[["layer", "estimator", "n"]].equals(b[["layer", "estimator", "n"]])
for name in ("cka", "low", "high"):
    assert a[name].notna().all()
    np.testing.assert_allclose(a[name], b[name], atol=1e-4, err_msg=name)
alone, states = (mossa.layer_states(model, texts, pool="mean", adapter=adapters[0]) for model in (one, many))
for name, values in states.items():
    np.testing.assert_allclose(values, alone[name], rtol=1e-4, atol=1e-4, err_msg=name)
print("equal")
"""


def test_eight_devices_equal_one(root, tiny, tiny_adapters):
    # 21 prompts: rows, batches and slots do not divide by the devices.
    given = [str(tiny.folder), [str(folder) for folder, _ in tiny_adapters], random_texts(21)]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(given)],
        cwd=root,
        env={**os.environ, **flags, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and done.stdout.endswith("equal\n"), done.stderr[-3000:]
