"""The families of models: everything that a `model_type` implies without stating it in its config.json.

To support another family whose members compute nothing new, add its `model_type` here; whatever it computes differently
becomes a field of `Architecture`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_QKV = ("q_proj", "k_proj", "v_proj")
_QKVO = (*_QKV, "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Family:
    """What a `model_type` implies. Defaults are those of the family's configuration class in transformers.

    Attributes:
      positions, kv_heads, head_dim, norm_eps, tied_head: defaults of fields that a config may leave out; with 0, they
        follow from others.
      biases: projections that always have a bias.
      optional_biases: field of the config -> projections that have a bias where it is set.
      fused: as in `Architecture`.
      activation: name of the config's field, and its default.
      windows: how the config states a sliding window: "" never; "all" by `sliding_window` alone; "some" by
        `use_sliding_window` and the layers that it holds for; "listed" by `layer_types`.
      window: default of `sliding_window`; 0: none.
      full_every: where a config with windows "listed" names no layers, every n-th block has no window.
      local_rope: windowed blocks have a rotation of their own.
      query_key_norm, norms, norm_offset, wide_norms: as in `Architecture`.
      takes: fields among `NEUTRAL` that this family computes with, or that its class has and never reads.
    """

    positions: int = 2048
    kv_heads: int = 0
    head_dim: int = 0
    norm_eps: float = 1e-6
    tied_head: bool = False
    biases: tuple[str, ...] = ()
    optional_biases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fused: bool = False
    activation: tuple[str, str] = ("hidden_act", "silu")
    windows: str = ""
    window: int = 0
    full_every: int = 0
    local_rope: bool = False
    query_key_norm: str = ""
    norms: str = "pre"
    norm_offset: float = 0.0
    wide_norms: bool = False
    takes: tuple[str, ...] = ()


_GEMMA: dict[str, Any] = {
    "kv_heads": 4,
    "head_dim": 256,
    "tied_head": True,
    "optional_biases": {"attention_bias": _QKVO},
    "activation": ("hidden_activation", "gelu_pytorch_tanh"),
    "windows": "listed",
    "window": 4096,
    "norms": "both",
    "norm_offset": 1.0,
    "wide_norms": True,
}
FAMILIES = {
    "llama": Family(optional_biases={"attention_bias": _QKVO, "mlp_bias": _MLP}),
    "mistral": Family(positions=131_072, kv_heads=8, windows="all", window=4096),
    "qwen2": Family(positions=32_768, kv_heads=32, biases=_QKV, windows="some", window=4096, takes=("attention_bias",)),
    "qwen3": Family(
        positions=32_768,
        kv_heads=32,
        head_dim=128,
        optional_biases={"attention_bias": _QKVO},
        windows="some",
        window=4096,
        query_key_norm="head",
    ),
    "granite": Family(
        optional_biases={"attention_bias": _QKVO, "mlp_bias": _MLP},
        takes=("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"),
    ),
    "olmo2": Family(
        norm_eps=1e-5,
        optional_biases={"attention_bias": _QKVO},
        query_key_norm="projection",
        norms="post",
        wide_norms=True,
    ),
    "phi3": Family(
        positions=4096,
        norm_eps=1e-5,
        fused=True,
        windows="all",
    ),
    "gemma2": Family(
        **_GEMMA,
        positions=8192,
        full_every=2,
        takes=("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"),
    ),
    "gemma3_text": Family(
        **_GEMMA,
        positions=131_072,
        full_every=6,
        local_rope=True,
        query_key_norm="head",
        # Its class has `attn_logit_softcapping` too, which the model's code does not read.
        takes=("query_pre_attn_scalar", "final_logit_softcapping", "sliding_window_pattern"),
    ),
}
SUPPORTED = (
    "llama (Llama 1 to 3.3, TinyLlama, SmolLM 1 and 2)",
    "mistral",
    "qwen2 (Qwen 2 and 2.5)",
    "qwen3 (dense)",
    "granite (dense, 3)",
    "olmo2",
    "phi3 (Phi 3, 3.5 and 4, mini and medium)",
    "gemma2",
    "gemma3_text",
)

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "qkv_bias": (False,),
    "embedding_multiplier": (1,),
    "attention_multiplier": (),
    "residual_multiplier": (1,),
    "logits_scaling": (1,),
    "logit_scale": (1,),
    "query_pre_attn_scalar": (),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "clip_qkv": (),
    "use_qk_norm": (False,),
    "qk_layernorm": (False,),
    "no_rope_layers": ([],),
    "no_rope_layer_interval": (),
    "attention_chunk_size": (),
    "sliding_window_pattern": (),
    "use_bidirectional_attention": (False,),
    "is_causal": (True,),
    "is_encoder_decoder": (False,),
    "per_layer_config": ({},),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "n_routed_experts": (0,),
}
"""Fields that change what some relative computes -> the values, besides null, with which they change nothing."""
