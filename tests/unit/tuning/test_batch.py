"""Gradient accumulation: sums over micro-batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossa_jax.tuning.batch import sum_over_micro_batches


@pytest.mark.parametrize("micro_batches", [2, 3])
def test_micro_batches_are_worked_through_one_after_another(micro_batches):
    """The only work is the body of one scan over all of them, so no compiler can work through two at once."""
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)), jnp.float32)

    def sums_over(batch):
        return {"products": jnp.dot(batch.T, batch), "count": batch.shape[0] * jnp.ones((), jnp.int32)}

    accumulate = lambda batch: sum_over_micro_batches(sums_over, batch, micro_batches)  # noqa: E731
    outside = jax.make_jaxpr(accumulate)(rows).eqns
    (scan,) = [equation for equation in outside if equation.primitive.name == "scan"]
    assert scan.params["length"] == micro_batches
    assert not any(equation.primitive.name == "dot_general" for equation in outside)
    sums = accumulate(rows)
    np.testing.assert_allclose(sums["products"], rows.T @ rows, rtol=1e-5)
    assert sums["count"] == 6 and sums["count"].dtype == jnp.int32
