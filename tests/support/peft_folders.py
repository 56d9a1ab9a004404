"""Adapters as peft and the tools around it write them: the oracle of what is read, and the names of what is refused."""

import dataclasses
import json
import pathlib
import shutil
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.support.tiny_llama import TARGETS, import_torch, torch_model

STEM = "base_model.model."
WEIGHTS = "adapter_model.safetensors"


@dataclasses.dataclass(frozen=True)
class Case:
    """An adapter folder: how peft makes it, what is done to it then, and what is to come of it here.

    Attributes:
      options: of `peft.LoraConfig`.
      base: name of the base model: "untied", "tied" or "biased".
      change: done to the folder after peft has written it.
      refused: words of the refusal; empty if the states have to be those of peft.
      code: of the refusal.
      bare: the adapter is for the model without a head.
      embeddings: `save_embedding_layers` of peft.
    """

    options: dict
    base: str = "untied"
    change: Callable[[pathlib.Path], None] = lambda folder: None
    refused: str = ""
    code: int = 3
    bare: bool = False
    embeddings: bool | str = "auto"


def config(**fields) -> Callable[[pathlib.Path], None]:
    """Sets fields of adapter_config.json; `...` takes a field out."""

    def change(folder: pathlib.Path) -> None:
        path = folder / "adapter_config.json"
        data = json.loads(path.read_text()) | fields
        path.write_text(json.dumps({name: value for name, value in data.items() if value is not ...}))

    return change


def tensors(function: Callable[[dict], dict]) -> Callable[[pathlib.Path], None]:
    """Changes the tensors of the folder."""

    def change(folder: pathlib.Path) -> None:
        path = folder / WEIGHTS
        save_file(function(load_file(path)), path, metadata={"format": "pt"})

    return change


def renamed(old: str, new: str) -> Callable[[pathlib.Path], None]:
    return tensors(lambda every: {name.replace(old, new): tensor for name, tensor in every.items()})


def both(*changes: Callable[[pathlib.Path], None]) -> Callable[[pathlib.Path], None]:
    def change(folder: pathlib.Path) -> None:
        for each in changes:
            each(folder)

    return change


def _pickled(folder: pathlib.Path) -> None:
    torch = import_torch()
    path = folder / WEIGHTS
    torch.save({name: torch.tensor(tensor) for name, tensor in load_file(path).items()}, folder / "adapter_model.bin")
    path.unlink()


def _other_beside(folder: pathlib.Path) -> None:
    shutil.copytree(folder, folder / "other")
    (folder / "adapter_model.bin").write_bytes(b"a pickle that must not be opened")


def _spoilt(value: float) -> Callable[[pathlib.Path], None]:
    def spoil(every: dict) -> dict:
        name = sorted(every)[3]
        every[name] = every[name].copy()
        every[name][0, 0] = value
        return every

    return tensors(spoil)


def _unset_all(folder: pathlib.Path) -> None:
    """Leaves what peft's first versions wrote."""
    path = folder / "adapter_config.json"
    data = json.loads(path.read_text())
    kept = ("base_model_name_or_path", "bias", "inference_mode", "lora_alpha", "lora_dropout", "peft_type", "r")
    data = {name: data[name] for name in (*kept, "target_modules", "task_type", "modules_to_save")}
    path.write_text(json.dumps(data | {"fan_in_fan_out": False, "merge_weights": False, "enable_lora": None}))


def _half(dtype: str) -> Callable[[pathlib.Path], None]:
    def change(folder: pathlib.Path) -> None:
        from safetensors.torch import load_file as load_torch
        from safetensors.torch import save_file as save_torch

        torch, path = import_torch(), folder / WEIGHTS
        save_torch({name: t.to(getattr(torch, dtype)) for name, t in load_torch(path).items()}, path)

    return change


_QV = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}
_ALL = {"r": 4, "lora_alpha": 6, "target_modules": list(TARGETS)}
_UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:q_proj|v_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp)\.(?:(?:q_proj|v_proj|up_proj)))"
)

CASES = {
    # What is adapted.
    "plain": Case(_QV),
    "all seven": Case(_ALL),
    "all-linear": Case(_QV | {"target_modules": "all-linear"}, change=config(target_modules="all-linear")),
    "no targets named": Case(_QV, change=config(target_modules=None)),
    "no targets field": Case(_QV, change=config(target_modules=...)),
    "one regex": Case(_QV | {"target_modules": r".*layers\.(0|2)\..*(k_proj|down_proj)"}),
    "regex of unsloth": Case(_QV | {"target_modules": _UNSLOTH}),
    "regex with a look-ahead": Case(_QV | {"target_modules": r"^(?!.*layers\.1).*(?:q_proj|o_proj)$"}),
    "regex in capitals": Case(_QV | {"target_modules": r"(?i).*Q_PROJ"}),
    "full names": Case(_QV | {"target_modules": ["model.layers.1.mlp.up_proj", "layers.0.self_attn.q_proj"]}),
    "excluded names": Case(_ALL | {"exclude_modules": ["1.mlp.up_proj", "o_proj"]}),
    "excluded regex": Case(_ALL | {"exclude_modules": r".*\.[01]\.mlp.*"}),
    "some layers": Case(_QV | {"layers_to_transform": [0, 2]}),
    "some layers, pattern": Case(_QV | {"layers_to_transform": [1], "layers_pattern": "layers"}),
    "one layer, patterns": Case(_QV | {"layers_to_transform": 1, "layers_pattern": ["h", "layers"]}),
    "no layer named": Case(_QV | {"layers_to_transform": []}),
    # Sizes and scales.
    "rslora": Case(_QV | {"use_rslora": True}),
    "patterns": Case(
        _ALL
        | {
            "rank_pattern": {"layers.1.self_attn.q_proj": 6, "v_proj": 2, r"layers\.[02]\.mlp\.(up|gate)_proj": 5},
            "alpha_pattern": {"layers.2.self_attn.q_proj": 9.5, "^model.layers.0.mlp.down_proj": 1, "o_proj": 7},
        }
    ),
    "patterns, rslora": Case(_QV | {"rank_pattern": {"q_proj": 7}, "alpha_pattern": {"v_proj": 3}, "use_rslora": True}),
    "rank and alpha left out": Case(_QV | {"r": 8, "lora_alpha": 8, "target_modules": ["q_proj"]},
                                    change=config(r=..., lora_alpha=...)),
    "alpha of zero": Case(_QV | {"lora_alpha": 0}),
    "negative alpha": Case(_QV | {"lora_alpha": -3.5}),
    # Fields.
    "fan_in_fan_out": Case(_QV, change=config(fan_in_fan_out=True)),
    "first version of peft": Case(_QV, change=_unset_all),
    "merge_weights": Case(_QV, change=config(merge_weights=True)),
    "unsloth_fixed": Case(_QV, change=config(unsloth_fixed=True, revision=None)),
    "feature extraction": Case(_QV | {"task_type": "FEATURE_EXTRACTION"}),
    "no task": Case(_QV, change=config(task_type=None)),
    "eva": Case(_QV, change=config(init_lora_weights="eva", eva_config={"rho": 2.0})),
    "runtime_config": Case(_QV, change=config(runtime_config={"ephemeral_gpu_offload": True})),
    "other base named": Case(_QV, change=config(base_model_name_or_path="someone/else", revision="main")),
    "float16": Case(_QV, change=_half("float16")),
    "bfloat16": Case(_QV, change=_half("bfloat16")),
    "a second adapter and a pickle beside": Case(_QV, change=_other_beside),
    # Weights of its own.
    "embeddings, equal": Case(_QV, embeddings=True),
    "embeddings, equal, tied": Case(_QV, base="tied", embeddings=True),
    "embeddings, other": Case(
        _QV, embeddings=True, change=tensors(lambda t: {n: x * 1.5 if "embed" in n else x for n, x in t.items()})
    ),
    "head, other, tied": Case(
        _QV, base="tied", embeddings=True,
        change=tensors(lambda t: {n: x * 1.5 if "lm_head" in n else x for n, x in t.items()})
    ),
    "modules_to_save embedding and head": Case(_QV | {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "modules_to_save embedding, tied": Case(_QV | {"modules_to_save": ["embed_tokens"]}, base="tied"),
    "modules_to_save head": Case(_QV | {"modules_to_save": ["lm_head"]}),
    "modules_to_save head, tied": Case(_QV | {"modules_to_save": ["lm_head"]}, base="tied"),
    "modules_to_save norms": Case(_QV | {"modules_to_save": ["norm", "input_layernorm"]}),
    "modules_to_save norm alone": Case(_QV | {"modules_to_save": ["model.norm"]}),
    "modules_to_save a projection": Case(_QV | {"modules_to_save": ["o_proj"]}),
    "modules_to_save a feed-forward part": Case(_QV | {"modules_to_save": ["1.mlp"]}),
    "modules_to_save of a classifier": Case(_QV | {"modules_to_save": ["classifier", "score"]}),
    "target embedding": Case(_QV | {"target_modules": ["q_proj", "embed_tokens"]}),
    "target embedding alone": Case(_QV | {"target_modules": ["embed_tokens"]}),
    "target head": Case(_QV | {"target_modules": ["q_proj", "lm_head"]}),
    "target head, tied": Case(_QV | {"target_modules": ["q_proj", "lm_head"]}, base="tied", embeddings=False),
    "target embedding, tied": Case(_QV | {"target_modules": ["q_proj", "embed_tokens"]}, base="tied"),
    "trainable tokens": Case(_QV | {"trainable_token_indices": [5, 1, 9]}),
    "trainable tokens by name, tied": Case(_QV | {"trainable_token_indices": {"embed_tokens": [4, 7]}}, base="tied"),
    "modules_to_save embedding and head, tied": Case(
        _QV | {"modules_to_save": ["embed_tokens", "lm_head"]}, base="tied"
    ),
    "modules_to_save head, kept tied": Case(
        _QV | {"modules_to_save": ["lm_head"], "ensure_weight_tying": True}, base="tied"
    ),
    "modules_to_save embedding, kept tied": Case(
        _QV | {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, base="tied"
    ),
    "target head, kept tied": Case(
        _QV | {"target_modules": ["q_proj", "lm_head"], "ensure_weight_tying": True}, base="tied",
        refused="ensure_weight_tying=True",
    ),
    "target embedding, kept tied": Case(
        _QV | {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}, base="tied",
        refused="ensure_weight_tying=True",
    ),
    "trainable tokens, kept tied": Case(
        _QV | {"trainable_token_indices": [3, 8], "ensure_weight_tying": True}, base="tied"
    ),
    "bias all": Case(_QV | {"bias": "all"}, base="biased"),
    "bias lora_only": Case(_QV | {"bias": "lora_only"}, base="biased"),
    "bias all, no biases": Case(_QV | {"bias": "all"}),
    # Heads of other tasks.
    "classifier head": Case(
        _QV, change=both(config(task_type="SEQ_CLS", modules_to_save=["classifier", "score"]),
                         tensors(lambda t: t | {f"{STEM}score.weight": np.ones((2, 32), np.float32)}))
    ),
    "token classifier head": Case(
        _QV, change=both(config(task_type="TOKEN_CLS"),
                         tensors(lambda t: t | {f"{STEM}classifier.weight": np.ones((3, 32), np.float32),
                                                f"{STEM}classifier.bias": np.ones(3, np.float32)}))
    ),
    # The model without a head.
    "bare": Case(_QV, bare=True),
    "bare, regex": Case(_QV | {"target_modules": r"layers\.[01]\..*q_proj"}, bare=True),
    "bare, norms": Case(_QV | {"modules_to_save": ["norm"]}, bare=True),
    "bare, embedding": Case(_QV | {"modules_to_save": ["embed_tokens"]}, bare=True),
    # Refused by name.
    "dora": Case(_QV | {"use_dora": True}, refused="use_dora=True"),
    "lora_bias": Case(_QV | {"lora_bias": True}, refused="lora_bias=True", base="biased"),
    "pissa": Case(_QV, change=config(init_lora_weights="pissa"), refused="init_lora_weights='pissa'"),
    "layer replication": Case(_QV | {"layer_replication": [[0, 2], [1, 3]]}, refused="layer_replication="),
    "field of tomorrow": Case(_QV, change=config(use_quantum=True), refused="use_quantum=True"),
    "pickle alone": Case(_QV, change=_pickled, refused="pickled adapters are refused"),
    "name of the adapter in tensors": Case(_QV, change=renamed(".weight", ".default.weight"), refused="missing"),
    "no prefix": Case(_QV, change=renamed(STEM, ""), refused="missing"),
    "a tensor is missing": Case(_QV, change=tensors(lambda t: dict(sorted(t.items())[1:])), refused="missing"),
    "resized embedding": Case(
        _QV, embeddings=True, change=tensors(lambda t: {n: np.pad(x, ((0, 8), (0, 0))) if "lora" not in n else x
                                                        for n, x in t.items()}), refused="has shape"
    ),
    "loha": Case(_QV, change=config(peft_type="LOHA"), refused="peft_type 'LOHA'"),
    "not finite": Case(_QV, change=_spoilt(np.nan), refused="holds NaN or infinity", code=5),
    "infinite": Case(_QV, change=_spoilt(-np.inf), refused="holds NaN or infinity", code=5),
    "scale beyond float32": Case(_QV, change=config(lora_alpha=1e300), refused="beyond float32", code=5),
}  # fmt: skip
"""Name -> case."""

FAST = (
    "no targets named", "fan_in_fan_out", "embeddings, other", "modules_to_save embedding and head", "target embedding",
    "trainable tokens", "classifier head", "bare, norms", "regex of unsloth", "dora", "resized embedding", "not finite",
)  # fmt: skip
"""The cases that stand for all in the fast tests; all of base "untied"."""


def base_model(folder: pathlib.Path, bare: bool = False):
    """Loads a base model in transformers, with its head or without."""
    if not bare:
        return torch_model(folder)
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModel.from_pretrained(folder, attn_implementation="eager", dtype="float32").eval()


def write_case(case: Case, base: pathlib.Path, folder: pathlib.Path, seed: int = 5) -> None:
    """Lets peft write the adapter of a case with random numbers."""
    torch, peft = import_torch(), pytest.importorskip("peft")
    options = {"task_type": "FEATURE_EXTRACTION" if case.bare else "CAUSAL_LM"} | case.options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base_model(base, case.bare), peft.LoraConfig(**options))
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.normal_(0, 0.15)
                elif parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder, save_embedding_layers=case.embeddings)
    case.change(folder)


def peft_states(case: Case, base: pathlib.Path, folder: pathlib.Path, prompts: list) -> list[np.ndarray]:
    """Returns peft's states of the last token of every prompt: per layer name in order, [n, D]."""
    torch, peft = import_torch(), pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(base_model(base, case.bare), folder).eval()
    whole = model.get_base_model()
    decoder, last = getattr(whole, "model", whole), []
    decoder.layers[-1].register_forward_hook(
        lambda module, inputs, output: last.append(output[0] if isinstance(output, tuple) else output)
    )
    rows = []
    for ids in prompts:
        last.clear()
        with torch.no_grad():
            hidden = decoder(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        layers = [*hidden[:-1], last[0].reshape(hidden[0].shape), hidden[-1]]
        rows.append([layer[0, -1].numpy() for layer in layers])
    return [np.stack(layer) for layer in zip(*rows, strict=True)]
