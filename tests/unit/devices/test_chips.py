"""What a device is, by the names that JAX and the drivers give."""

import pytest

from mossa_jax.devices.chips import GPUS, TPUS, chip_of, memory_of


@pytest.mark.parametrize(
    ("kind", "chip", "gib"),
    [
        ("TPU v4", TPUS["v4"], 30.75),
        ("TPU v5 lite", TPUS["v5e"], 15.75),
        ("TPU v5", TPUS["v5p"], 95.73),
        ("TPU v6 lite", TPUS["v6e"], 31.24),
        ("NVIDIA A100-SXM4-40GB", GPUS["a100"], 40),
        ("NVIDIA A100-SXM4-80GB", GPUS["a100"], 80),
        ("NVIDIA H100 80GB HBM3", GPUS["h100"], 80),
        ("NVIDIA H200", GPUS["h200"], 141),
        ("NVIDIA B200", GPUS["b200"], 178.36),
        ("cpu", None, None),
    ],
)
def test_chips_by_their_device_kind(kind, chip, gib):
    assert chip_of(kind) is chip
    assert memory_of(kind) == (None if gib is None else int(gib * 2**30))


def test_float32_products_cost_six_of_bfloat16_on_a_tpu_and_their_own_units_on_a_gpu():
    assert (TPUS["v5p"].exact_products, TPUS["v5p"].fast_products) == (6, 3)
    for name, rate in (("a100", 19.5e12), ("h100", 67e12), ("h200", 67e12), ("b200", 75e12)):
        chip = GPUS[name]
        assert chip.peak / chip.exact_products == pytest.approx(rate)
        # TF32 in one pass: half of the bfloat16 rate.
        assert chip.fast_products == pytest.approx(2, rel=0.01)
