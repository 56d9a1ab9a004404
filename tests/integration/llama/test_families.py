"""Every family against transformers on torch, float32: padded, packed, beyond windows and beyond the first context."""

import json

import numpy as np
import pytest

from mossa_jax.errors import Refusal
from mossa_jax.llama.architecture import SUPPORTED, architecture_from_config, read_architecture
from mossa_jax.llama.files.load import load_model
from mossa_jax.llama.model import parameter_count
from mossa_jax.llama.published import PUBLISHED
from mossa_jax.tokens.rows import pack_prompts
from tests.integration.llama.test_parity import assert_equal_states, every_state
from tests.support.tiny_llama import FAMILIES, VOCAB, torch_states, write_family

LENGTHS = (3, 60, 11, 24, 30, 40)  # windows are 7 keys, the first context 16 or 24 positions
ROWS, WIDTH = 6, 96


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    return request.param, write_family(tmp_path_factory.mktemp("families") / request.param, request.param)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(5)
    return [[1, *rng.integers(3, VOCAB, length - 1).tolist()] for length in LENGTHS]


@pytest.fixture(scope="module")
def expected(family, prompts):
    return torch_states(family[1].torch_model, prompts)


def rows_of(prompts, packed: bool):
    """Tokens, positions, segments [ROWS, WIDTH], and where each prompt stands: (row, first column)."""
    tokens, positions, segments = (np.zeros((ROWS, WIDTH), np.int32) for _ in range(3))
    places = {}
    if packed:
        (rows,) = pack_prompts(prompts, WIDTH)
        assert len(rows) < len(prompts)
        for array, part in ((tokens, rows.tokens), (positions, rows.positions), (segments, rows.segments)):
            array[: len(part)] = part
        for row, (ends, ids) in enumerate(zip(rows.ends, rows.ids, strict=True)):
            places |= {p: (row, end + 1 - len(prompts[p])) for end, p in zip(ends, ids, strict=True) if p >= 0}
    else:
        tokens += 17
        positions += np.arange(WIDTH)
        for row, ids in enumerate(prompts):
            tokens[row, : len(ids)], segments[row, : len(ids)], places[row] = ids, 1, (row, 0)
    return (tokens, positions, segments), [places[p] for p in range(len(prompts))]


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_states_and_logits_equal_transformers(family, prompts, expected, packed):
    model = load_model(str(family[1].folder))
    rows, places = rows_of(prompts, packed)
    states = {name: np.asarray(s) for name, s in every_state(model.architecture, model.state, *rows).items()}
    actual = [
        {name: state[row, start : start + len(ids)] for name, state in states.items()}
        for (row, start), ids in zip(places, prompts, strict=True)
    ]
    assert_equal_states(actual, expected, 2e-5)


def test_both_spellings_of_the_config_are_read_alike(family):
    name, tiny = family
    config = json.loads((tiny.folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    old = config
    if "full_attention" in rope:
        old["rope_local_base_freq"], rope = rope["sliding_attention"]["rope_theta"], rope["full_attention"]
    old["rope_theta"] = rope["rope_theta"]
    if rope["rope_type"] != "default":
        scaling = {k: v for k, v in rope.items() if k != "rope_theta"}
        if name == "linear":  # as the first configs had it
            scaling["type"] = scaling.pop("rope_type")
        old["rope_scaling"] = scaling
    arch = read_architecture(tiny.folder)
    assert architecture_from_config(old, "here") == arch
    assert parameter_count(arch) == sum(p.numel() for p in tiny.torch_model.parameters())


def test_scaled_frequencies_and_windows_change_the_states(tmp_path, prompts):
    """The oracle itself can tell: without scaling or window the same weights give other states."""
    for name, plain in (("linear", "llama2_grouped"), ("dynamic", "llama2_grouped"), ("mistral", "mistral_unwindowed")):
        change = {"head_dim": 8} if plain == "mistral_unwindowed" else {}
        one = torch_states(write_family(tmp_path / name, name).torch_model, prompts[1:2])[0]
        other = torch_states(write_family(tmp_path / (name + plain), plain, **change).torch_model, prompts[1:2])[0]
        with pytest.raises(AssertionError):
            assert_equal_states([one], [other], 1e-2)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("smollm2-135m", 134_515_008),
        ("llama2-7b", 6_738_415_616),
        ("llama2-13b", 13_015_864_320),
        ("llama2-70b", 68_976_648_192),
        ("llama3-8b", 8_030_261_248),
        ("mistral-7b", 7_241_732_096),
        ("qwen3-8b", 8_190_735_360),
    ],
)
def test_published_sizes(name, count):
    """Counted from shapes alone: nothing of the size of a model is allocated."""
    assert parameter_count(architecture_from_config(PUBLISHED[name], name)) == count


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]}, ("GPTNeoXForCausalLM", *SUPPORTED)),
        ({"model_type": None}, ("None", "LlamaForCausalLM")),
        ({"rope_parameters": {"rope_type": "proportional", "factor": 4.0}}, ("proportional", "llama3")),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, ("low_freq_factor",)),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0.5}}, ("0.5",)),
        ({"partial_rotary_factor": 0.5}, ("partial_rotary_factor",)),
        ({"hidden_act": "gelu"}, ("gelu",)),
        ({"quantization_config": {"quant_method": "gptq"}}, ("quantization_config",)),
        ({"num_key_value_heads": 3}, ("num_key_value_heads",)),
        ({"vocab_size": "many"}, ("many",)),
    ],
)
def test_what_cannot_be_computed_exactly_is_refused_by_name(tiny, change, words):
    config = json.loads((tiny.folder / "config.json").read_text()) | change
    with pytest.raises(Refusal) as caught:
        architecture_from_config(config, "here")
    assert caught.value.code == 3
    assert all(word in str(caught.value) for word in words)
