"""Drawn config.json files: every value that makes no sense is one refusal that names its field, and soon."""

import copy
import json
import random
import time

import pytest
from etils import epath

from mossa_jax.errors import Refusal
from mossa_jax.llama.architecture import architecture_from_config, read_architecture
from mossa_jax.llama.families import FAMILIES, NEUTRAL

PLAIN = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "bos_token_id": 1,
    "eos_token_id": [2, 3], "rope_theta": 1e4, "tie_word_embeddings": False, "sliding_window": 9,
    "use_sliding_window": True, "max_window_layers": 1, "attention_bias": False, "mlp_bias": False,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "hidden_act": "silu",
    "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0,
    "attn_logit_softcapping": None, "embedding_multiplier": 1, "residual_multiplier": 1, "logits_scaling": 1,
    "partial_rotary_factor": 1.0, "original_max_position_embeddings": 32, "rope_local_base_freq": 1e4,
    "rope_scaling": None, "rope_parameters": None, "architectures": ["X"], "quantization_config": None,
}  # fmt: skip
SCALINGS = (
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4},
    {"rope_type": "yarn", "factor": 4, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 0.5},
    {"rope_type": "longrope", "short_factor": [1, 1, 1, 1], "long_factor": [2, 2, 2, 2], "attention_factor": 1.1},
)
STRANGE = (
    0, -1, 1, 2, 3, 7, 10**6, 10**10, 10**400, -(10**400), 0.5, 2.0, 1e308, -1e308, 5e-324, True, False, None, "", "8",
    "silu", "yarn", [], [1], ["sliding_attention"] * 3, {}, {"a": 1}, {"rope_type": "yarn"}, [[[[]]]], float("inf"),
    float("nan"), 10**5, "\ud800", "x" * 10_000, [10**400] * 3,
)  # fmt: skip


def plain(model_type):
    """A config of a family, without what only its relatives compute with."""
    family = FAMILIES[model_type]
    known = (*family.takes, *family.optional_biases)
    fields = {name: value for name, value in PLAIN.items() if name not in NEUTRAL or name in known}
    return copy.deepcopy(fields) | {"model_type": model_type}


def drawn(rng):
    """A config of some family in which up to three values, or parameters of the rotation, are strange."""
    config = plain(rng.choice([*FAMILIES]))
    if rng.random() < 0.4:
        scaling = dict(rng.choice(SCALINGS))
        if rng.random() < 0.7:
            scaling[rng.choice([*scaling, "rope_theta", "truncate", "unknown"])] = rng.choice(STRANGE)
        config[rng.choice(["rope_scaling", "rope_parameters"])] = scaling
    for _ in range(rng.randint(0, 3)):
        name = rng.choice([*PLAIN, *NEUTRAL, "model_type"])
        if rng.random() < 0.15:
            config.pop(name, None)
        else:
            config[name] = rng.choice(STRANGE)
    return config


def test_drawn_configs_are_read_or_refused_in_one_line():
    rng, counts = random.Random(0), {"read": 0, "refused": 0}
    for number in range(2_000):
        config = drawn(rng)
        start = time.monotonic()
        try:
            arch = architecture_from_config(config, "here")
            arch.rope.frequencies(arch.head_dim)
            counts["read"] += 1
        except Refusal as refusal:
            assert refusal.code == 3 and str(refusal).startswith("here: ") and len(str(refusal)) < 900, str(refusal)
            counts["refused"] += 1
        assert time.monotonic() - start < 5, (number, config)
    assert min(counts.values()) > 200


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden_layers": 0}, ("num_hidden_layers=0", "1 to 10,000")),
        ({"num_hidden_layers": -1}, ("num_hidden_layers=-1",)),
        ({"num_hidden_layers": 10**6}, ("num_hidden_layers=1000000",)),
        ({"vocab_size": 0}, ("vocab_size=0",)),
        ({"num_key_value_heads": 0}, ("num_key_value_heads=0",)),
        ({"num_attention_heads": True}, ("num_attention_heads=True",)),
        ({"hidden_size": 10**400}, ("hidden_size=",)),
        ({"hidden_size": 10**7, "intermediate_size": 10**7}, ("hidden_size", "parameters")),
        ({"head_dim": 7}, ("head_dim=7", "even")),
        ({"rms_norm_eps": -1e-5}, ("rms_norm_eps=-1e-05",)),
        ({"rms_norm_eps": float("inf")}, ("rms_norm_eps=inf",)),
        ({"rope_theta": 0}, ("rope_theta=0",)),
        ({"rope_theta": "many"}, ("rope_theta='many'",)),
        ({"rope_scaling": [4]}, ("rope_scaling=[4]",)),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2, "mrope_section": [1]}}, ("mrope_section",)),
        ({"rope_scaling": {"rope_type": "yarn", "factor": float("nan")}}, ("factor=nan",)),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, ("rope_type=['yarn']",)),
        ({"eos_token_id": [2, -1]}, ("eos_token_id=-1",)),
        ({"tie_word_embeddings": "no"}, ("tie_word_embeddings='no'",)),
        ({"model_type": ["llama"]}, ("model_type ['llama']",)),
        ({"model_type": {}}, ("model_type {}",)),
        ({"model_type": "mistral", "sliding_window": -4}, ("sliding_window=-4",)),
        ({"model_type": "qwen2", "layer_types": ["full_attention"]}, ("layer_types", "3 layers")),
        ({"model_type": "gemma2", "layer_types": ["full_attention", "chunked_attention", 3]}, ("chunked_attention",)),
        ({"model_type": "gemma2", "sliding_window": None}, ("sliding_window",)),
        ({"model_type": "phi3", "rope_scaling": SCALINGS[4] | {"long_factor": [2]}}, ("long_factor", "4 numbers")),
        ({"clip_qkv": 8.0}, ("clip_qkv=8.0",)),
        ({"is_causal": False}, ("is_causal=False",)),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_its_name(change, words):
    model_type = change.get("model_type", "llama")
    with pytest.raises(Refusal) as caught:
        architecture_from_config(plain(model_type if isinstance(model_type, str) else "llama") | change, "here")
    assert caught.value.code == 3
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    "text", ["[]", "null", "[" * 100_000, '{"a": NaN}', '{"vocab_size": ' + "9" * 5000 + "}", "{", "\x00"]
)
def test_a_file_that_is_no_config_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(Refusal, match=r"config\.json") as caught:
        read_architecture(epath.Path(tmp_path))
    assert caught.value.code == 3


def test_a_number_that_is_written_with_a_point_is_a_whole_one():
    config = json.loads(json.dumps(plain("llama") | {"hidden_size": 32.0}))
    assert architecture_from_config(config, "here").hidden == 32
