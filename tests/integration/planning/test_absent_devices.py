"""Every program of a run compiles for TPUs and NVIDIA GPUs that are not here, with the kernels that they run there."""

import pytest

from mossa_jax.config import Mesh
from mossa_jax.errors import Refusal
from mossa_jax.planning.gpu_targets import cudnn_of_targets
from mossa_jax.planning.hardware import find_hardware
from tests.support.all_programs import SEVEN, TWO, all_programs, check_calls

pytestmark = pytest.mark.slow  # a minute on a quiet machine for each topology

TOPOLOGIES = [("h100:1", (1, 1, 1)), ("h100:8", (2, 2, 2)), ("v5e:2x2", (1, 2, 2))]
CASES = [
    ("plain", True, TWO), ("plain", False, SEVEN), ("windowed", False, TWO), ("some_windowed", False, TWO),
    ("qwen3", True, SEVEN),
]  # fmt: skip
WITHOUT_ATTENTION = ("similarity",)


def devices_of(topology: str):
    try:
        hardware = find_hardware(topology)
    except Refusal as refusal:
        pytest.skip(str(refusal))
    if not hardware.devices:
        pytest.skip(hardware.no_compiler)
    return hardware.devices


@pytest.mark.parametrize(("family", "prefix", "targets"), CASES)
@pytest.mark.parametrize(("topology", "sizes"), TOPOLOGIES)
def test_every_program_compiles_with_the_platforms_kernel(topology, sizes, family, prefix, targets):
    devices = devices_of(topology)
    kernel = "tpu_custom_call" if topology.startswith("v") else "__cudnn$fmha"
    for name, lower in all_programs(devices, Mesh(*sizes), family, prefix, targets).items():
        with cudnn_of_targets():
            text = lower().compile().as_text()
        assert (kernel in text) == (name not in WITHOUT_ATTENTION), name
        assert check_calls(text) == text.count('custom_call_target="__cudnn$fmha'), name


def test_float32_stays_with_the_xla_body_and_exact_products():
    """No kernel, which would round, and no TensorFloat-32."""
    states = all_programs(devices_of("h100:1"), Mesh(1, 1, 1), "plain", False, TWO, dtype="float32")["states"]
    lowered = states()
    assert "__cudnn$fmha" not in lowered.compile().as_text()
    products = [line for line in lowered.as_text().splitlines() if "dot_general" in line]
    assert products and all("precision = [HIGHEST, HIGHEST]" in line for line in products)
