"""Adapters of all kinds that peft writes have peft's states at every layer, or are refused by name."""

import collections

import numpy as np
import pytest

from mossa_jax.errors import Refusal
from mossa_jax.existing.passes import pass_config
from mossa_jax.llama.adapters import initial_adapter, stack
from mossa_jax.llama.files.adapted import load_adapted
from mossa_jax.llama.files.load import load_model
from mossa_jax.states import keep_states
from tests.support.peft_folders import CASES, FAST, peft_states, write_case
from tests.support.tiny_llama import TARGETS, random_prompts, write_family

PROMPTS = random_prompts(6, seed=8)
TOLERANCE = 2e-5


class Bases:
    """The base models, loaded once each: name -> (folder, model)."""

    def __init__(self, folders):
        self.folders, self._models = folders, {}

    def model(self, name):
        if name not in self._models:
            self._models[name] = load_model(str(self.folders[name]))
        return self._models[name]


def our_states(model, folder):
    """The states of the last token, [L + 2, n, D]; all adapters have one shape, so that one program serves them all."""
    own, adapter, _ = load_adapted(model, folder)
    every = initial_adapter(own.architecture, TARGETS, 8, 1.0, 0, (0,))
    stacked = {
        target: {name: leaf[:1] for name, leaf in update.items()}
        for target, update in stack(own.architecture, [adapter, every]).items()
    }
    kept = keep_states(own, stacked, PROMPTS, pass_config(own, "last", [PROMPTS]))
    return np.asarray(kept.states)[0, :, : len(PROMPTS)]


def outcome(case, bases, folder) -> str:
    """Returns "equal", "refused", or what is wrong."""
    base = bases.folders[case.base]
    write_case(case, base, folder)
    model = bases.model(case.base)
    try:
        actual = our_states(model, folder)
    except Refusal as refusal:
        if case.refused and case.refused in str(refusal) and refusal.code == case.code:
            return "refused"
        return f"refused with {refusal.code}: {refusal}"
    if case.refused:
        return "not refused"
    wanted = peft_states(case, base, folder, PROMPTS)
    worst = [np.abs(ours - theirs).max() / np.abs(theirs).max() for ours, theirs in zip(actual, wanted, strict=True)]
    return "equal" if max(worst) < TOLERANCE else f"SILENTLY WRONG, by layer: {[f'{one:.0e}' for one in worst]}"


@pytest.fixture(scope="module")
def bases(tiny, tiny_tied, tmp_path_factory):
    biased = write_family(tmp_path_factory.mktemp("models") / "biased", "qwen2", seed=3, tie_word_embeddings=False)
    return Bases({"untied": tiny.folder, "tied": tiny_tied.folder, "biased": biased.folder})


@pytest.mark.parametrize("name", FAST)
def test_an_adapter_has_the_states_of_peft_or_is_refused_by_name(bases, tmp_path, name):
    assert outcome(CASES[name], bases, tmp_path) == ("refused" if CASES[name].refused else "equal")


@pytest.mark.slow
def test_no_adapter_of_the_matrix_is_read_otherwise_than_by_peft(bases, tmp_path):
    outcomes = {name: outcome(case, bases, tmp_path / str(i)) for i, (name, case) in enumerate(CASES.items())}
    wrong = {name: text for name, text in outcomes.items() if text != ("refused" if CASES[name].refused else "equal")}
    print(collections.Counter(outcomes.values()))
    assert not wrong
    assert len(outcomes) > 60
