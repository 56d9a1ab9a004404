"""Shapes of published models, to plan and measure without their (often gated) files: facts of their config.json."""

from __future__ import annotations

from typing import Any

_LLAMA2 = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA3 = _LLAMA2 | {
    "vocab_size": 128256,
    "rope_theta": 500000.0,
    "max_position_embeddings": 8192,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}


def _size(hidden: int, feed_forward: int, layers: int, heads: int, kv_heads: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


PUBLISHED: dict[str, dict[str, Any]] = {
    "llama-110m": _LLAMA2 | _size(768, 2048, 12, 12, 12) | {"tie_word_embeddings": True},
    "llama2-7b": _LLAMA2 | _size(4096, 11008, 32, 32, 32),
    "llama2-13b": _LLAMA2 | _size(5120, 13824, 40, 40, 40),
    "llama2-70b": _LLAMA2 | _size(8192, 28672, 80, 64, 8),
    "llama3-8b": _LLAMA3 | _size(4096, 14336, 32, 32, 8),
}
"""Name -> config.json; `llama-110m` is no published model but a size to measure with on a CPU."""
