"""PEFT adapters that are not supported or do not fit, and their refusals."""

import dataclasses
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mossa_jax.llama.files import peft_config, peft_modules
from mossa_jax.llama.files.load import load_model
from mossa_jax.llama.files.peft import load_adapter
from tests.integration.llama.test_peft_folders import change_config, refused


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(str(tiny.folder))


@pytest.fixture
def copy(tiny_adapters, tmp_path):
    return shutil.copytree(tiny_adapters[0][0], tmp_path / "copy")


NOT_REPRESENTED = {
    "use_dora": True,
    "lora_bias": True,
    "target_parameters": ["mlp.experts"],
    "layer_replication": [[0, 2], [1, 3]],
    "megatron_config": {"tensor_model_parallel_size": 2},
    "alora_invocation_tokens": [5, 6],
    "use_qalora": True,
    "velora_config": {"num_groups": 4},
    "monteclora_config": {"num_samples": 2},
    "use_bdlora": {"nblocks": 2},
    "arrow_config": {"top_k": 2},
    "kasa_config": {"beta": 1.0},
}


def test_every_field_of_the_installed_peft_is_read_harmless_or_refused():
    """A new release with a new field: decide here what it means. Until then it is refused where it is set."""
    peft = pytest.importorskip("peft")
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert fields - {*peft_config._READ, *peft_config._HARMLESS, *peft_config._IGNORED} == set(NOT_REPRESENTED)
    assert fields >= {*peft_config._READ, *peft_config._HARMLESS, *peft_config._IGNORED}


def test_default_targets_are_those_of_the_installed_peft():
    constants = pytest.importorskip("peft.utils.constants")
    theirs = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    for family in peft_modules._FAMILIES_WITH_DEFAULT:
        assert theirs[family] == peft_modules._DEFAULT_TARGETS
    assert not {"olmo2", "granite", "phi3"} & set(theirs)


def test_a_folder_of_adapters_names_them(copy, model, tmp_path):
    shutil.copytree(copy, tmp_path / "several/first")
    shutil.copytree(copy, tmp_path / "several/second")
    assert f"(first, second); give one, as {tmp_path}/several/first" in refused(tmp_path / "several", model)


def test_pointers_and_pipes_are_named_and_not_waited_for(copy, model):
    path = copy / "adapter_model.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    assert "Git LFS pointer" in refused(copy, model)
    path.unlink()
    os.mkfifo(path)
    assert "a named pipe" in refused(copy, model)
    (copy / "adapter_config.json").unlink()
    os.mkfifo(copy / "adapter_config.json")
    assert "a named pipe" in refused(copy, model)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *(({name: value}, f"{name}=") for name, value in NOT_REPRESENTED.items()),
        *(({"peft_type": name}, f"peft_type '{name}'") for name in ("IA3", "PREFIX_TUNING", "ADALORA", "LOHA")),
        ({"bias": "some"}, "bias='some'"),
        *(
            ({"init_lora_weights": name}, f"init_lora_weights='{name}'")
            for name in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga")
        ),
        ({"a_field_of_tomorrow": {"on": 1}}, "a_field_of_tomorrow={'on': 1}"),
        ({"r": None}, "r=None"),
        ({"r": 2.5}, "r=2.5"),
        ({"lora_alpha": "16"}, "lora_alpha='16'"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern['q_proj']=0"),
        ({"rank_pattern": {"q_(proj": 2}}, "no valid regular expression"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern['q_proj']=None"),
        ({"target_modules": 7}, "target_modules=7"),
        ({"target_modules": ["c_attn"]}, "matches no projection"),
        ({"target_modules": ["q_proj", "lm_head"]}, "missing base_model.model.lm_head.lora_A.weight"),
        ({"target_modules": ".*(embed_tokens|q_proj)"}, "missing base_model.model.model.embed_tokens.lora_embedding_A"),
        ({"target_modules": ".*q_proj", "layers_to_transform": [1]}, "layers_to_transform=[1]"),
        ({"layers_to_transform": "1"}, "layers_to_transform='1'"),
    ],
    ids=str,
)
def test_adapter_variants_that_are_refused(copy, model, change, words):
    change_config(copy, **change)
    assert words in refused(copy, model)


def test_fields_that_are_unset_or_about_training_are_harmless(copy, model):
    expected = load_adapter(copy, model.architecture)
    change_config(
        copy, a_field_of_tomorrow=None, use_dora=False, lora_dropout=0.3, inference_mode=False, rank_pattern=None,
        init_lora_weights="gaussian", runtime_config={"ephemeral_gpu_offload": True}, eva_config={"rho": 2.0},
    )  # fmt: skip
    actual = load_adapter(copy, model.architecture)
    assert all(np.array_equal(actual[t][k], expected[t][k]) for t in expected for k in ("a", "b", "scale"))


def test_all_tensors_that_do_not_fit_are_named_at_once(copy, model):
    path = copy / "adapter_model.safetensors"
    tensors = load_file(path)
    stem = "base_model.model.model.layers"
    del tensors[f"{stem}.1.mlp.up_proj.lora_B.weight"]
    tensors[f"{stem}.7.self_attn.q_proj.lora_A.weight"] = np.zeros((3, 32), np.float32)
    tensors["base_model.model.lm_head.lora_A.weight"] = np.zeros((3, 32), np.float32)
    tensors[f"{stem}.0.mlp.down_proj.lora_A.weight"] = np.zeros((3, 47), np.float32)
    tensors[f"{stem}.2.mlp.gate_proj.lora_A.weight"] = np.zeros((3, 32), np.float64)
    save_file(tensors, path)
    change_config(copy, rank_pattern={"layers.[12].self_attn.k_proj": 7})
    message = refused(copy, model)
    for part in (
        f"missing {stem}.1.mlp.up_proj.lora_B.weight",
        f"unexpected {stem}.7.self_attn.q_proj.lora_A.weight",
        "unexpected base_model.model.lm_head.lora_A.weight",
        f"{stem}.0.mlp.down_proj.lora_A.weight has shape (3, 47), not (3, 48)",
        f"{stem}.2.mlp.gate_proj.lora_A.weight has dtype F64, not float32, bfloat16, float16",
        f"{stem}.*.self_attn.k_proj.lora_A.weight has shape (3, 32), not (7, 32) for * = 1, 2",
        f"{stem}.*.self_attn.k_proj.lora_B.weight has shape (16, 3), not (16, 7) for * = 1, 2",
    ):
        assert part in message
    assert message.count(";") == 6


def test_files_that_are_not_an_adapter_are_refused(copy, model, tmp_path):
    path = copy / "adapter_model.safetensors"
    path.unlink()
    (copy / "adapter_model.bin").write_bytes(b"pickle")
    assert "pickled adapters are refused" in refused(copy, model)
    path.write_bytes(b"not a safetensors file")
    assert "not a readable" in refused(copy, model)
    for text, word in (('{"r": NaN}', "JSON"), ("{", "JSON"), ("\udcff", "UTF-8"), ("[]", "JSON")):
        (copy / "adapter_config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        assert word in refused(copy, model)
    (tmp_path / "empty").mkdir()
    assert "no adapter_config.json" in refused(tmp_path / "empty", model)
