"""The parity check of a run: it passes where we equal transformers, and sees where we do not."""

import gc
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mossa_jax.errors import Refusal
from mossa_jax.llama.files.load import load_model
from mossa_jax.states import parity as parity_lib
from mossa_jax.states.parity import parity, parity_or_reason, relative_differences
from tests.support.tiny_llama import NAMES, import_torch, random_prompts, torch_states, write_family

torch = import_torch()
PROMPTS = random_prompts(4, seed=5)


def test_float32_equals_transformers_and_bfloat16_visibly_less(tiny):
    narrow = parity(load_model(str(tiny.folder), dtype="bfloat16"), PROMPTS)
    table = parity(load_model(str(tiny.folder)), PROMPTS)
    assert table.columns.tolist() == ["layer", "max_abs_difference", "largest"]
    assert table.layer.tolist() == [*NAMES, "logits"] == narrow.layer.tolist()
    # The embedding is looked up: equal to the last bit.
    assert table.max_abs_difference[0] == 0 and relative_differences(table)[1:].min() > 0
    assert relative_differences(table).max() < 1e-4
    assert relative_differences(narrow)[1:].min() > 1e-3 and relative_differences(narrow).max() < 0.1
    # `largest` is the reference's own, over every token and prompt.
    wanted = torch_states(tiny.torch_model, PROMPTS)
    largest = [max(np.abs(states[name]).max() for states in wanted) for name in table.layer]
    np.testing.assert_allclose(table.largest, largest, rtol=1e-6)
    assert len(set(largest)) == len(largest)


@pytest.mark.parametrize("name", ["dynamic", "mistral", "qwen3_biases"])
def test_other_families(tmp_path, name):
    write_family(tmp_path, name)
    lengths = (31, 27, 4, 9)  # two beyond the 24 positions that dynamic RoPE starts from, the longest first
    prompts = [random_prompts(1, seed=length, shortest=length, longest=length)[0] for length in lengths]
    assert relative_differences(parity(load_model(str(tmp_path)), prompts)).max() < 1e-4


def test_weights_that_changed_on_disk_are_seen_from_their_layer_on(tiny, tmp_path):
    folder = shutil.copytree(tiny.folder, tmp_path / "model")
    model = load_model(str(folder))
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: np.array(tensor) for name, tensor in tensors.items()}
    tensors["model.layers.1.mlp.down_proj.weight"] *= 1.01
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = relative_differences(parity(model, PROMPTS))
    names = [*NAMES, "logits"]
    assert found[: names.index("2")].max() < 1e-5 and found[names.index("2") :].min() > 1e-4


def test_every_token_counts(tiny, monkeypatch):
    model = load_model(str(tiny.folder))
    honest = parity_lib._states_and_logits

    def one_value_off(*arguments):
        states = [np.array(part) for part in honest(*arguments)]
        states[2][1, 0, 3] += 1.0
        return states

    monkeypatch.setattr(parity_lib, "_states_and_logits", one_value_off)
    found = parity(model, PROMPTS).max_abs_difference
    assert found[2] == pytest.approx(1, abs=1e-3) and found.drop(2).max() < 1e-3


def test_nothing_of_torch_is_left(tiny):
    def models():
        gc.collect()
        return sum(type(item).__name__ == "LlamaForCausalLM" for item in gc.get_objects())

    before = models()
    torch.set_num_threads(2)
    try:
        parity(load_model(str(tiny.folder)), PROMPTS)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert models() == before


def test_without_torch_the_reason_is_said_and_nothing_is_loaded(tiny, monkeypatch):
    model = load_model(str(tiny.folder))
    monkeypatch.setitem(sys.modules, "torch", None)
    assert parity_or_reason(model.architecture, lambda: pytest.fail("loaded")) == "torch is not installed"


def test_a_model_too_large_for_this_host_is_not_checked(tiny, tmp_path, monkeypatch):
    model = load_model(str(tiny.folder))
    needed = 4 * sum(parameter.numel() for parameter in tiny.torch_model.parameters())
    memory = tmp_path / "meminfo"
    monkeypatch.setattr(parity_lib, "_MEMORY", memory)
    memory.write_text(f"MemTotal: 999999999 kB\nMemAvailable:   {2 * needed // 1024 - 1} kB\n")
    assert "more than half" in parity_or_reason(model.architecture, lambda: pytest.fail("loaded"))
    memory.write_text(f"MemTotal: 999999999 kB\nMemAvailable:   {2 * needed // 1024 + 1} kB\n")
    assert len(parity_or_reason(model.architecture, lambda: (model, PROMPTS))) == len(NAMES) + 1
    memory.unlink()
    assert parity_lib.parity_obstacle(model.architecture) == ""
    monkeypatch.setattr(parity_lib, "_LIMIT_ELSEWHERE", needed - 1)
    assert "do not say" in parity_lib.parity_obstacle(model.architecture)


def test_a_folder_that_transformers_cannot_load_is_said_in_a_line(tiny, tmp_path):
    folder = shutil.copytree(tiny.folder, tmp_path / "model")
    model = load_model(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(Refusal) as caught:
        parity(model, PROMPTS)
    reason = parity_or_reason(model.architecture, lambda: (model, PROMPTS))
    assert reason == str(caught.value) and caught.value.code == 3
    assert reason.startswith(f"transformers cannot run {folder} (OSError: ") and "\n" not in reason


PROGRAM = """
import json, sys
import mossa_jax as mossa
from mossa_jax.config import Mesh
from mossa_jax.devices.mesh import make_mesh
from mossa_jax.states.parity import parity, relative_differences

folder, prompts = json.loads(sys.argv[1])
model = mossa.load_model(folder, mesh=make_mesh(Mesh(adapter=1, fsdp=4, tensor=2)))
assert relative_differences(parity(model, prompts)).max() < 1e-4
print("equal")
"""


@pytest.mark.slow
def test_on_eight_devices(root, tiny):
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    given = json.dumps([str(tiny.folder), PROMPTS[:3]])  # three rows on four devices
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, given], cwd=root, env={**os.environ, **flags}, capture_output=True, text=True
    )
    assert done.stdout.endswith("equal\n"), done.stderr[-3000:]
