"""The architecture of a Llama-family model, read from a Hugging Face `config.json`.

Everything that a `model_type` implies is in `families`; whatever a family computes differently is a field here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from etils import epath

from mossa_jax import foreign
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.foreign import short
from mossa_jax.llama.families import FAMILIES, NEUTRAL, SUPPORTED, Family
from mossa_jax.llama.fields import LARGEST_ID, Fields
from mossa_jax.llama.generation_config import read_stop_ids
from mossa_jax.llama.rope import Rope, local_rope, read_rope

__all__ = ["SUPPORTED", "Architecture", "architecture_from_config", "read_architecture", "read_config", "to_config"]

# The largest sizes that are read. Beyond them a number is a slip, and no device holds the model.
_MOST_LAYERS, _MOST_HEADS, _MOST_WIDTH, _MOST_IDS, _MOST_POSITIONS = 10_000, 100_000, 10_000_000, 10_000_000, 10**9
_MOST_PARAMETERS = 10**14
# Names of one function, x * sigmoid(x), and of the other one, by a hyperbolic tangent.
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
_LAYER_TYPES = {"full_attention": False, "attention": False, "sliding_attention": True}


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
      fused: queries, keys and values are one projection, `qkv_proj`, and gate and up another, `gate_up_proj`.
      query_key_norm: queries and keys are normed before the rotation: "" not at all, "head" each head by itself,
        "projection" all heads together.
      window: how many keys a query of a windowed block sees, itself included; 0: no block is windowed.
      windowed: the numbers, from 0, of the windowed blocks; none where `window` is 0.
      local_rope: rotation of the windowed blocks where it differs from `rope`; None: it does not.
      norms: where a block's norms stand: "pre" before attention and feed-forward part, "post" behind each, before it is
        added, "both".
      norm_offset: added to the weight of every norm.
      wide_norms: the weight of a norm multiplies in float32, before the states are cast back.
      activation: of the gate: "silu" or "gelu_tanh".
      embedding_scale: factor of the embedding.
      attention_scale: factor of the attention scores; 0: d^-0.5.
      residual_scale: factor of what attention and feed-forward part add to the residual stream.
      logit_divisor: divides the logits.
      attention_cap, logit_cap: scores and logits x become cap tanh(x / cap); 0: they stay.
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
    fused: bool = False
    query_key_norm: str = ""
    window: int = 0
    windowed: tuple[int, ...] = ()
    local_rope: Rope | None = None
    norms: str = "pre"
    norm_offset: float = 0.0
    wide_norms: bool = False
    activation: str = "silu"
    embedding_scale: float = 1.0
    attention_scale: float = 0.0
    residual_scale: float = 1.0
    logit_divisor: float = 1.0
    attention_cap: float = 0.0
    logit_cap: float = 0.0

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
      Refusal: 3 when the file is missing, is no file, or is not a JSON object.
    """
    path = epath.Path(folder) / "config.json"
    if not path.exists():
        raise Refusal(BAD_INPUT, f"{folder} has no config.json; --base takes a Hugging Face model folder or hub id")
    return foreign.read_object(path)


def read_architecture(folder: epath.PathLike) -> Architecture:
    """Reads the `config.json` of a checkpoint folder, in the spelling of transformers 4 or 5.

    The ids that end an answer come from `generation_config.json` where there is one that names them.

    Raises:
      Refusal: 3 when the file is missing or is not JSON, a field is missing or out of its range, or the model cannot be
        computed exactly; the message names the field or architecture and what is supported.
    """
    architecture = architecture_from_config(read_config(folder), str(epath.Path(folder) / "config.json"))
    stops = read_stop_ids(folder)
    return architecture if stops is None else replace(architecture, eos=stops)


def architecture_from_config(config: dict[str, Any], where: str) -> Architecture:
    """Does the work of `read_architecture` for a parsed `config.json`, which refusals call `where`."""
    model_type = config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        names = config.get("architectures")
        named = ", ".join(map(str, names)) if isinstance(names, list) and names else "no architecture"
        raise Refusal(
            BAD_INPUT,
            f"{where}: model_type {short(model_type)} ({short(named)}) is not supported; use one of: "
            f"{', '.join(SUPPORTED)}",
        )
    try:
        return _architecture(config, str(model_type), family)
    except ValueError as error:
        raise Refusal(BAD_INPUT, f"{where}: {error}") from None


def _architecture(config: dict[str, Any], model_type: str, family: Family) -> Architecture:
    """Reads the fields of a family's config; every problem is a ValueError that names the field."""
    # Packed integers cannot be read as a matrix of floats.
    if config.get("quantization_config"):
        raise ValueError("quantization_config is set; use a checkpoint that is not quantized")
    _check_neutral(config, family)
    fields = Fields(config)
    heads = fields.whole("num_attention_heads", 1, _MOST_HEADS)
    # Null, or absent where the family has no default: as many as query heads.
    default = heads if "num_key_value_heads" in config else family.kv_heads or heads
    kv_heads = fields.whole("num_key_value_heads", 1, heads, default)
    # Each key/value head serves a whole number of query heads.
    if heads % kv_heads:
        raise ValueError(f"num_key_value_heads={kv_heads} does not divide num_attention_heads={heads}")
    hidden = fields.whole("hidden_size", 1, _MOST_WIDTH)
    layers = fields.whole("num_hidden_layers", 1, _MOST_LAYERS)
    # Stated where it is not hidden / heads.
    head_dim = fields.whole("head_dim", 2, _MOST_WIDTH, family.head_dim or hidden // heads)
    if head_dim < 2 or head_dim % 2:
        raise ValueError(f"head_dim={head_dim} is not an even number from 2; the numbers of a head turn in pairs")
    positions = fields.whole("max_position_embeddings", 1, _MOST_POSITIONS, family.positions)
    window, windowed = _windows(fields, family, layers)
    rope = read_rope(fields, head_dim, positions, model_type)
    local = local_rope(fields, head_dim, positions) if family.local_rope and windowed else None
    act_field, act_default = family.activation
    architecture = Architecture(
        family=model_type,
        vocab=fields.whole("vocab_size", 1, _MOST_IDS),
        hidden=hidden,
        feed_forward=fields.whole("intermediate_size", 1, _MOST_WIDTH),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=fields.number("rms_norm_eps", 0.0, 1.0, family.norm_eps),
        rope=rope,
        positions=max(positions, rope.longest),
        tied_head=fields.flag("tie_word_embeddings", family.tied_head),
        bos=fields.whole("bos_token_id", 0, LARGEST_ID) if fields.has("bos_token_id") else None,
        # A number, a list of numbers (Llama 3), or nothing.
        eos=fields.ids("eos_token_id"),
        # Those that always have one, and those whose option the config sets.
        biases=(
            *family.biases,
            *(name for option, names in family.optional_biases.items() if fields.flag(option) for name in names),
        ),
        fused=family.fused,
        query_key_norm=family.query_key_norm,
        window=window,
        windowed=windowed,
        local_rope=None if local == rope else local,
        norms=family.norms,
        norm_offset=family.norm_offset,
        wide_norms=family.wide_norms,
        activation=_ACTIVATIONS[fields.choice(act_field, tuple(_ACTIVATIONS), act_default)],
        **_factors(fields, family, model_type, hidden, head_dim),
    )
    size = architecture.matrix_parameters
    if size > _MOST_PARAMETERS:
        raise ValueError(
            f"its sizes (vocab_size, hidden_size, intermediate_size, num_hidden_layers, heads) make {size:.1e} "
            f"parameters, more than {_MOST_PARAMETERS:.0e}"
        )
    return architecture


def _check_neutral(config: dict[str, Any], family: Family) -> None:
    """Refuses fields with which a relative computes something that this family, or this package, does not."""
    known = (*family.takes, *family.optional_biases)
    for name, values in NEUTRAL.items():
        value = config.get(name)
        # By type as well: 1 equals true in Python.
        if name not in known and not (value is None or any(value == v and _kind(value) == _kind(v) for v in values)):
            raise ValueError(f"{name}={short(value)} changes what a model computes, and is not supported here")


def _kind(value: Any) -> type:
    return float if type(value) is int else type(value)


def _factors(fields: Fields, family: Family, model_type: str, hidden: int, head_dim: int) -> dict[str, float]:
    """Returns the factors and caps of `Architecture` that a family has."""
    factors: dict[str, float] = {}
    if model_type == "granite":
        scale = fields.number("attention_multiplier", 1e-9, 1e9, 1.0)
        factors["embedding_scale"] = fields.number("embedding_multiplier", 1e-9, 1e9, 1.0)
        factors["residual_scale"] = fields.number("residual_multiplier", 1e-9, 1e9, 1.0)
        factors["logit_divisor"] = fields.number("logits_scaling", 1e-9, 1e9, 1.0)
    elif "query_pre_attn_scalar" in family.takes:
        scale = fields.number("query_pre_attn_scalar", 1e-9, 1e9, 256.0) ** -0.5
        factors["embedding_scale"] = hidden**0.5
        # Null, or absent in Gemma 3: no cap.
        for name, cap, default in (
            ("attn_logit_softcapping", "attention_cap", 50.0),
            ("final_logit_softcapping", "logit_cap", 30.0),
        ):
            if name in family.takes:
                is_absent = name not in fields.config and model_type == "gemma2"
                factors[cap] = default if is_absent else fields.number(name, 1e-3, 1e9) if fields.has(name) else 0.0
    else:
        return factors
    # The usual scale is that of every other model.
    return factors | {"attention_scale": 0.0 if scale == head_dim**-0.5 else scale}


def _windows(fields: Fields, family: Family, layers: int) -> tuple[int, tuple[int, ...]]:
    """Returns how many keys a windowed block's query sees, and the numbers of those blocks."""
    if not family.windows:
        return 0, ()
    types = _layer_types(fields, layers)
    # A `sliding_window` of null means none, also where the family has a default.
    default = 0 if "sliding_window" in fields.config else family.window
    window = fields.whole("sliding_window", 1, _MOST_POSITIONS, default)
    windowed: tuple[int, ...]
    if family.windows == "all":
        windowed = tuple(range(layers))
    elif family.windows == "some" and not fields.flag("use_sliding_window"):
        windowed = ()
    elif types is not None:
        # Newer configs list the type of each layer; older ones name the first windowed layer, or say that every n-th
        # has no window.
        windowed = tuple(layer for layer, is_windowed in enumerate(types) if is_windowed)
    elif family.windows == "some":
        windowed = tuple(range(fields.whole("max_window_layers", 0, _MOST_LAYERS, 28), layers))
    else:
        every = family.full_every
        if "sliding_window_pattern" in family.takes:
            every = fields.whole("sliding_window_pattern", 1, _MOST_LAYERS, every)
        windowed = tuple(layer for layer in range(layers) if (layer + 1) % every)
    if windowed and not window and family.windows == "listed":
        raise ValueError("sliding_window is null, and layer_types has sliding_attention; state the window")
    # Without windowed blocks the window is 0, so that equal models have equal architectures.
    return (window, windowed) if window and windowed else (0, ())


def _layer_types(fields: Fields, layers: int) -> list[bool] | None:
    """Returns whether each layer is windowed, as `layer_types` lists them; None where it is absent."""
    if not fields.has("layer_types"):
        return None
    types = fields.config["layer_types"]
    if not isinstance(types, list) or len(types) != layers:
        raise ValueError(f"layer_types={short(types)} is not a list with one type for each of {layers} layers")
    for each in types:
        if not isinstance(each, str) or each not in _LAYER_TYPES:
            raise ValueError(f"layer_types has {short(each)}, which is not supported; use {', '.join(_LAYER_TYPES)}")
    return [_LAYER_TYPES[each] for each in types]


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
