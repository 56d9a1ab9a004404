"""The architecture of a Llama-family model, read from a Hugging Face `config.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from etils import epath

from mossa_jax.rundir import BAD_INPUT, Refusal

SUPPORTED = ("llama",)


@dataclass(frozen=True)
class Architecture:
    """Sizes and constants; everything in which members of the family differ is data here.

    Attributes:
      vocab: rows of the embedding (V).
      hidden: width of the residual stream (D).
      feed_forward: width inside the gated feed-forward part (F).
      layers: number of blocks (L).
      heads: query heads (H).
      kv_heads: key/value heads (K); divides `heads`.
      head_dim: width of one head.
      norm_eps: added to the mean square in RMSNorm.
      rope_theta: base of the rotary frequencies.
      positions: longest sequence the model was made for.
      tied_head: the output head is the embedding.
      bos: id put in front of every prompt; None if the model has none.
      eos: ids that end an answer; the first one is the one that answers are trained to end in.
    """

    vocab: int
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    positions: int
    tied_head: bool
    bos: int | None
    eos: tuple[int, ...]

    @property
    def matrix_parameters(self) -> int:
        """Parameters that every token passes through (N): blocks and head, not the embedding look-up."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        block = attention + 3 * self.hidden * self.feed_forward
        return self.layers * block + self.vocab * self.hidden

    def state_names(self) -> tuple[str, ...]:
        """Layer names in order: embed, 1..L (block outputs before the final norm), final_norm."""
        return ("embed", *(str(layer + 1) for layer in range(self.layers)), "final_norm")


def read_architecture(folder: epath.PathLike) -> Architecture:
    """Reads `config.json` of a checkpoint folder; both spellings of transformers 4 and 5.

    Raises:
      Refusal: 3 when the file is missing or not JSON, a field is missing, or the model is none that we can
        compute exactly; the message names the field or architecture and what works.
    """
    path = epath.Path(folder) / "config.json"
    if not path.exists():
        raise Refusal(BAD_INPUT, f"{folder} has no config.json; --base takes a Hugging Face model folder or hub id")
    try:
        config = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Refusal(BAD_INPUT, f"{path} is not valid JSON ({error})") from None
    return architecture_from_config(config, str(path))


def architecture_from_config(config: dict[str, Any], where: str) -> Architecture:
    """The same from the parsed `config.json`; `where` names it in refusals."""
    kind = config.get("model_type")
    if kind not in SUPPORTED:
        raise Refusal(BAD_INPUT, f"{where}: model_type {kind!r} is not supported; these are: {', '.join(SUPPORTED)}")
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or {}
    rope_type = scaling.get("rope_type") or scaling.get("type") or rope.get("rope_type") or "default"
    unsupported = {
        "rope scaling": rope_type if rope_type != "default" else None,
        "hidden_act": config.get("hidden_act", "silu") if config.get("hidden_act", "silu") != "silu" else None,
        "attention_bias": config.get("attention_bias") or None,
        "mlp_bias": config.get("mlp_bias") or None,
        "quantization_config": "present" if config.get("quantization_config") else None,
    }
    for name, value in unsupported.items():
        if value is not None:
            raise Refusal(BAD_INPUT, f"{where}: {name}={value!r} is not supported; use a checkpoint without it")
    try:
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        kv_heads = int(config.get("num_key_value_heads") or heads)
        eos = config.get("eos_token_id")
        architecture = Architecture(
            vocab=int(config["vocab_size"]),
            hidden=hidden,
            feed_forward=int(config["intermediate_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=int(config.get("head_dim") or hidden // heads),
            norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
            positions=int(config.get("max_position_embeddings", 2048)),
            tied_head=bool(config.get("tie_word_embeddings", False)),
            bos=config.get("bos_token_id"),
            eos=tuple(eos) if isinstance(eos, list) else () if eos is None else (int(eos),),
        )
    except KeyError as error:
        raise Refusal(BAD_INPUT, f"{where} has no field {error}; it is no complete Llama config") from None
    except (TypeError, ValueError) as error:
        raise Refusal(BAD_INPUT, f"{where} has a value of the wrong type ({error})") from None
    if architecture.heads % architecture.kv_heads:
        raise Refusal(BAD_INPUT, f"{where}: num_key_value_heads={kv_heads} does not divide num_attention_heads={heads}")
    return architecture


def to_config(architecture: Architecture, dtype: str) -> dict[str, Any]:
    """The `config.json` that transformers reads for this architecture."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": architecture.vocab,
        "hidden_size": architecture.hidden,
        "intermediate_size": architecture.feed_forward,
        "num_hidden_layers": architecture.layers,
        "num_attention_heads": architecture.heads,
        "num_key_value_heads": architecture.kv_heads,
        "head_dim": architecture.head_dim,
        "rms_norm_eps": architecture.norm_eps,
        "rope_theta": architecture.rope_theta,
        "max_position_embeddings": architecture.positions,
        "tie_word_embeddings": architecture.tied_head,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": architecture.bos,
        "eos_token_id": list(architecture.eos) if len(architecture.eos) > 1 else next(iter(architecture.eos), None),
        "torch_dtype": dtype,
    }
