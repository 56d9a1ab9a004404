"""Tiny random Llama checkpoints, PEFT adapters and task folders, and the states that torch computes from them."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from mossa_jax.config import Analyse
from mossa_jax.tasks.miniature import TOKENIZER

LAYERS = 3
_PIECES = len(json.loads((TOKENIZER / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"])
VOCAB = -(-_PIECES // 8) * 8  # of the embedded tokenizer, rounded up so that it divides over eight devices
NAMES = ("embed", *(str(layer + 1) for layer in range(LAYERS)), "final_norm")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WORDS = "the big red mill stands near a river and seven old boats go under it when rain comes from hills".split()


@dataclasses.dataclass(frozen=True)
class Tiny:
    """A checkpoint folder and the same model in torch."""

    folder: pathlib.Path
    torch_model: object


def import_torch():
    """Imports torch with one thread: its pool and that of XLA would compete for the cores, at a great cost."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    return torch


def copy_tokenizer(folder: pathlib.Path) -> None:
    for file in TOKENIZER.glob("*.json"):
        shutil.copy(file, folder / file.name)


def write_model(folder: pathlib.Path, seed: int = 0, tied: bool = False, hidden: int = 32, **save) -> Tiny:
    """Writes a random grouped-query model in which every parameter matters: wide weights, uneven norm weights."""
    torch = import_torch()
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=hidden, intermediate_size=48, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5, max_position_embeddings=96,
        tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2, initializer_range=0.2,
        attn_implementation="eager",
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.generation_config.pad_token_id = 2
    model.save_pretrained(folder, **save)
    copy_tokenizer(folder)
    return Tiny(folder, model)


FAMILIES = {
    "llama2": ("Llama", {"num_key_value_heads": 4}),
    "llama2_grouped": ("Llama", {}),
    "llama_biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3_tied": (
        "Llama",
        {
            "tie_word_embeddings": True,
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
            },
        },
    ),
    "linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "dynamic": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    "mistral": ("Mistral", {"sliding_window": 7}),
    "mistral_unwindowed": ("Mistral", {"sliding_window": None, "head_dim": 12}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2_some_windowed": ("Qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3_biases": ("Qwen3", {"head_dim": 16, "attention_bias": True}),
    "yarn": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 1e3, "factor": 4.0, "original_max_position_embeddings": 16,
                "beta_fast": 4.0,
            }
        },
    ),
    "yarn_scaled": (
        "Qwen3",
        {
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 12,
                "beta_fast": 2.0, "beta_slow": 0.5, "mscale": 1.5, "mscale_all_dim": 0.5, "truncate": False,
            },
        },
    ),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 6.0, "attention_multiplier": 0.2, "residual_multiplier": 0.4,
            "logits_scaling": 0.5, "attention_bias": True, "mlp_bias": True,
        },
    ),
    "olmo2": ("Olmo2", {}),
    "phi3": ("Phi3", {"sliding_window": 7, "pad_token_id": 0}),
    "phi3_longrope": (
        "Phi3",
        {
            "pad_token_id": 0, "original_max_position_embeddings": 24, "max_position_embeddings": 96,
            "rope_parameters": {
                "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.5,
                "short_factor": [1.0, 1.2], "long_factor": [1.5, 4.0],
            },
        },
    ),
    "gemma2": (
        "Gemma2",
        {"head_dim": 16, "sliding_window": 7, "query_pre_attn_scalar": 9, "attn_logit_softcapping": 2.0,
         "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        "Gemma3",
        {
            "head_dim": 16, "sliding_window": 7, "query_pre_attn_scalar": 12,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
            },
        },
    ),
}  # fmt: skip
"""Name -> (class of transformers, fields that differ from the common small shape)."""


def write_family(folder: pathlib.Path, name: str, seed: int = 0, **change) -> Tiny:
    """Writes a random model of a family, in which every parameter matters, as transformers saves it."""
    torch = import_torch()
    transformers = pytest.importorskip("transformers")
    kind, fields = FAMILIES[name]
    torch.manual_seed(seed)
    common = dict(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, rms_norm_eps=1e-5, max_position_embeddings=24, bos_token_id=1, eos_token_id=2,
        initializer_range=0.2,
    )  # fmt: skip
    # Text alone: Gemma 3 has a class for images as well.
    config_class = getattr(transformers, f"{kind}TextConfig", None) or getattr(transformers, f"{kind}Config")
    config = config_class(**(common | fields | change), attn_implementation="eager")
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if "norm" in part or part.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.generation_config.pad_token_id = 2
    model.save_pretrained(folder)
    copy_tokenizer(folder)
    return Tiny(folder, model)


def torch_model(folder: pathlib.Path):
    """Loads the checkpoint in transformers, float32."""
    import_torch()
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype="float32"
    ).eval()


def write_adapter(model_folder, folder, seed=0, targets=TARGETS, rank=3, layers=None, std=0.15, **options):
    """Lets peft write an adapter with random A and B; returns the torch model that has it."""
    torch, peft = import_torch(), pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=rank, lora_alpha=5, target_modules=list(targets), layers_to_transform=layers,
        layers_pattern=None if layers is None else "layers", task_type="CAUSAL_LM", **options,
    )  # fmt: skip
    model = peft.get_peft_model(torch_model(model_folder), config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, std)
    model.save_pretrained(folder)
    return model.eval()


def torch_states(model, prompts) -> list[dict[str, np.ndarray]]:
    """Runs every prompt alone through transformers: per prompt, layer name -> [S, D] and "logits" -> [S, V]."""
    torch = import_torch()
    actual, kept = [], []
    decoder = model.get_base_model().model if hasattr(model, "get_base_model") else model.model
    hook = decoder.layers[-1].register_forward_hook(
        lambda module, inputs, output: kept.append(output[0] if isinstance(output, tuple) else output)
    )
    try:
        for ids in prompts:
            with torch.no_grad():
                model(torch.tensor([ids[:2]]))  # dynamic RoPE remembers the longest sequence until a short one comes
            kept.clear()
            with torch.no_grad():
                output = model(torch.tensor([ids]), output_hidden_states=True)
            hidden = list(output.hidden_states)
            # The library's last entry is normed already; the hook has the last block's own output.
            layers = [*hidden[:-1], kept[0].reshape(hidden[0].shape), hidden[-1]]
            names = ("embed", *map(str, range(1, len(layers) - 1)), "final_norm")
            states = {name: layer[0].numpy() for name, layer in zip(names, layers, strict=True)}
            actual.append(states | {"logits": output.logits[0].numpy()})
    finally:
        hook.remove()
    return actual


def random_prompts(count: int, seed: int = 0, shortest: int = 3, longest: int = 14) -> list[list[int]]:
    """Token ids of prompts of differing lengths, BOS first."""
    rng = np.random.default_rng(seed)
    return [[1, *rng.integers(3, VOCAB, rng.integers(shortest, longest + 1)).tolist()] for _ in range(count)]


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Distinct short texts of differing lengths with differing last words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(3, 9))) + f" {number}" for number in range(count)]


def distance(actual, expected) -> float:
    """Relative Frobenius distance in float64."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def write_tasks(folder: pathlib.Path, train: int = 24, test: int = 12) -> pathlib.Path:
    """A suite of three small tasks in two clusters."""
    for number, task in enumerate(("copy_first", "count_words", "last_word")):
        for split, rows in (("train", train), ("test", test)):
            path = folder / split / f"{task}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            texts = random_texts(rows, seed=10 * number + (split == "test"))
            answers = [(text.split()[0], str(len(text.split())), text.split()[-1])[number] for text in texts]
            lines = [json.dumps({"inputs": f"{task}: {t}", "targets": a}) for t, a in zip(texts, answers, strict=True)]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    clusters = {"last_word": "words", "copy_first": "words", "count_words": "numbers"}
    (folder / "tasks.json").write_text(json.dumps({task: {"cluster": name} for task, name in clusters.items()}))
    return folder


CONFIG = """
from mossa_jax.config import Analyse, Compare, Config, Schedule, Tasks, Tokens, Tuning


def get_config():
    return Config(
        name="tiny",
        base={base!r},
        tasks=Tasks(suite="folder", folder={folder!r}, held_out=()),
        tokens=Tokens(max_tokens=48, row_length=64),
        tuning=Tuning(
            rank=2,
            control=Schedule(epochs=2, batch_rows=4, learning_rate=5e-3),
            experimental=Schedule(epochs=1, batch_rows=4, learning_rate=5e-3),
            score_prompts=8,
            score_tokens=3,
            log_every=2,
        ),
        compare=Compare(permutations=20, batch_rows=8, draws=50),
        analyse=Analyse({analyses}),
    )
"""


def write_config(path: pathlib.Path, base: pathlib.Path, folder: pathlib.Path, analyses: bool = False) -> pathlib.Path:
    """A config file for `launch.run` on a tiny model and a tiny suite, with all analyses or without any."""
    names = [field.name for field in dataclasses.fields(Analyse) if field.type in (bool, "bool")]
    off = "" if analyses else ", ".join(f"{name}=False" for name in names)
    path.write_text(CONFIG.format(base=str(base), folder=str(folder), analyses=off))
    return path
