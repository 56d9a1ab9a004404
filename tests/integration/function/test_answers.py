"""Greedy answers, and the shapes in which several lists of prompts are answered."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.function import answers as answering
from mossa_jax.function.answers import AnswerConfig, AnswerShape, greedy_answers
from mossa_jax.llama.adapters import stack
from mossa_jax.llama.files.load import load_model
from mossa_jax.llama.files.peft import load_adapter
from mossa_jax.llama.generate import greedy
from tests.support.tiny_llama import random_texts

CONFIG = AnswerConfig(max_tokens=96, new_tokens=3, batch_rows=8)


@pytest.mark.parametrize("count", [2, 12, 60])
def test_several_lists_have_one_number_of_rows_and_at_most_two_widths(count):
    rng = np.random.default_rng(count)
    lists = [rng.integers(4, rng.integers(8, 97), rng.integers(1, 40)) for _ in range(count)]
    shape = AnswerShape.of(lists, CONFIG, mesh_lib.single_device())
    assert 1 <= shape.rows <= 8 and len(shape.widths) <= 2
    assert all(shape.width_for(max(lengths)) in shape.widths for lengths in lists)
    assert shape.width_for(5) == shape.widths[0] and shape.width_for(300) == 320


def test_a_single_list_has_the_width_of_each_of_its_batches():
    shape = AnswerShape.of([np.asarray([4] * 8 + [40] * 8 + [90] * 8)], CONFIG, mesh_lib.single_device())
    assert shape == AnswerShape(8, (32, 64, 96))


def test_common_shapes_change_no_answer(tiny, tiny_adapters, monkeypatch):
    model = load_model(str(tiny.folder))
    adapters = stack(model.architecture, [{}, load_adapter(tiny_adapters[0][0], model.architecture)])
    tokenizer = model.tokenizer("none")
    prompts = [np.asarray(ids) for ids in tokenizer.prompts(random_texts(11, seed=3))]
    wanted = []
    for ids in prompts:
        eos = (tokenizer.eos, *model.architecture.eos)
        ids = ids.tolist()
        answers = greedy(
            model.architecture, model.state, adapters, jnp.asarray([[*ids, *[0] * (64 - len(ids))]]),
            jnp.asarray([len(ids)]), eos=tuple(dict.fromkeys(eos)), new_tokens=3,
        )  # fmt: skip
        wanted.append([tokenizer.text(answers[model, 0].tolist()) for model in range(2)])
    alone = greedy_answers(model, adapters, tokenizer, prompts, CONFIG)
    assert [list(pair) for pair in zip(*alone, strict=True)] == wanted and len(set(alone[0])) > 5
    widths, run = set(), greedy
    monkeypatch.setattr(answering, "greedy", lambda *rest, **more: widths.add(rest[3].shape) or run(*rest, **more))
    common = greedy_answers(model, adapters, tokenizer, prompts, CONFIG, AnswerShape(6, (64, 96)))
    assert alone == common and widths == {(6, 64)}


def test_ids_that_all_prompts_share_are_read_once_and_change_no_answer(tiny, tiny_adapters, monkeypatch):
    model = load_model(str(tiny.folder))
    adapters = stack(model.architecture, [{}, load_adapter(tiny_adapters[0][0], model.architecture)])
    tokenizer = model.tokenizer("none")
    head = np.arange(3, 43)
    prompts = [np.concatenate([[1], head, ids[1:]]) for ids in tokenizer.prompts(random_texts(11, seed=4))]
    shapes, run = [], greedy
    monkeypatch.setattr(answering, "greedy", lambda *rest, **more: shapes.append(rest[3].shape) or run(*rest, **more))
    alone = greedy_answers(model, adapters, tokenizer, prompts, replace(CONFIG, share_prefix=False))
    longest, shapes = max(shape[1] for shape in shapes), []
    once = greedy_answers(model, adapters, tokenizer, prompts, CONFIG)
    assert once == alone and len(set(alone[0])) > 5 and once[0] != once[1]
    assert max(shape[1] for shape in shapes) <= longest - 32
    # A list that shares nothing may use the program of one that does.
    free = [ids[41:] for ids in prompts]
    shape = AnswerShape.of([np.asarray([len(ids) for ids in free])], CONFIG, mesh_lib.single_device(), [41])
    assert shape.prefix == 64
    assert greedy_answers(model, adapters, tokenizer, free, CONFIG, shape) == greedy_answers(
        model, adapters, tokenizer, free, CONFIG
    )
