"""Sizes of published models, from their config.json, to plan and measure without their files, which are often gated."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from mossa_jax.files.write import new_folder, write_json
from mossa_jax.llama.architecture import architecture_from_config
from mossa_jax.llama.files.tensors import TensorWriter
from mossa_jax.llama.files.weights import stored_shapes
from mossa_jax.monitoring.progress import Progress

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
_MISTRAL = _LLAMA2 | {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
}
_QWEN3 = _LLAMA2 | {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 40960,
    "head_dim": 128,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}


def _sizes(hidden: int, feed_forward: int, layers: int, heads: int, kv_heads: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


PUBLISHED: dict[str, dict[str, Any]] = {
    "llama-110m": _LLAMA2 | _sizes(768, 2048, 12, 12, 12) | {"tie_word_embeddings": True},
    "smollm2-135m": _LLAMA2
    | _sizes(576, 1536, 30, 9, 3)
    | {
        "vocab_size": 49152,
        "rope_theta": 100000.0,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
    },
    "llama2-7b": _LLAMA2 | _sizes(4096, 11008, 32, 32, 32),
    "llama2-13b": _LLAMA2 | _sizes(5120, 13824, 40, 40, 40),
    "llama2-70b": _LLAMA2 | _sizes(8192, 28672, 80, 64, 8),
    "llama3-8b": _LLAMA3 | _sizes(4096, 14336, 32, 32, 8),
    "mistral-7b": _MISTRAL | _sizes(4096, 14336, 32, 32, 8),
    "qwen3-8b": _QWEN3 | _sizes(4096, 12288, 36, 32, 8),
}
"""Name -> config.json; `llama-110m` is not a published model but a size for measurements on a CPU."""

_HUB = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": "smollm2-135m",
    "meta-llama/Llama-2-7b-hf": "llama2-7b",
    "meta-llama/Llama-2-13b-hf": "llama2-13b",
    "meta-llama/Llama-2-70b-hf": "llama2-70b",
    "meta-llama/Meta-Llama-3-8B": "llama3-8b",
    "mistralai/Mistral-7B-v0.1": "mistral-7b",
    "Qwen/Qwen3-8B": "qwen3-8b",
}


def published_shape(name: str) -> str | None:
    """Returns the name in `PUBLISHED` of a hub id, or of an open copy of it; None where it is not known."""
    return _HUB.get(name) or _HUB.get(name.replace("NousResearch/", "meta-llama/"))


def write_random(out: epath.PathLike, shape: str, dtype: str, shard_gb: float = 2.0, seed: int = 0) -> None:
    """Writes a folder with random weights for one of `PUBLISHED`; arguments as in `write_config`."""
    write_config(out, PUBLISHED[shape], shape, dtype, shard_gb, seed)


def write_config(
    out: epath.PathLike, config: dict[str, Any], title: str, dtype: str, shard_gb: float = 2.0, seed: int = 0
) -> None:
    """Writes a model folder with random weights: normal with standard deviation 0.02; norm weights are one.

    Args:
      out: the folder to write.
      config: its config.json.
      title: names the model in log lines and refusals.
      dtype: "float32" or "bfloat16".
      shard_gb: the largest size of a file, in GB.
      seed: of the weights.
    """
    # NumPy has no bfloat16 of its own.
    number_type = np.float32 if dtype == "float32" else ml_dtypes.bfloat16
    rng = np.random.default_rng(seed)
    shapes = stored_shapes(architecture_from_config(config, title))
    progress = Progress(f"random {title}", len(shapes), unit="tensors")
    with new_folder(out) as folder:
        files = TensorWriter(folder, int(shard_gb * 1e9))
        for number, (name, size) in enumerate(shapes.items(), 1):
            # One axis means a norm; matrices [D_out, D_in] get the spread of a new model, so that
            # activations stay finite.
            values = np.ones(size) if len(size) == 1 else rng.standard_normal(size, np.float32) * np.float32(0.02)
            # Memory holds at most one file's tensors, never a whole 70B model.
            files.add(name, values.astype(number_type))
            if number % 50 == 0 or number == len(shapes):
                progress.line(number, name)
        files.close()
        write_json(folder / "config.json", config | {"torch_dtype": dtype})
