"""Every field that a configuration class of transformers has, with a value that is not its default."""

import dataclasses
import json

from tests.support.tiny_llama import LAYERS, VOCAB, import_torch

CLASSES = {
    "llama": "LlamaConfig", "mistral": "MistralConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config",
    "granite": "GraniteConfig", "olmo2": "Olmo2Config", "phi3": "Phi3Config", "gemma2": "Gemma2Config",
    "gemma3_text": "Gemma3TextConfig",
}  # fmt: skip
"""`model_type` -> the class."""

_YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e3, "original_max_position_embeddings": 16}
_LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "short_factor": [1.0, 1.5],
    "long_factor": [2.0, 3.0],
}  # fmt: skip
_BY_KIND = {
    "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
}
VALUES = {
    "vocab_size": VOCAB + 8, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "silu", "max_position_embeddings": 200, "original_max_position_embeddings": 16,
    "initializer_range": 0.1, "rms_norm_eps": 0.1, "use_cache": False, "pad_token_id": 3, "bos_token_id": 5,
    "eos_token_id": [4, 6], "pretraining_tp": 2, "tie_word_embeddings": True, "rope_parameters": _YARN,
    "attention_bias": True, "attention_dropout": 0.5, "mlp_bias": True, "sliding_window": 5,
    "use_sliding_window": True, "max_window_layers": 1, "layer_types": ["sliding_attention"] * LAYERS,
    "embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3,
    "resid_pdrop": 0.5, "embd_pdrop": 0.5, "query_pre_attn_scalar": 40, "final_logit_softcapping": 2.0,
    "attn_logit_softcapping": 1.5, "use_bidirectional_attention": True, "output_hidden_states": True,
    "return_dict": False, "dtype": "float32", "chunk_size_feed_forward": 4, "is_encoder_decoder": True,
    "id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2},
    "problem_type": "regression", "transformers_version": "4.1.0", "architectures": ["OtherForCausalLM"],
}  # fmt: skip
"""Field -> value. A field of a later transformers that is not here fails the tests: say what it does."""
BESIDE = {
    "head_dim": 16, "original_max_position_embeddings": 16, "partial_rotary_factor": 0.5, "is_causal": False,
    "attention_chunk_size": 4, "clip_qkv": 0.1, "use_qk_norm": True, "no_rope_layers": [0, 1, 0],
    "per_layer_config": {"0": {"num_key_value_heads": 1}}, "sliding_window_pattern": 2, "rope_theta": 300.0,
    "rope_scaling": {"rope_type": "linear", "factor": 4.0}, "rope_local_base_freq": 300.0, "torch_dtype": "float32",
    "num_local_experts": 4, "attn_logit_softcapping": 1.5, "query_pre_attn_scalar": 40, "layer_types": None,
    "mlp_bias": True, "attention_bias": True,
}  # fmt: skip
"""Fields that a config.json may have although its class does not, or that say the same as one that it has."""


def base_config(model_type: str) -> dict:
    """A small config.json of a family, as transformers writes it."""
    import transformers

    fields = dict(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, rms_norm_eps=1e-5, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
        pad_token_id=0, initializer_range=0.2, tie_word_embeddings=False,
    )  # fmt: skip
    if model_type.startswith("gemma") or model_type == "qwen3":
        fields["head_dim"] = 8
    if model_type.startswith("gemma"):
        fields |= {"query_pre_attn_scalar": 8, "sliding_window": 9}
    if model_type in ("mistral", "phi3"):
        fields["sliding_window"] = 9
    return json.loads(getattr(transformers, CLASSES[model_type])(**fields).to_json_string(use_diff=False))


def changes(model_type: str) -> dict[str, dict]:
    """Field -> config.json with that field alone changed."""
    import transformers

    config = base_config(model_type)
    names = {field.name for field in dataclasses.fields(getattr(transformers, CLASSES[model_type]))}
    unknown = names - VALUES.keys()
    assert not unknown, f"say what {unknown} of {model_type} do"
    values = BESIDE | {name: VALUES[name] for name in names}
    if model_type == "phi3":
        values["rope_parameters"] = _LONG
    if model_type == "gemma3_text":
        values["rope_parameters"] = _BY_KIND
    changed = {name: config | {name: value} for name, value in values.items()}
    # What the new spelling says already is taken out, so that the old one is heard.
    for name in ("rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor"):
        changed[name].pop("rope_parameters", None)
    # It counts only where the rotation is scaled.
    scaled = {"phi3": _LONG, "gemma3_text": config["rope_parameters"]}
    changed["original_max_position_embeddings"]["rope_parameters"] = scaled.get(
        model_type, _YARN | {"original_max_position_embeddings": 32}
    )
    changed["sliding_window_pattern"].pop("layer_types", None)
    if "max_window_layers" in names:
        changed["max_window_layers"].pop("layer_types")
        changed["max_window_layers"] |= {"use_sliding_window": True, "sliding_window": 5}
        changed["layer_types"] |= {"use_sliding_window": True, "sliding_window": 5}
        changed["sliding_window"] |= {"use_sliding_window": True}
        changed["sliding_window"].pop("layer_types")
        changed["use_sliding_window"].pop("layer_types")
        changed["use_sliding_window"] |= {"max_window_layers": 0, "sliding_window": 6}
    if "layer_types" in names:
        changed["num_hidden_layers"].pop("layer_types", None)
    return changed


def random_torch_model(config: dict, seed: int = 0):
    """A random torch model of a config.json; the same weights wherever the shapes are the same."""
    import transformers

    torch = import_torch()
    torch.manual_seed(seed)
    own = {name: value for name, value in config.items() if name not in ("output_hidden_states", "return_dict")}
    # It only says how weights are drawn.
    own["initializer_range"] = 0.2
    parsed = getattr(transformers, CLASSES[config["model_type"]]).from_dict(own)
    parsed._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(parsed, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model
