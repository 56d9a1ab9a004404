"""Adapter configs with whatever values: they are read or refused in one line, and nothing takes long."""

import dataclasses
import json
import random

import pytest
from etils import epath

from mossa_jax.errors import Refusal
from mossa_jax.llama.architecture import architecture_from_config
from mossa_jax.llama.files.peft_config import _HARMLESS, _READ, read_config
from mossa_jax.llama.files.peft_modules import adapted_modules

LLAMA = {
    "model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 2,
}  # fmt: skip
PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
# JSON as text, so that it can hold what Python would not write.
VALUES = (
    "null", "true", "false", "0", "-1", "1", "3", "2.5", "1e308", "-1e308", "1e400", "1" + "0" * 400, "9" * 5000, '""',
    '"q_proj"', '"(a+)+$"', '"(.*.*)*x"', '"((((("', '"[z-a]"', '"all-linear"', "[]", "{}", '["q_proj"]', "[[1]]",
    '["(a+)+$"]', "[1, 2]", "[1" + "0" * 400 + "]", '{"q_proj": 2}', '{"(a+)+": 2}', '{"q_proj": 1e400}', '{"(": 1}',
    '{"embed_tokens": [1]}', '{"a": {"b": null}}', "[" * 90 + "]" * 90, "[" * 5000 + "]" * 5000,
    '"\\ud800"', '"\\u0000"',
    '"' + "x" * 10_000 + '"', '"' + ".*" * 500 + 'x"', "NaN", "Infinity", "-0.0", "1e-320",
)  # fmt: skip
FIELDS = [*_READ, *_HARMLESS, "use_dora", "tomorrow"]


@pytest.fixture(scope="module")
def arch():
    return architecture_from_config(LLAMA, "config.json")


def read(folder, text, arch):
    path = epath.Path(folder) / "adapter_config.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return adapted_modules(read_config(path), arch, path)


def test_drawn_configs_are_read_or_refused_in_one_line(tmp_path, arch):
    rng, outcomes = random.Random(3), {"read": 0, "refused": 0}
    for _ in range(200):
        fields = {name: json.dumps(value) for name, value in PLAIN.items()}
        fields |= {name: rng.choice(VALUES) for name in rng.sample(FIELDS, rng.randint(1, 3))}
        text = "{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}"
        try:
            assert read(tmp_path, text, arch).projections is not None
            outcomes["read"] += 1
        except Refusal as refusal:
            assert refusal.code in (3, 5) and "adapter_config.json" in str(refusal) and len(str(refusal)) < 1000
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20


@pytest.mark.parametrize("value", VALUES, ids=lambda text: text[:12])
def test_every_value_in_every_field_is_read_or_refused(tmp_path, arch, value):
    for field in ("r", "target_modules", "rank_pattern", "layers_to_transform", "modules_to_save"):
        plain = ", ".join(f'"{name}": {json.dumps(of)}' for name, of in PLAIN.items() if name != field)
        try:
            read(tmp_path, "{" + plain + f', "{field}": {value}' + "}", arch)
        except Refusal as refusal:
            assert refusal.code == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"r": 2**21}, "r=2097152"),
        ({"target_modules": "(?>q_proj)"}, "atomic_group"),
        ({"target_modules": ".*" * 1000}, "too intricate"),
        ({"modules_to_save": "lm_head"}, "modules_to_save='lm_head'"),
        ({"modules_to_save": ["q_proj"], "target_modules": ["1.self_attn.q_proj"]}, "matches no projection"),
        ({"modules_to_save": ["_proj"]}, "in target_modules and in modules_to_save"),
        ({"trainable_token_indices": {"lm_head": [1]}}, "others than embed_tokens"),
        ({"trainable_token_indices": [-1]}, "trainable_token_indices=-1"),
        ({"bias": "some"}, "bias='some'"),
        ({"rank_pattern": {str(number): 2 for number in range(20_001)}}, "at most 20,000 entries"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)  # fmt: skip
def test_values_out_of_range_are_named(tmp_path, arch, change, words):
    with pytest.raises(Refusal, match=words.replace("(", r"\(")) as caught:
        read(tmp_path, json.dumps(PLAIN | change), arch)
    assert caught.value.code == 3


def test_a_family_without_a_default_has_its_targets_named(arch):
    with pytest.raises(Refusal, match="no default in a olmo2"):
        adapted_modules({"r": 1, "lora_alpha": 1, "rank_pattern": {}, "alpha_pattern": {}},
                        dataclasses.replace(arch, family="olmo2"), "adapter_config.json")  # fmt: skip
