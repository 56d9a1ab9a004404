"""The architecture of a Llama-family model, read from a Hugging Face `config.json`.

To support another member of the family, add its `model_type` to `_FAMILIES`; whatever it computes differently becomes
a field of `Architecture`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from etils import epath

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.llama.generation_config import read_stop_ids
from mossa_jax.llama.rope import Rope, read_rope

_QKV = ("q_proj", "k_proj", "v_proj")
_QKVO = (*_QKV, "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class _Family:
    """Everything that a `model_type` implies without stating it in its config.json.

    Attributes:
      positions, kv_heads, head_dim: defaults of fields that a config may leave out; with 0, they follow from others.
      biases: projections that always have a bias.
      optional_biases: field of the config -> projections that have a bias where it is set.
      windows: how the config states a sliding window: "" never; "all" by `sliding_window` alone; "some" by
        `use_sliding_window` and the layers that it holds for.
      query_key_norm: queries and keys are normed per head.
    """

    positions: int = 2048
    kv_heads: int = 0
    head_dim: int = 0
    biases: tuple[str, ...] = ()
    optional_biases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    windows: str = ""
    query_key_norm: bool = False


# Defaults are those of the family's configuration class in transformers.
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

    Shape letters of the package are in brackets.

    Attributes:
      vocab: rows of the embedding (V).
      hidden: width of the residual stream (D).
      feed_forward: width of the inside of the gated feed-forward part (F).
      layers: number of blocks (L).
      heads: query heads (H).
      kv_heads: key/value heads (K); divides `heads`.
      head_dim: width of one head (d).
      norm_eps: added to the mean square in RMSNorm.
      rope: rotary position embedding.
      positions: the longest sequence that the model is made for.
      tied_head: the output head is the embedding.
      bos: the config's BOS id; None if it has none.
      eos: ids that end an answer.
      family: `model_type` of the config.json.
      biases: projections with a bias.
      query_key_norm: queries and keys are normed per head before the rotation.
      window: how many keys a query of a windowed block sees, itself included; 0: no block is windowed.
      windowed: the numbers, from 0, of the windowed blocks; none where `window` is 0.
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
        """Counts the parameters that every token passes through: blocks and head, not the embedding look-up."""
        # q and o have D x H d numbers each, k and v D x K d.
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        # gate, up and down.
        block = attention + 3 * self.hidden * self.feed_forward
        return self.layers * block + self.vocab * self.hidden

    def state_names(self) -> tuple[str, ...]:
        """Returns the layer names in order: embed, 1..L (block outputs before the final norm), final_norm."""
        return ("embed", *(str(layer + 1) for layer in range(self.layers)), "final_norm")


def read_config(folder: epath.PathLike) -> dict[str, Any]:
    """Parses the `config.json` of a model folder.

    Raises:
      Refusal: 3 when the file is missing or is not a JSON object.
    """
    path = epath.Path(folder) / "config.json"
    if not path.exists():
        raise Refusal(BAD_INPUT, f"{folder} has no config.json; --base takes a Hugging Face model folder or hub id")
    try:
        config = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Refusal(BAD_INPUT, f"{path} is not valid JSON ({error}); copy it again") from None
    if not isinstance(config, dict):
        raise Refusal(BAD_INPUT, f"{path} is not valid JSON for a model (not an object); copy it again")
    return config


def read_architecture(folder: epath.PathLike) -> Architecture:
    """Reads the `config.json` of a checkpoint folder, in the spelling of transformers 4 or 5.

    The ids that end an answer come from `generation_config.json` where there is one that names them.

    Raises:
      Refusal: 3 when the file is missing or is not JSON, a field is missing, or the model cannot be computed exactly;
        the message names the field or architecture and what is supported.
    """
    architecture = architecture_from_config(read_config(folder), str(epath.Path(folder) / "config.json"))
    stops = read_stop_ids(folder)
    return architecture if stops is None else replace(architecture, eos=stops)


def architecture_from_config(config: dict[str, Any], where: str) -> Architecture:
    """Does the work of `read_architecture` for a parsed `config.json`, which refusals call `where`."""
    model_type = config.get("model_type")
    if model_type not in _FAMILIES:
        named = ", ".join(map(str, config.get("architectures") or [])) or "no architecture"
        raise Refusal(
            BAD_INPUT,
            f"{where}: model_type {model_type!r} ({named}) is not supported; use one of: {', '.join(SUPPORTED)}",
        )
    family = _FAMILIES[model_type]
    # Two names of one function, x * sigmoid(x).
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise Refusal(
            BAD_INPUT, f"{where}: hidden_act={config['hidden_act']!r} is not supported; use a model with silu"
        )
    # Packed integers cannot be read as a matrix of floats.
    if config.get("quantization_config"):
        raise Refusal(BAD_INPUT, f"{where}: quantization_config is set; use a checkpoint that is not quantized")
    try:
        # Fields that are indexed have no default; `get` falls back on the default of the family's configuration class.
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        layers = int(config["num_hidden_layers"])
        positions = int(config.get("max_position_embeddings") or family.positions)
        rope = read_rope(config, positions)
        # Projections with a bias: those that always have one, and those whose option the config sets.
        biases = [*family.biases]
        for name, targets in family.optional_biases.items():
            biases += targets if config.get(name) else ()
        window, windowed = _windows(config, family, layers)
        eos = config.get("eos_token_id")
        architecture = Architecture(
            family=model_type,
            vocab=int(config["vocab_size"]),
            hidden=hidden,
            feed_forward=int(config["intermediate_size"]),
            layers=layers,
            heads=heads,
            # Absent: the family's default, if it has one. Null, or no default: as many as query heads.
            kv_heads=int(config.get("num_key_value_heads", family.kv_heads) or heads),
            # Stated where it is not hidden / heads.
            head_dim=int(config.get("head_dim") or family.head_dim or hidden // heads),
            norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            rope=rope,
            # `max_position_embeddings` is the original context here, which the scaling stretches.
            positions=int(positions * rope.factor) if rope.rope_type == "dynamic" else positions,
            tied_head=bool(config.get("tie_word_embeddings", False)),
            bos=config.get("bos_token_id"),
            # A number, a list of numbers (Llama 3), or nothing.
            eos=tuple(map(int, eos)) if isinstance(eos, list) else () if eos is None else (int(eos),),
            biases=tuple(biases),
            query_key_norm=family.query_key_norm,
            window=window,
            windowed=windowed,
        )
    except KeyError as error:
        raise Refusal(BAD_INPUT, f"{where} has no field {error}; a {model_type} config needs it") from None
    except ValueError as error:
        raise Refusal(BAD_INPUT, f"{where}: {error}") from None
    except (TypeError, AttributeError) as error:
        raise Refusal(BAD_INPUT, f"{where} has a value of the wrong type ({error})") from None
    # Each key/value head serves a whole number of query heads.
    if architecture.heads % architecture.kv_heads:
        raise Refusal(
            BAD_INPUT,
            f"{where}: num_key_value_heads={architecture.kv_heads} does not divide num_attention_heads={heads}",
        )
    return architecture


def _windows(config: dict[str, Any], family: _Family, layers: int) -> tuple[int, tuple[int, ...]]:
    """Returns how many keys a windowed block's query sees, and the numbers of those blocks."""
    stated = config.get("sliding_window", 4096 if family.windows == "all" else None)
    # A `sliding_window` of null means none, also where the family has a default.
    if not stated or not family.windows or (family.windows == "some" and not config.get("use_sliding_window")):
        return 0, ()
    windowed: tuple[int, ...]
    if family.windows == "all":
        windowed = tuple(range(layers))
    elif config.get("layer_types"):
        # Newer configs list the type of each layer; older ones name the first windowed layer.
        types = enumerate(config["layer_types"])
        windowed = tuple(layer for layer, layer_type in types if layer_type == "sliding_attention")
    else:
        windowed = tuple(range(int(config.get("max_window_layers", 28)), layers))
    # Without windowed blocks the window is 0, so that equal models have equal architectures.
    return (int(stated), windowed) if windowed else (0, ())


def to_config(architecture: Architecture) -> dict[str, Any]:
    """Returns the `config.json` of a plain Llama of this architecture, as transformers reads it."""
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
