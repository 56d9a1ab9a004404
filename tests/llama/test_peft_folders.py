"""Adapters by peft in, ours out to peft."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_parity import padded
from tiny_llama import LAYERS, TARGETS, distance, random_prompts, torch_model, torch_states, write_adapter

from mossa_jax.llama.adapters import initial_adapter, stack
from mossa_jax.llama.attention import Segments
from mossa_jax.llama.load import load_model
from mossa_jax.llama.model import logits, merge, run_blocks
from mossa_jax.llama.peft import is_adapter, load_adapter, save_adapter
from mossa_jax.rundir import Refusal

PROMPTS = random_prompts(5, seed=8)


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(str(tiny.folder))


def our_logits(model, adapter):
    module = merge(model.architecture, model.state)
    tokens, positions, segments = padded(PROMPTS, 16)
    _, last, _ = run_blocks(
        module, model.architecture, adapter, tokens, positions, Segments(segments), tap=lambda *_: None
    )
    found = np.asarray(logits(module, model.architecture, last))
    return [found[row, : len(ids)] for row, ids in enumerate(PROMPTS)]


def assert_same_logits(ours, torch_model, tolerance=1e-4):
    for found, wanted in zip(ours, torch_states(torch_model, PROMPTS), strict=True):
        assert distance(found, wanted["logits"]) < tolerance


@pytest.mark.parametrize("which", [0, 1])
def test_an_adapter_by_peft_gives_its_logits(model, tiny, tiny_adapters, which):
    folder, reference = tiny_adapters[which]
    assert is_adapter(folder) and not is_adapter(tiny.folder)
    adapter = load_adapter(folder, model.architecture)
    assert set(adapter) == (set(TARGETS) if which == 0 else {"q_proj", "down_proj"})
    ours = our_logits(model, adapter)
    assert_same_logits(ours, reference)
    assert distance(ours[0], our_logits(model, {})[0]) > 0.01


def test_stacking_pads_ranks_and_targets_without_a_change(model, tiny_adapters):
    arch = model.architecture
    adapters = [load_adapter(folder, arch) for folder, _ in tiny_adapters]
    stacked = stack(arch, [{}, *adapters])
    for index, wanted in enumerate([{}, *adapters]):
        one = {target: {k: leaf[index] for k, leaf in part.items()} for target, part in stacked.items()}
        for found, alone in zip(our_logits(model, one), our_logits(model, wanted), strict=True):
            assert distance(found, alone) < 1e-6


def random_adapter(arch, first_layer=0, targets=TARGETS):
    adapter = initial_adapter(arch, targets, 4, 6.0, first_layer, (3, 1))
    rng = np.random.default_rng(9)
    for part in adapter.values():
        part["b"] = rng.normal(0, 0.15, part["b"].shape).astype(np.float32)
        part["b"][:first_layer] = 0
    return adapter


@pytest.mark.parametrize("first_layer", [0, 2])
def test_our_adapter_loads_in_peft_with_the_same_logits(model, tiny, tmp_path, first_layer):
    peft = pytest.importorskip("peft")
    adapter = random_adapter(model.architecture, first_layer)
    save_adapter(tmp_path / "ours", adapter, str(tiny.folder), {"task": "none"})
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = peft.PeftModel.from_pretrained(torch_model(tiny.folder), tmp_path / "ours").eval()
    assert not [w for w in caught if "missing" in str(w.message) or "unexpected" in str(w.message)]
    carried = {name for name, _ in loaded.named_parameters() if "lora_" in name}
    stored = load_file(tmp_path / "ours/adapter_model.safetensors")
    assert {name.replace(".default.weight", ".weight") for name in carried} == set(stored)
    assert len(stored) == 2 * len(TARGETS) * (LAYERS - first_layer)
    assert_same_logits(our_logits(model, adapter), loaded)
    again = load_adapter(tmp_path / "ours", model.architecture)
    assert all(np.array_equal(again[t][k], adapter[t][k]) for t in adapter for k in ("a", "b", "scale"))


def test_layers_to_transform_by_peft(model, tiny, tmp_path):
    reference = write_adapter(tiny.folder, tmp_path / "upper", layers=[1, 2], targets=("v_proj", "up_proj"))
    adapter = load_adapter(tmp_path / "upper", model.architecture)
    assert adapter["v_proj"]["scale"].tolist() == [0, *[pytest.approx(5 / 3)] * 2]
    assert_same_logits(our_logits(model, adapter), reference)


@pytest.fixture
def copy(tiny_adapters, tmp_path):
    return shutil.copytree(tiny_adapters[0][0], tmp_path / "copy")


def refused(folder, model) -> str:
    with pytest.raises(Refusal) as caught:
        load_adapter(folder, model.architecture)
    assert caught.value.code == 3
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"use_rslora": True}, "use_rslora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 7}}, "rank_pattern"),
        ({"bias": "all"}, "bias"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"r": None}, "r or lora_alpha"),
        ({"r": 5}, "shape"),
    ],
)
def test_adapter_variants_that_are_refused(copy, model, change, words):
    config = json.loads((copy / "adapter_config.json").read_text()) | change
    (copy / "adapter_config.json").write_text(json.dumps(config))
    assert words in refused(copy, model)


def test_missing_and_extra_tensors_are_refused(copy, model):
    path = copy / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"]
    tensors["base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"] = np.zeros((3, 32), np.float32)
    tensors["base_model.model.lm_head.lora_A.weight"] = np.zeros((3, 32), np.float32)
    save_file(tensors, path)
    message = refused(copy, model)
    for part in ("missing layers.1.up_proj.lora_B", "layers.7.self_attn", "unexpected base_model.model.lm_head"):
        assert part in message
    path.unlink()
    (copy / "adapter_model.bin").write_bytes(b"pickle")
    assert "adapter_model.safetensors" in refused(copy, model)
    path.write_bytes(b"not a safetensors file")
    assert "not a readable" in refused(copy, model)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_adapters_are_read(copy, model, dtype):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    path = copy / "adapter_model.safetensors"
    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in load_torch(path).items()}
    save_torch(tensors, path)
    wanted = tensors["base_model.model.model.layers.2.mlp.down_proj.lora_A.weight"].float().numpy()
    assert np.array_equal(load_adapter(copy, model.architecture)["down_proj"]["a"][2], wanted.T)
