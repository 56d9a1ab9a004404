"""Checkpoints loaded and saved, and those that are refused."""

import shutil

import jax
import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mossa_jax.errors import Refusal
from mossa_jax.llama.architecture import to_config
from mossa_jax.llama.files import tensors as checkpoint
from mossa_jax.llama.files.load import load_model
from mossa_jax.llama.files.weights import save_weights
from mossa_jax.llama.placement import leaf_name
from tests.support.tiny_llama import VOCAB, distance, random_prompts, torch_model, torch_states, write_model


def leaves(model):
    return {leaf_name(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(model.state)}


@pytest.fixture
def copy(tiny, tmp_path):
    return shutil.copytree(tiny.folder, tmp_path / "copy")


def refused(folder) -> str:
    with pytest.raises(Refusal) as caught:
        load_model(str(folder))
    assert caught.value.code == 3
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_tensor_of_a_single_file_arrives(tiny):
    stored = load_file(tiny.folder / "model.safetensors")
    actual = leaves(load_model(str(tiny.folder)))
    assert sum(leaf.size for leaf in actual.values()) == sum(tensor.size for tensor in stored.values())
    assert np.array_equal(actual["head"], stored["lm_head.weight"])
    matrix = actual["blocks.feed_forward.down_proj.weight"]
    assert np.array_equal(matrix[1], stored["model.layers.1.mlp.down_proj.weight"])


def test_sharded_files_equal_a_single_one(tiny, tmp_path):
    tiny.torch_model.save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    assert (tmp_path / "sharded/model.safetensors.index.json").exists()
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    one, many = leaves(load_model(str(tiny.folder))), leaves(load_model(str(tmp_path / "sharded")))
    assert all(np.array_equal(one[name], many[name]) for name in one)
    gone = sorted((tmp_path / "sharded").glob("*.safetensors"))[0]
    gone.unlink()
    assert gone.name in refused(tmp_path / "sharded")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files_are_read(tiny, tmp_path, dtype):
    torch = pytest.importorskip("torch")
    half = torch_model(tiny.folder).to(getattr(torch, dtype))
    half.save_pretrained(tmp_path / "half")
    actual = leaves(load_model(str(tmp_path / "half")))
    expected = half.model.layers[2].self_attn.k_proj.weight.float().detach().numpy()
    assert np.array_equal(actual["blocks.attention.k_proj.weight"][2], expected)


def test_all_misfits_are_reported_at_once(copy):
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.self_attn.q_proj.weight"], tensors["model.norm.weight"]
    tensors["model.layers.0.mlp.gate.weight"] = np.zeros(3, np.float32)
    tensors["model.layers.2.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    tensors["lm_head.weight"] = np.zeros((7, 32), np.float32)
    save_file(tensors, copy / "model.safetensors")
    message = refused(copy)
    for part in (
        "missing model.layers.1.self_attn.q_proj.weight",
        "missing model.norm.weight",
        "unexpected model.layers.0.mlp.gate.weight",
        f"lm_head.weight has shape (7, 32), not ({VOCAB}, 32)",
    ):
        assert part in message
    assert "inv_freq" not in message  # a buffer that old exports hold and that follows from the config


def test_pickled_weights_are_refused_unread(copy):
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch read'\ntR.")
    assert "pytorch_model.bin" in refused(copy) and "safetensors" in refused(copy)


def test_a_torn_file_is_refused(copy):
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert "model.safetensors" in refused(copy)


def test_folders_that_are_not_models_are_refused(copy, tmp_path):
    (copy / "config.json").write_text("{")
    assert "JSON" in refused(copy)
    (copy / "config.json").unlink()
    assert "config.json" in refused(copy)
    assert "does not exist" in refused(tmp_path / "nowhere")


@pytest.mark.parametrize("tied", [False, True])
def test_saved_weights_load_in_transformers(tmp_path, tied):
    tiny = write_model(tmp_path / "first", seed=5, tied=tied)
    model = load_model(str(tiny.folder))
    save_weights(tmp_path / "second", model.architecture, model.state, to_config(model.architecture), tiny.folder)
    prompts = random_prompts(3)
    actual, expected = (torch_states(m, prompts) for m in (torch_model(tmp_path / "second"), tiny.torch_model))
    assert max(distance(a["logits"], b["logits"]) for a, b in zip(actual, expected, strict=True)) < 1e-6
    again = load_model(str(tmp_path / "second"))
    assert again.architecture == model.architecture
    assert again.tokenizer().prompts(["the mill"]) == model.tokenizer().prompts(["the mill"])


def test_a_full_disk_is_refused_in_one_line(tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)  # what the library raises, seen on a full disk
    files = checkpoint.TensorWriter(tmp_path, 10)
    files.add("a", np.zeros(4, np.float32))
    with pytest.raises(Refusal) as caught:
        files.close()
    assert caught.value.code == 6 and "no space left" in str(caught.value)
