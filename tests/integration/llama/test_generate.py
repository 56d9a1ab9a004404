"""Greedy decoding against transformers' generate, every prompt alone, float32.

Seeds are such that at every step the two likeliest tokens' logits differ by 7e-4 or more: rounding decides nothing.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossa_jax.config import Mesh
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.llama.adapters import stack, zero_adapter
from mossa_jax.llama.architecture import Architecture, Rope
from mossa_jax.llama.files.load import load_model
from mossa_jax.llama.files.peft import load_adapter
from mossa_jax.llama.generate import abstract_arguments, greedy
from tests.support.tiny_llama import (
    import_torch,
    random_prompts,
    random_texts,
    torch_model,
    write_adapter,
    write_family,
)

NEVER = (-1,)  # ends no answer
PROMPTS = random_prompts(5, seed=4, shortest=1, longest=11)


def torch_answers(model, prompts, new_tokens, eos=None):
    torch = import_torch()
    answers = []
    for ids in prompts:
        with torch.no_grad():
            model(torch.tensor([[1, 1]]))  # dynamic RoPE remembers the longest sequence until a short one comes
        tokens = torch.tensor([ids])
        actual = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=new_tokens,
            eos_token_id=eos, pad_token_id=0,
        )  # fmt: skip
        answers.append(actual[0, len(ids) :].tolist())
    return answers


def our_answers(model, adapters, prompts, new_tokens, eos=NEVER):
    """All prompts in one padded batch: [A, B, new_tokens]."""
    tokens = np.full((len(prompts), max(map(len, prompts)) + 4), 9, np.int32)  # what stands right must not matter
    for row, ids in enumerate(prompts):
        tokens[row, : len(ids)] = ids
    lengths = jnp.asarray([len(ids) for ids in prompts])
    stacked = stack(model.architecture, adapters)
    actual = greedy(
        model.architecture, model.state, stacked, jnp.asarray(tokens), lengths, eos=eos, new_tokens=new_tokens
    )
    assert actual.shape == (len(adapters), len(prompts), new_tokens)
    return np.asarray(actual).tolist()


def test_answers_of_several_adapters_equal_transformers(tiny, tiny_adapters):
    model = load_model(str(tiny.folder))
    references = [tiny.torch_model, *[reference for _, reference in tiny_adapters]]
    free = [torch_answers(reference, PROMPTS, 6) for reference in references]
    # An id that really comes up, so that rows end at different steps.
    eos = (free[0][0][2], 2)
    model = dataclasses.replace(model, architecture=dataclasses.replace(model.architecture, eos=eos))
    adapters = [{}, *[load_adapter(folder, model.architecture) for folder, _ in tiny_adapters]]
    actual = our_answers(model, adapters, PROMPTS, 6, eos)
    ended = 0
    for answers, reference in zip(actual, references, strict=True):
        for answer, expected in zip(answers, torch_answers(reference, PROMPTS, 6, list(eos)), strict=True):
            ended += len(expected) < 6
            assert answer == expected + [eos[0]] * (6 - len(expected))
    assert ended and free[0] != free[1] != free[2]


@pytest.mark.slow
def test_stories_of_a_trained_model_equal_transformers(stories, tmp_path):
    """64 tokens after 20 prompts; the model alone and two adapters on it in one call."""
    carriers = [
        write_adapter(stories, tmp_path / "every", seed=1, std=0.06),
        write_adapter(stories, tmp_path / "some", seed=2, targets=("v_proj", "up_proj"), rank=2, std=0.06),
    ]
    model = load_model(str(stories))
    prompts = model.tokenizer().prompts([f"Once upon a time, {text}" for text in random_texts(20, seed=6)])
    assert len({len(ids) for ids in prompts}) > 8
    adapters = [{}, *[load_adapter(tmp_path / name, model.architecture) for name in ("every", "some")]]
    actual = our_answers(model, adapters, prompts, 64)
    for answers, reference in zip(actual, [torch_model(stories), *carriers], strict=True):
        assert answers == torch_answers(reference, prompts, 64)
    # The adapters matter, and what they tell still varies.
    for answers in actual[1:]:
        assert all(answer != alone for answer, alone in zip(answers, actual[0], strict=True))
        assert all(len(set(answer)) > 12 for answer in answers)


@pytest.mark.parametrize(
    "name",
    [
        "qwen3",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("mistral", "qwen2_some_windowed", "dynamic", "llama3_tied", "linear")
        ),
    ],
)
def test_answers_of_every_family_equal_transformers(name, tmp_path):
    """Prompts below and above the window of 7 keys; answers that cross it and the first context of 16 or 24."""
    family = write_family(tmp_path, name, seed=2)
    model, rng = load_model(str(tmp_path)), np.random.default_rng(8)
    prompts = [[1, *rng.integers(3, 400, length - 1).tolist()] for length in (3, 9, 19, 30)]
    expected = torch_answers(family.torch_model, prompts, 30)
    assert all(len(answer) == 30 and len(set(answer)) > 7 for answer in expected)
    assert our_answers(model, [zero_adapter(model.architecture)], prompts, 30) == [expected]


def test_no_step_moves_the_cache():
    layers = 7  # no other size of the program
    arch = Architecture(
        vocab=50, hidden=32, feed_forward=48, layers=layers, heads=4, kv_heads=2, head_dim=8, norm_eps=1e-5,
        rope=Rope(1e4), positions=512, tied_head=False, bos=1, eos=(2,),
    )  # fmt: skip
    mesh = mesh_lib.make_mesh(Mesh(), adapters=False, devices=jax.devices()[:1])
    sizes = {"dtype": jnp.float32, "models": 3, "rank": 2, "targets": ("q_proj",), "rows": 4, "width": 32}
    program = greedy.lower(
        arch, *abstract_arguments(arch, mesh, **sizes, prefix=16), eos=NEVER, new_tokens=5, mesh=mesh
    ).as_text()
    moved = re.findall(r"stablehlo\.transpose .*-> tensor<([\dx]+)xf32>", program)
    # Caches have six axes, one of them the layers.
    assert moved and not [shape for shape in moved if shape.count("x") == 5 and str(layers) in shape.split("x")]
