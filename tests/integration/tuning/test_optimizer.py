"""The optimizer against torch's AdamW, clipping and cosine."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossa_jax.tuning.optimizer import Optimizer
from tests.support.tiny_llama import distance

STEPS = 20


def test_twenty_steps_equal_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    data, target = rng.normal(size=(12, 5)), rng.normal(size=(12, 3))
    start = rng.normal(size=(5, 3))

    weights = torch.nn.Parameter(torch.tensor(start, dtype=torch.float32))
    theirs = torch.optim.AdamW([weights], lr=0.2, betas=(0.8, 0.95), weight_decay=0.1)
    cosine = torch.optim.lr_scheduler.LambdaLR(theirs, lambda t: 0.5 * (1 + math.cos(math.pi * t / STEPS)))
    clipped = 0
    for _ in range(STEPS):
        theirs.zero_grad()
        residual = torch.tensor(data, dtype=torch.float32) @ weights - torch.tensor(target, dtype=torch.float32)
        (residual**2).sum().backward()
        clipped += float(torch.nn.utils.clip_grad_norm_([weights], 25.0)) > 25.0
        theirs.step()
        cosine.step()
    assert 0 < clipped < STEPS  # some gradients are clipped and some are not

    ours = Optimizer(0.2, 0.0, 0.8, 0.95, 0.1, 25.0)
    parameters = {"w": jnp.asarray(start, jnp.float32)}
    moments = ours.transformation().init(parameters)
    loss = lambda p: jnp.sum((jnp.asarray(data, jnp.float32) @ p["w"] - jnp.asarray(target, jnp.float32)) ** 2)  # noqa: E731
    for step in range(STEPS):
        parameters, moments = ours.update(jax.grad(loss)(parameters), moments, parameters, step, STEPS)
    assert distance(parameters["w"], weights.detach().numpy()) < 1e-5
    assert distance(parameters["w"], start) > 0.1


def test_the_rate_rises_and_falls():
    rate = Optimizer(2.0, 0.25, 0.9, 0.99, 0.0, 1.0).rate
    rates = [float(rate(step, 40)) for step in range(41)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10:] == pytest.approx([1 + math.cos(math.pi * t / 30) for t in range(31)], abs=1e-6)
    # Two models in one program, each with a schedule of its own length.
    both = rate(jnp.asarray([5, 5]), jnp.asarray([10, 20]))
    assert both[0] == pytest.approx(rate(5, 10)) and both[1] == pytest.approx(rate(5, 20))
