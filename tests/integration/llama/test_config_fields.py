"""No field of a config.json is passed over in silence: states follow it as in transformers, or it is refused."""

import json

import numpy as np
import pytest

from mossa_jax.errors import Refusal
from mossa_jax.llama.architecture import architecture_from_config
from mossa_jax.llama.files.load import load_model
from tests.integration.llama.test_families import rows_of
from tests.integration.llama.test_parity import every_state
from tests.support.config_fields import CLASSES, base_config, changes, random_torch_model
from tests.support.tiny_llama import VOCAB, copy_tokenizer, distance, torch_states

PROMPTS = [[1, *np.random.default_rng(3).integers(7, VOCAB, length).tolist()] for length in (40, 11)]


def states_of(config):
    return torch_states(random_torch_model(config), PROMPTS)


def is_same(one, other):
    return all(
        a[name].shape == b[name].shape and distance(a[name], b[name]) < 1e-6
        for a, b in zip(one, other, strict=True)
        for name in a.keys() | b.keys()
        if name in a and name in b
    )


FAST = ("llama", "gemma3_text")


@pytest.mark.parametrize(
    "model_type", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in CLASSES]
)
def test_what_leaves_the_architecture_as_it_is_leaves_the_states_of_transformers(model_type):
    plain = base_config(model_type)
    architecture, states, ignored = architecture_from_config(plain, "here"), states_of(plain), []
    for name, config in changes(model_type).items():
        try:
            changed = architecture_from_config(config, "here")
        except Refusal as refusal:
            assert refusal.code == 3 and name in str(refusal), (name, str(refusal))
            continue
        if changed == architecture and not is_same(states_of(config), states):
            ignored.append(name)
    assert not ignored


@pytest.mark.slow
@pytest.mark.parametrize("model_type", CLASSES)
def test_what_changes_the_architecture_changes_the_states_as_in_transformers(model_type, tmp_path):
    architecture = architecture_from_config(base_config(model_type), "here")
    for name, config in changes(model_type).items():
        try:
            changed = architecture_from_config(config, "here")
        except Refusal:
            continue
        if changed == architecture:
            continue
        reference, folder = random_torch_model(config), tmp_path / name
        reference.save_pretrained(folder)
        copy_tokenizer(folder)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "generation_config.json").unlink(missing_ok=True)
        model = load_model(str(folder))
        rows, places = rows_of(PROMPTS, packed=False)
        states = {key: np.asarray(x) for key, x in every_state(model.architecture, model.state, *rows).items()}
        for (row, start), ids, expected in zip(places, PROMPTS, torch_states(reference, PROMPTS), strict=True):
            for layer, state in states.items():
                assert distance(state[row, start : start + len(ids)], expected[layer]) < 2e-5, (name, layer)
