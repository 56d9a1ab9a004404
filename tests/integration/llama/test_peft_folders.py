"""Adapters that peft wrote are read here, and ours are read by peft."""

import functools
import json
import warnings

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mossa_jax.errors import Refusal
from mossa_jax.llama.adapters import initial_adapter, stack
from mossa_jax.llama.attention import Segments
from mossa_jax.llama.files import peft_modules
from mossa_jax.llama.files.load import load_model
from mossa_jax.llama.files.peft import is_adapter, load_adapter, read_adapter, save_adapter
from mossa_jax.llama.model import logits, merge, run_blocks
from tests.integration.llama.test_parity import padded
from tests.support.tiny_llama import (
    LAYERS,
    TARGETS,
    distance,
    import_torch,
    random_prompts,
    torch_model,
    torch_states,
    write_adapter,
)

PROMPTS = random_prompts(5, seed=8)

# Every way to name projections, ranks and scales, as peft's own LoraConfig takes it.
VARIANTS = {
    "patterns": {
        "r": 3,
        "lora_alpha": 5,
        "target_modules": list(TARGETS),
        "rank_pattern": {"layers.1.self_attn.q_proj": 6, "v_proj": 2, r"layers\.[02]\.mlp\.(up|gate)_proj": 4},
        "alpha_pattern": {"layers.2.self_attn.q_proj": 9.5, "self_attn.v_proj": 1, "down_proj": 7},
        "use_rslora": True,
    },
    "rslora": {"r": 5, "lora_alpha": 4, "target_modules": ["q_proj", "up_proj"], "use_rslora": True},
    "regex": {"r": 4, "lora_alpha": 6, "target_modules": r".*layers\.(0|2)\..*(k_proj|down_proj)"},
    "single_layer": {"r": 4, "lora_alpha": 6, "target_modules": ["layers.1.mlp.up_proj", "q_proj"]},
    "int_layer": {"r": 4, "lora_alpha": 6, "target_modules": ["v_proj", "o_proj"], "layers_to_transform": 1},
    "layer_list": {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": ["v_proj", "model.layers.2.mlp.up_proj"],  # a full name holds in any layer
        "layers_to_transform": [0, 1],
        "layers_pattern": "layers",
    },
    "excluded": {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": ["q_proj", "up_proj"],
        "exclude_modules": ["1.mlp.up_proj"],
    },
    "excluded_regex": {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "exclude_modules": r".*\.[01]\.mlp.*"},
    "init": {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj"], "init_lora_weights": "orthogonal"},
}


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(str(tiny.folder))


@functools.partial(jax.jit, static_argnums=0)
def jitted_logits(arch, state, adapter, tokens, positions, segments):
    module = merge(arch, state)
    _, last, _ = run_blocks(module, arch, adapter, tokens, positions, Segments(segments), tap=lambda *_: None)
    return logits(module, arch, last)


def our_logits(model, adapter):
    """Logits per prompt; all adapters are padded to one shape, so that one program serves them all."""
    every = initial_adapter(model.architecture, TARGETS, 7, 1.0, 0, (0,))
    stacked = stack(model.architecture, [adapter, every])
    one = jax.tree.map(lambda leaf: leaf[0], stacked)
    actual = np.asarray(jitted_logits(model.architecture, model.state, one, *padded(PROMPTS, 16)))
    return [actual[row, : len(ids)] for row, ids in enumerate(PROMPTS)]


def assert_same_logits(ours, torch_model, tolerance=1e-4):
    for actual, expected in zip(ours, torch_states(torch_model, PROMPTS), strict=True):
        assert distance(actual, expected["logits"]) < tolerance


def write_variant(base, folder, name, dtype="float32", seed=5):
    """Lets peft write a random adapter with the config VARIANTS[name], stored in `dtype`."""
    torch, peft = import_torch(), pytest.importorskip("peft")
    carrier = peft.get_peft_model(torch_model(base), peft.LoraConfig(task_type="CAUSAL_LM", **VARIANTS[name]))
    torch.manual_seed(seed)
    for parameter_name, parameter in carrier.named_parameters():
        if "lora_" in parameter_name:
            parameter.data = torch.randn_like(parameter).mul_(0.15).to(getattr(torch, dtype))
    carrier.save_pretrained(folder)
    return folder


def load_in_peft(base, folder):
    """The torch model with an adapter folder, after a check that peft found exactly its tensors there."""
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = peft.PeftModel.from_pretrained(torch_model(base), folder).eval()
    assert not [w for w in caught if "missing" in str(w.message).lower() or "unexpected" in str(w.message).lower()]
    carried = {name for name, _ in loaded.named_parameters() if "lora_" in name}
    stored = load_file(folder / "adapter_model.safetensors")
    assert {name.replace(".default.weight", ".weight") for name in carried} == set(stored)
    return loaded


def stored_bits(folder):
    from safetensors.torch import load_file as load_torch

    tensors = load_torch(folder / "adapter_model.safetensors")
    bits = import_torch().uint8
    return {name: (one.dtype, one.shape, one.view(bits).numpy().tobytes()) for name, one in tensors.items()}


def change_config(folder, **change):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def refused(folder, model) -> str:
    with pytest.raises(Refusal) as caught:
        load_adapter(folder, model.architecture)
    assert caught.value.code == 3
    return str(caught.value)


@pytest.mark.parametrize("which", [0, 1])
def test_an_adapter_saved_by_peft_has_the_same_logits_here(model, tiny, tiny_adapters, which):
    folder, reference = tiny_adapters[which]
    assert is_adapter(folder) and not is_adapter(tiny.folder)
    adapter = load_adapter(folder, model.architecture)
    assert set(adapter) == (set(TARGETS) if which == 0 else {"q_proj", "down_proj"})
    ours = our_logits(model, adapter)
    assert_same_logits(ours, reference)
    assert distance(ours[0], our_logits(model, {})[0]) > 0.01


SUBSETS = [tuple(np.random.default_rng(seed).choice(TARGETS, 2 + seed, replace=False)) for seed in range(4)]


@pytest.mark.parametrize("targets", [*((target,) for target in TARGETS), *SUBSETS], ids="+".join)
def test_every_target_alone_and_random_subsets_have_the_same_logits_here(model, tiny, tmp_path, targets):
    reference = write_adapter(tiny.folder, tmp_path / "some", targets=targets, seed=6)
    adapter = load_adapter(tmp_path / "some", model.architecture)
    assert set(adapter) == set(targets)
    ours = our_logits(model, adapter)
    assert_same_logits(ours, reference)
    assert distance(ours[0], our_logits(model, {})[0]) > 1e-3


@pytest.mark.parametrize("name", VARIANTS)
def test_every_way_to_name_modules_ranks_and_scales_is_read_as_peft_reads_it(model, tiny, tmp_path, name):
    folder = write_variant(tiny.folder, tmp_path / "theirs", name)
    change_config(folder, target_modules=VARIANTS[name]["target_modules"])  # peft stores "all-linear" spelt out
    reference = load_in_peft(tiny.folder, folder)
    read = read_adapter(folder, model.architecture)
    ours = our_logits(model, read.adapter)
    assert_same_logits(ours, reference)
    assert distance(ours[0], our_logits(model, {})[0]) > 1e-3
    wrapped = {path for path, module in reference.get_base_model().named_modules() if hasattr(module, "lora_A")}
    assert {peft_modules.module_name(block) for block in read.ranks} == wrapped
    for (target, layer), rank in read.ranks.items():
        module = reference.get_base_model().get_submodule(peft_modules.module_name((target, layer)))
        assert rank == module.r["default"]
        assert read.adapter[target]["scale"][layer] == np.float32(module.scaling["default"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["patterns", "regex", "layer_list"])
def test_an_adapter_is_written_back_bit_by_bit(model, tiny, tmp_path, name, dtype):
    theirs = write_variant(tiny.folder, tmp_path / "theirs", name, dtype)
    read = read_adapter(theirs, model.architecture)
    save_adapter(tmp_path / "ours", read.adapter, "elsewhere", {"task": "none"}, as_read=read)
    assert stored_bits(tmp_path / "ours") == stored_bits(theirs)
    assert {kept.name for kept in read.dtypes.values()} == {dtype}
    assert json.loads((tmp_path / "ours/adapter_config.json").read_text())["base_model_name_or_path"] == "elsewhere"
    loaded = load_in_peft(tiny.folder, tmp_path / "ours")
    assert_same_logits(our_logits(model, read.adapter), loaded)
    expected = torch_states(load_in_peft(tiny.folder, theirs), PROMPTS)
    for actual, want in zip(torch_states(loaded, PROMPTS), expected, strict=True):
        assert np.array_equal(actual["logits"], want["logits"])


def test_ranks_are_kept_where_numbers_are_zero(model, tiny, tmp_path):
    theirs = write_variant(tiny.folder, tmp_path / "theirs", "patterns")
    tensors = load_file(theirs / "adapter_model.safetensors")
    blank = "base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight"
    tensors[blank.format("A")][2:] = 0
    tensors[blank.format("B")][:] = -0.0
    tensors[blank.format("A").replace("q_proj", "v_proj")][:] = 0
    save_file(tensors, theirs / "adapter_model.safetensors", metadata={"format": "pt"})
    change_config(theirs, alpha_pattern={"v_proj": 0})  # a scale of 0 is no absent block
    read = read_adapter(theirs, model.architecture)
    assert read.ranks["q_proj", 1] == 6 and read.ranks["v_proj", 1] == 2
    assert read.adapter["q_proj"]["a"].shape[-1] == 6 and not read.adapter["q_proj"]["a"][0, :, 3:].any()
    save_adapter(tmp_path / "ours", read.adapter, str(tiny.folder), {}, as_read=read)
    assert stored_bits(tmp_path / "ours") == stored_bits(theirs)


def test_mixed_dtypes_are_kept_apart(model, tiny, tmp_path):
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    torch = import_torch()
    theirs = write_variant(tiny.folder, tmp_path / "theirs", "rslora")
    path = theirs / "adapter_model.safetensors"
    halves = {name: t.to(torch.bfloat16 if "lora_A" in name else torch.float16) for name, t in load_torch(path).items()}
    save_torch(halves, path)
    read = read_adapter(theirs, model.architecture)
    expected = halves["base_model.model.model.layers.2.mlp.up_proj.lora_A.weight"].float().numpy()
    assert np.array_equal(read.adapter["up_proj"]["a"][2], expected.T)
    save_adapter(tmp_path / "ours", read.adapter, str(tiny.folder), {}, as_read=read)
    assert stored_bits(tmp_path / "ours") == stored_bits(theirs)


def test_the_first_pattern_of_the_file_wins(model, tiny, tmp_path):
    reference = write_adapter(tiny.folder, tmp_path / "one", targets=("v_proj",), rank_pattern={"v_proj": 2})
    change_config(tmp_path / "one", rank_pattern={"v_proj": 2, "layers.1.self_attn.v_proj": 5, "proj": 6})
    load_in_peft(tiny.folder, tmp_path / "one")
    read = read_adapter(tmp_path / "one", model.architecture)
    assert_same_logits(our_logits(model, read.adapter), reference)
    save_adapter(tmp_path / "two", read.adapter, str(tiny.folder), {}, as_read=read)
    load_in_peft(tiny.folder, tmp_path / "two")
    change_config(tmp_path / "one", rank_pattern={"layers.1.self_attn.v_proj": 5, "v_proj": 2})
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_in_peft(tiny.folder, tmp_path / "one")
    assert "layers.1.self_attn.v_proj.lora_A.weight has shape (2, 32), not (5, 32)" in refused(tmp_path / "one", model)


@pytest.mark.parametrize("name", ["patterns", "single_layer", "layer_list", "excluded"])
def test_any_adapter_can_be_written_without_how_it_was_read(model, tiny, tmp_path, name):
    """Scales that differ, and layers that form no grid, are written with patterns of our own and read again."""
    parts = load_adapter(write_variant(tiny.folder, tmp_path / "theirs", name), model.architecture)
    save_adapter(tmp_path / "ours", parts, str(tiny.folder), {})
    assert_same_logits(our_logits(model, parts), load_in_peft(tiny.folder, tmp_path / "ours"))
    again = load_adapter(tmp_path / "ours", model.architecture)
    assert all(np.array_equal(again[t][k], parts[t][k]) for t in parts for k in ("a", "b", "scale"))
    assert set(again) == set(parts)


def test_a_write_back_that_would_lose_something_is_refused(model, tiny, tmp_path):
    read = read_adapter(write_variant(tiny.folder, tmp_path / "theirs", "patterns", "float16"), model.architecture)

    def changed(target, leaf, index, value):
        array = read.adapter[target][leaf].copy()
        array[index] = value
        return read.adapter | {target: read.adapter[target] | {leaf: array}}

    lossy = {
        "a of q_proj": changed("q_proj", "a", (0, 0, 5), 1.0),  # beyond the rank
        "b of v_proj": changed("v_proj", "b", (0, 0, 0), 1 + 2**-20),  # not a float16
        "a of v_proj": changed("v_proj", "a", (0, 0, 0), 1e6),  # beyond float16
        "scale of k_proj": changed("k_proj", "scale", 0, 9.0),
        "lacks down_proj": {target: part for target, part in read.adapter.items() if target != "down_proj"},
    }
    for words, parts in lossy.items():
        with pytest.raises(ValueError, match=words):
            save_adapter(tmp_path / "ours", parts, "base", {}, as_read=read)
    with pytest.raises(ValueError, match="every scale is 0"):
        save_adapter(tmp_path / "ours", initial_adapter(model.architecture, ("q_proj",), 2, 0.0, 0, (1,)), "base", {})
    assert not (tmp_path / "ours").exists()


def test_stacking_pads_ranks_and_targets_and_changes_no_value(model, tiny_adapters):
    arch = model.architecture
    adapters = [load_adapter(folder, arch) for folder, _ in tiny_adapters]
    stacked = stack(arch, [{}, *adapters])
    tokens = padded(PROMPTS, 16)
    for index, expected in enumerate([{}, *adapters]):
        one = {target: {k: leaf[index] for k, leaf in part.items()} for target, part in stacked.items()}
        actual, alone = (jitted_logits(arch, model.state, adapter, *tokens) for adapter in (one, expected))
        assert distance(actual, alone) < 1e-6


def random_adapter(arch, first_layer=0, targets=TARGETS):
    adapter = initial_adapter(arch, targets, 4, 6.0, first_layer, (3, 1))
    rng = np.random.default_rng(9)
    for part in adapter.values():
        part["b"] = rng.normal(0, 0.15, part["b"].shape).astype(np.float32)
        part["b"][:first_layer] = 0
    return adapter


@pytest.mark.parametrize("first_layer", [0, 2])
def test_our_adapter_loads_in_peft_with_the_same_logits(model, tiny, tmp_path, first_layer):
    adapter = random_adapter(model.architecture, first_layer)
    save_adapter(tmp_path / "ours", adapter, str(tiny.folder), {"task": "none"})
    loaded = load_in_peft(tiny.folder, tmp_path / "ours")
    assert len(load_file(tmp_path / "ours/adapter_model.safetensors")) == 2 * len(TARGETS) * (LAYERS - first_layer)
    assert_same_logits(our_logits(model, adapter), loaded)
    again = load_adapter(tmp_path / "ours", model.architecture)
    assert all(np.array_equal(again[t][k], adapter[t][k]) for t in adapter for k in ("a", "b", "scale"))
    config = json.loads((tmp_path / "ours/adapter_config.json").read_text())
    assert config["r"] == 4 and config["lora_alpha"] == 6 and not config["rank_pattern"] and not config["alpha_pattern"]
    assert config["layers_to_transform"] == ([2] if first_layer else None)
