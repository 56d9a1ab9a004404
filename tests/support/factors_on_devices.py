"""The split by factors on eight devices is that on one; test_factors_on_devices.py runs it in a process of its own."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mossa_jax.similarity.factors import split_states
from mossa_jax.similarity.projections import Factor
from tests.support.planted_factors import factors_of, labels, planted

rng = np.random.default_rng(0)
levels = labels(rng, rows=64, templates=3, answers=4, items=32)
states = planted(rng, levels, {"template": 0.3, "answer": 0.4, "rest": 0.3}, layers=5, private=0.05)
states = np.pad(states, ((0, 1), (0, 0), (0, 16), (0, 0)), constant_values=7)
valid = np.arange(80) < 64
padded = {name: np.pad(each, (0, 16)) for name, each in levels.items()}
mesh = Mesh(np.asarray(jax.devices()).reshape(4, 2), ("fsdp", "tensor"))
spread = jax.device_put(states, NamedSharding(mesh, PartitionSpec(None, None, "fsdp", "tensor")))
for factors in (factors_of(padded), {"answer": Factor(columns=rng.normal(size=(80, 5)))}):
    for items in (padded["item"], None):
        alone, dealt = (
            split_states(x, valid, factors, items=items, permutations=19) for x in (jnp.asarray(states), spread)
        )
        for name in ("whole", "part", "part_replicates", "chance", "within", "p"):
            np.testing.assert_allclose(getattr(dealt, name), getattr(alone, name), atol=2e-6, err_msg=name)
print(jax.device_count(), "right")
