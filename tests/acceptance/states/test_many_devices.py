"""Weights, states and tables on eight devices equal those on one."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.tiny_llama import random_texts

PROGRAM = """
import json, sys
import jax, numpy as np
import mossa_jax as mossa
from mossa_jax.config import Mesh
from mossa_jax.llama.adapters import stack
from mossa_jax.llama.files.peft import load_adapter
from mossa_jax.devices.mesh import make_mesh
from mossa_jax.similarity.streamed.forward import start_layers, stream_batch
from mossa_jax.similarity.streamed.values import similarities_of
from mossa_jax.states.prompts import PassConfig, PromptPass
from mossa_jax.tokens.packing import Packing

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

rng = np.random.default_rng(0)
pairs, config = ((0, 1), (0, 2), (1, 2)), PassConfig("all", 4, Packing(64))
prompts = [rng.integers(3, one.architecture.vocab, size).tolist() for size in rng.integers(5, 20, 40)]
found = []
for model in (one, many):
    arch = model.architecture
    stacked = stack(arch, [{}, *(load_adapter(path, arch) for path in adapters)])
    run = PromptPass(model, stacked, prompts, config)
    state, batches = start_layers(arch, 3, pairs, model.mesh), 0
    for batch in run.batches():
        places = [(leaf.sharding, leaf.ndim) for leaf in jax.tree.leaves(state)]
        state = stream_batch(run.spec, *run.arguments, batch, run.prefix, state)
        # Where it is handed on otherwise than it came, the next batch compiles again.
        after = [leaf.sharding for leaf in jax.tree.leaves(state)]
        assert all(new.is_equivalent_to(*old) for new, old in zip(after, places, strict=True))
        batches += 1
    assert batches > 1
    for sums in (state.sums, state.carry):
        for leaf in (sums.own, sums.cross):
            assert leaf.addressable_shards[0].data.size * model.mesh.size == leaf.size, leaf.sharding
    found.append(similarities_of(state))
assert (found[0].undefined == "").any() and (found[0].undefined == found[1].undefined).all()
np.testing.assert_allclose(found[0].value, found[1].value, atol=1e-5)
print("equal")
"""

COMMON_SHAPES = """
import json, sys
import jax, numpy as np
import mossa_jax as mossa
from mossa_jax.config import Mesh
from mossa_jax.devices.mesh import make_mesh, replicated
from mossa_jax.llama.adapters import stack
from mossa_jax.llama.files.peft import load_adapter
from mossa_jax.similarity import compare_states
from mossa_jax.states import PassConfig, keep_states
from mossa_jax.tokens.packing import Packing

folder, adapters, _ = json.loads(sys.argv[1])
mesh = make_mesh(Mesh(adapter=1, fsdp=4, tensor=2))
rng = np.random.default_rng(0)
prefix, *prompts = [rng.integers(3, 700, size).tolist() for size in (30, *rng.integers(5, 20, 40))]
lists = [[prefix + own for own in prompts[:9]], prompts[:21], prompts * 4]
config, found = PassConfig("last", 8, Packing(64)), []
for model in (mossa.load_model(folder), mossa.load_model(folder, mesh=mesh)):
    stacked = stack(model.architecture, [load_adapter(path, model.architecture) for path in adapters])
    fsdp, sizes = model.mesh.shape["fsdp"], [config.pack(model.architecture, own).sizes for own in lists]
    shapes = config.shapes(sizes, model.mesh)
    assert [shape.prefix_length for shape in shapes] == [0, 32]
    assert all(size % fsdp == 0 for shape in shapes for rows in shape.rows for size in rows.batches)
    kept = [keep_states(model, stacked, own, config, shapes) for own in lists]
    assert [each.rows for each in kept] == [128, 128, 256] and {each.states.shape[2] for each in kept} == {256}
    values = [compare_states(each.states, each.valid, [(0, 1)], rows=each.rows).value for each in kept]
    states = [jax.device_put(each.states, replicated(model.mesh)).addressable_data(0) for each in kept]
    found.append([*values, *map(np.asarray, states)])
for one, many in zip(*found, strict=True):
    np.testing.assert_allclose(one, many, rtol=1e-4, atol=1e-4)
print("equal")
"""


@pytest.mark.parametrize("program", [PROGRAM, COMMON_SHAPES], ids=["one list", "lists with common shapes"])
def test_eight_devices_equal_one(root, tiny, tiny_adapters, program):
    # 21 prompts: rows, batches and slots do not divide by the devices.
    given = [str(tiny.folder), [str(folder) for folder, _ in tiny_adapters], random_texts(21)]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(given)],
        cwd=root,
        env={**os.environ, **flags, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and done.stdout.endswith("equal\n"), done.stderr[-3000:]
