"""A kernel that does not work on this machine is found out before a run rests on it."""

import jax
import jax.numpy as jnp
import pytest

from mossa_jax.devices.mesh import single_device
from mossa_jax.llama import attention, kernel_check
from mossa_jax.llama.attention import choose_body

LIBRARY = jax.nn.dot_product_attention


def works(*arrays, implementation, **options):
    return LIBRARY(*arrays, implementation="xla", **options)


def fails(*arrays, implementation, **options):
    raise RuntimeError("cuDNN finds no engine\nand says more")


def sees_too_much(*arrays, mask, implementation, **options):
    return LIBRARY(*arrays, mask=jnp.roll(mask, 1, axis=-1) | mask, implementation="xla", **options)


@jax.custom_vjp
def _doubled_gradient(x):
    return x


_doubled_gradient.defvjp(lambda x: (x, None), lambda _, gradient: (2 * gradient,))


def has_wrong_gradients(q, k, v, *, implementation, **options):
    return LIBRARY(q, _doubled_gradient(k), v, implementation="xla", **options)


@pytest.fixture(autouse=True)
def a_platform_with_cudnn(monkeypatch):
    monkeypatch.setattr(attention, "_KERNELS", {"cpu": "cudnn"})
    kernel_check._fault.cache_clear()
    yield
    kernel_check._fault.cache_clear()
    attention.unusable.clear()


@pytest.mark.parametrize(
    ("library", "said"),
    [
        (works, None),
        (fails, "cuDNN finds no engine)"),
        (sees_too_much, "its outputs are off by"),
        (has_wrong_gradients, "gradients by k are off by"),
    ],
)
def test_the_xla_body_takes_the_place_of_a_kernel_that_fails_or_is_wrong(monkeypatch, caplog, library, said):
    monkeypatch.setattr(jax.nn, "dot_product_attention", library)
    choice = lambda: choose_body(single_device(), jnp.bfloat16, 16)  # noqa: E731
    assert choice() == "cudnn"
    with caplog.at_level("WARNING", "mossa"):
        kernel_check.check_kernel(single_device(), jnp.bfloat16, 16)
    if said is None:
        assert choice() == "cudnn" and not caplog.records
    else:
        assert choice() == "xla"
        (record,) = caplog.records
        assert said in record.getMessage() and "XLA body takes its place" in record.getMessage()


def test_float32_tries_no_kernel(monkeypatch):
    monkeypatch.setattr(jax.nn, "dot_product_attention", fails)
    kernel_check.check_kernel(single_device(), jnp.float32, 16)
    assert not attention.unusable
