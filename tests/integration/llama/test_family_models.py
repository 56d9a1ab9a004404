"""Families that compute something of their own, in use: adapters by PEFT's names, answers, tuning, merged folders."""

import numpy as np
import pytest

import mossa_jax as mossa
from mossa_jax.errors import Refusal
from mossa_jax.llama.adapters import check_targets, target_sizes
from mossa_jax.llama.architecture import read_architecture
from mossa_jax.llama.files.load import load_model
from mossa_jax.llama.files.peft import load_adapter
from tests.integration.llama.test_generate import our_answers, torch_answers
from tests.integration.llama.test_peft_folders import jitted_logits
from tests.integration.tuning.test_torch_peft import assert_the_same, random_tasks
from tests.support.tiny_llama import distance, random_prompts, torch_model, torch_states, write_adapter, write_family

NAMES = ("granite", "olmo2", "phi3", "gemma2", "gemma3")
PROMPTS = random_prompts(4, seed=6, shortest=2, longest=16)


@pytest.fixture(scope="module", params=NAMES)
def used(request, tmp_path_factory):
    """(the base's folder, an adapter of all its projections, peft's model with it)."""
    here = tmp_path_factory.mktemp(request.param)
    tiny = write_family(here / "base", request.param)
    targets = tuple(target_sizes(read_architecture(tiny.folder)))
    return tiny.folder, here / "adapter", write_adapter(tiny.folder, here / "adapter", targets=targets, std=0.05)


def test_an_adapter_is_read_by_pefts_names_and_answers_as_there(used):
    folder, adapter, carrier = used
    model = load_model(str(folder))
    update = load_adapter(adapter, model.architecture)
    expected = [states["logits"] for states in torch_states(carrier, PROMPTS)]
    plain = [states["logits"] for states in torch_states(torch_model(folder), PROMPTS)]
    tokens, segments = (np.zeros((len(PROMPTS), 20), np.int32) for _ in range(2))
    for row, ids in enumerate(PROMPTS):
        tokens[row, : len(ids)], segments[row, : len(ids)] = ids, 1
    positions = np.broadcast_to(np.arange(20), tokens.shape)
    ours = np.asarray(jitted_logits(model.architecture, model.state, update, tokens, positions, segments))
    for row, ids in enumerate(PROMPTS):
        assert distance(ours[row, : len(ids)], expected[row]) < 1e-5
        assert distance(plain[row], expected[row]) > 0.01
    assert our_answers(model, [update], PROMPTS, 12) == [torch_answers(carrier, PROMPTS, 12)]


def test_a_merged_folder_is_read_by_transformers(used, tmp_path):
    folder, adapter, carrier = used
    mossa.export_merged(str(folder), str(adapter), str(tmp_path / "merged"))
    for actual, expected in zip(
        torch_states(torch_model(tmp_path / "merged"), PROMPTS), torch_states(carrier, PROMPTS), strict=True
    ):
        assert distance(actual["logits"], expected["logits"]) < 1e-5


@pytest.mark.parametrize("name", ["gemma2", *(pytest.param(n, marks=pytest.mark.slow) for n in NAMES if n != "gemma2")])
def test_tuning_takes_the_steps_that_peft_takes(name, tmp_path):
    folder = write_family(tmp_path / "base", name).folder
    targets = tuple(target_sizes(read_architecture(folder)))
    assert_the_same(folder, random_tasks(1, examples=12), 24, targets, 6, tmp_path)


def test_targets_that_a_family_lacks_are_refused_by_name(used):
    arch = read_architecture(used[0])
    check_targets(arch, tuple(target_sizes(arch)))
    missing = "q_proj" if arch.family == "phi3" else "qkv_proj"
    with pytest.raises(Refusal, match=rf"{missing}.*o_proj"):
        check_targets(arch, (missing,))
