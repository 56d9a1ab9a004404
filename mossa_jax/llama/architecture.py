"""The architecture of a Llama-family model, read from a Hugging Face `config.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from etils import epath

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.llama.rope import Rope, read_rope

_QKV = ("q_proj", "k_proj", "v_proj")
_QKVO = (*_QKV, "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class _Family:
    """What a `model_type` fixes without saying so in its config.json.

    Attributes:
      positions, kv_heads, head_dim: defaults of fields that a config may leave out; 0 is the family's rule.
      biases: projections that always carry a bias.
      optional_biases: field of the config -> projections that carry one where it is set.
      windows: how a sliding window is stated: "" never, "all" by `sliding_window` alone, "some" by
        `use_sliding_window` and the layers it holds for.
      query_key_norm: queries and keys are normed per head.
    """

    positions: int = 2048
    kv_heads: int = 0
    head_dim: int = 0
    biases: tuple[str, ...] = ()
    optional_biases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    windows: str = ""
    query_key_norm: bool = False


_FAMILIES = {
    "llama": _Family(optional_biases={"attention_bias": _QKVO, "mlp_bias": _MLP}),
    "mistral": _Family(positions=131_072, kv_heads=8, windows="all"),
    "qwen2": _Family(positions=32_768, kv_heads=32, biases=_QKV, windows="some"),
    "qwen3": _Family(
        positions=32_768,
        kv_heads=32,
        head_dim=128,
        optional_biases={"attention_bias": _QKVO},
        windows="some",
        query_key_norm=True,
    ),
}
SUPPORTED = (
    "llama (Llama 1 to 3.3, TinyLlama, SmolLM 1 and 2)",
    "mistral",
    "qwen2 (Qwen 2 and 2.5)",
    "qwen3 (dense)",
)


@dataclass(frozen=True)
class Architecture:
    """Sizes and constants; everything in which members of the family differ is data here.

    Attributes:
      family: `model_type` of the config.json.
      vocab: rows of the embedding (V).
      hidden: width of the residual stream (D).
      feed_forward: width inside the gated feed-forward part (F).
      layers: number of blocks (L).
      heads: query heads (H).
      kv_heads: key/value heads (K); divides `heads`.
      head_dim: width of one head (d).
      norm_eps: added to the mean square in RMSNorm.
      rope: rotary position embedding.
      positions: longest sequence the model was made for.
      tied_head: the output head is the embedding.
      bos: the config's BOS id; None if it has none.
      eos: ids that end an answer; the first one is the one that answers are trained to end in.
      biases: projections with a bias.
      query_key_norm: queries and keys are normed per head before the rotation.
      window: a query of a windowed block sees so many keys, itself included; 0: no block is windowed.
      windowed: which blocks are, by number from 0; none where `window` is 0.
    """

    vocab: int
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope: Rope
    positions: int
    tied_head: bool
    bos: int | None
    eos: tuple[int, ...]
    family: str = "llama"
    biases: tuple[str, ...] = ()
    query_key_norm: bool = False
    window: int = 0
    windowed: tuple[int, ...] = ()

    @property
    def matrix_parameters(self) -> int:
        """Parameters that every token passes through (N): blocks and head, not the embedding look-up."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        block = attention + 3 * self.hidden * self.feed_forward
        return self.layers * block + self.vocab * self.hidden

    def state_names(self) -> tuple[str, ...]:
        """Layer names in order: embed, 1..L (block outputs before the final norm), final_norm."""
        return ("embed", *(str(layer + 1) for layer in range(self.layers)), "final_norm")


def read_config(folder: epath.PathLike) -> dict[str, Any]:
    """The parsed `config.json` of a model folder.

    Raises:
      Refusal: 3 when the file is missing or no JSON object.
    """
    path = epath.Path(folder) / "config.json"
    if not path.exists():
        raise Refusal(BAD_INPUT, f"{folder} has no config.json; --base takes a Hugging Face model folder or hub id")
    try:
        config = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Refusal(BAD_INPUT, f"{path} is not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise Refusal(BAD_INPUT, f"{path} is not valid JSON for a model (no object)")
    return config


def read_architecture(folder: epath.PathLike) -> Architecture:
    """Reads `config.json` of a checkpoint folder; both spellings of transformers 4 and 5.

    Raises:
      Refusal: 3 when the file is missing or not JSON, a field is missing, or the model is none that we can
        compute exactly; the message names the field or architecture and what works.
    """
    return architecture_from_config(read_config(folder), str(epath.Path(folder) / "config.json"))


def architecture_from_config(config: dict[str, Any], where: str) -> Architecture:
    """The same from the parsed `config.json`; `where` names it in refusals."""
    kind = config.get("model_type")
    if kind not in _FAMILIES:
        asked = ", ".join(map(str, config.get("architectures") or [])) or "no architecture"
        raise Refusal(
            BAD_INPUT, f"{where}: model_type {kind!r} ({asked}) is not supported; these are: {', '.join(SUPPORTED)}"
        )
    family = _FAMILIES[kind]
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise Refusal(BAD_INPUT, f"{where}: hidden_act={config['hidden_act']!r} is not supported; silu is")
    if config.get("quantization_config"):
        raise Refusal(BAD_INPUT, f"{where}: quantization_config is set; use a checkpoint that is not quantized")
    try:
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        layers = int(config["num_hidden_layers"])
        positions = int(config.get("max_position_embeddings") or family.positions)
        rope = read_rope(config, positions)
        biases = [*family.biases]
        for name, targets in family.optional_biases.items():
            biases += targets if config.get(name) else ()
        window, windowed = _windows(config, family, layers)
        eos = config.get("eos_token_id")
        architecture = Architecture(
            family=kind,
            vocab=int(config["vocab_size"]),
            hidden=hidden,
            feed_forward=int(config["intermediate_size"]),
            layers=layers,
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads", family.kv_heads) or heads),
            head_dim=int(config.get("head_dim") or family.head_dim or hidden // heads),
            norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            rope=rope,
            positions=int(positions * rope.factor) if rope.rope_type == "dynamic" else positions,
            tied_head=bool(config.get("tie_word_embeddings", False)),
            bos=config.get("bos_token_id"),
            eos=tuple(map(int, eos)) if isinstance(eos, list) else () if eos is None else (int(eos),),
            biases=tuple(biases),
            query_key_norm=family.query_key_norm,
            window=window,
            windowed=windowed,
        )
    except KeyError as error:
        raise Refusal(BAD_INPUT, f"{where} has no field {error}; it is no complete {kind} config") from None
    except ValueError as error:
        raise Refusal(BAD_INPUT, f"{where}: {error}") from None
    except (TypeError, AttributeError) as error:
        raise Refusal(BAD_INPUT, f"{where} has a value of the wrong type ({error})") from None
    if architecture.heads % architecture.kv_heads:
        raise Refusal(
            BAD_INPUT,
            f"{where}: num_key_value_heads={architecture.kv_heads} does not divide num_attention_heads={heads}",
        )
    return architecture


def _windows(config: dict[str, Any], family: _Family, layers: int) -> tuple[int, tuple[int, ...]]:
    """(keys that a windowed block's query sees, numbers of those blocks)."""
    stated = config.get("sliding_window", 4096 if family.windows == "all" else None)
    if not stated or not family.windows or (family.windows == "some" and not config.get("use_sliding_window")):
        return 0, ()
    if family.windows == "all":
        windowed = range(layers)
    elif config.get("layer_types"):
        windowed = [layer for layer, kind in enumerate(config["layer_types"]) if kind == "sliding_attention"]
    else:
        windowed = range(int(config.get("max_window_layers", 28)), layers)
    return (int(stated), tuple(windowed)) if len(windowed) else (0, ())


def to_config(architecture: Architecture) -> dict[str, Any]:
    """The `config.json` that transformers reads for a plain Llama of this architecture (the miniature base)."""
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
        "rope_theta": architecture.rope.theta,
        "max_position_embeddings": architecture.positions,
        "tie_word_embeddings": architecture.tied_head,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": architecture.bos,
        "eos_token_id": list(architecture.eos) if len(architecture.eos) > 1 else next(iter(architecture.eos), None),
    }
