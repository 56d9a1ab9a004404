"""Greedy decoding against transformers' generate."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_llama import random_prompts

from mossa_jax.llama.adapters import stack
from mossa_jax.llama.generate import greedy
from mossa_jax.llama.load import load_model
from mossa_jax.llama.peft import load_adapter

NEW = 6
PROMPTS = random_prompts(5, seed=4, shortest=1, longest=11)


def torch_answers(model, eos):
    torch = pytest.importorskip("torch")
    answers = []
    for ids in PROMPTS:
        tokens = torch.tensor([ids])
        found = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=NEW,
            eos_token_id=eos, pad_token_id=0,
        )  # fmt: skip
        answers.append(found[0, len(ids) :].tolist())
    return answers


def test_answers_of_several_adapters_equal_transformers(tiny, tiny_adapters):
    model = load_model(str(tiny.folder))
    references = [tiny.torch_model, *[reference for _, reference in tiny_adapters]]
    free = [torch_answers(reference, None) for reference in references]
    # An id that really comes up, so that rows end at different steps.
    eos = free[0][0][2]
    arch = dataclasses.replace(model.architecture, eos=(eos, 2))
    adapters = stack(arch, [{}, *[load_adapter(folder, arch) for folder, _ in tiny_adapters]])
    tokens = np.full((len(PROMPTS), 16), 9, np.int32)  # what stands right of a prompt must not matter
    for row, ids in enumerate(PROMPTS):
        tokens[row, : len(ids)] = ids
    lengths = jnp.asarray([len(ids) for ids in PROMPTS])
    found = np.asarray(
        greedy(arch, model.state, adapters, jnp.asarray(tokens), lengths, eos=tuple(arch.eos), new_tokens=NEW)
    )
    assert found.shape == (3, len(PROMPTS), NEW)
    ended = 0
    for index, reference in enumerate(references):
        for row, wanted in enumerate(torch_answers(reference, [eos, 2])):
            ended += len(wanted) < NEW
            assert found[index, row].tolist() == wanted + [eos] * (NEW - len(wanted))
    assert ended and free[0] != free[1] != free[2]
