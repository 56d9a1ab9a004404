"""Layer states and logits against transformers on torch, float32."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossa_jax.llama.attention import Segments
from mossa_jax.llama.files.load import load_model
from mossa_jax.llama.model import logits, merge, run_blocks
from mossa_jax.tokens.rows import pack_prompts
from tests.support.tiny_llama import NAMES, distance, random_prompts, torch_model, torch_states

PROMPTS = random_prompts(7)


@partial(jax.jit, static_argnames="arch")
def every_state(arch, state, tokens, positions, segments):
    model = merge(arch, state)
    embedded, last, layers = run_blocks(model, arch, {}, tokens, positions, Segments(segments), tap=lambda x, _: x)
    names = arch.state_names()
    states = dict(zip(names, [embedded, *layers, model.final_norm(last)], strict=True))
    return states | {"logits": logits(model, arch, last)}


def padded(prompts, width, filler=0):
    tokens = np.full((len(prompts), width), filler, np.int32)
    segments = np.zeros_like(tokens)
    for row, ids in enumerate(prompts):
        tokens[row, : len(ids)], segments[row, : len(ids)] = ids, 1
    return tokens, np.broadcast_to(np.arange(width, dtype=np.int32), tokens.shape), segments


def unpadded(states, prompts):
    return [{k: np.asarray(v[row, : len(ids)]) for k, v in states.items()} for row, ids in enumerate(prompts)]


def assert_equal_states(actual, expected, tolerance):
    for ours, theirs in zip(actual, expected, strict=True):
        assert set(ours) == set(theirs)
        for name in ours:
            assert distance(ours[name], theirs[name]) < tolerance, name


@pytest.mark.parametrize("which", ["tiny", "tiny_tied"])
def test_every_state_and_the_logits_equal_transformers(which, request):
    folder, reference = request.getfixturevalue(which).folder, request.getfixturevalue(which).torch_model
    model = load_model(str(folder))
    assert model.architecture.state_names() == NAMES
    assert model.architecture.tied_head == (which == "tiny_tied")
    actual = unpadded(every_state(model.architecture, model.state, *padded(PROMPTS, 16)), PROMPTS)
    assert_equal_states(actual, torch_states(reference, PROMPTS), 2e-5)
    # The last block's own output is another thing than the final norm's.
    assert distance(actual[0]["3"], actual[0]["final_norm"]) > 0.01


def test_stories_states_equal_transformers(stories):
    model = load_model(str(stories))
    prompts = [[1, *np.random.default_rng(n).integers(3, 512, 20 + n).tolist()] for n in range(4)]
    actual = unpadded(every_state(model.architecture, model.state, *padded(prompts, 24)), prompts)
    assert_equal_states(actual, torch_states(torch_model(stories), prompts), 2e-5)


def test_packed_rows_and_padding_change_nothing(tiny):
    model = load_model(str(tiny.folder))
    expected = unpadded(every_state(model.architecture, model.state, *padded(PROMPTS, 16)), PROMPTS)
    wide = unpadded(every_state(model.architecture, model.state, *padded(PROMPTS, 40, filler=17)), PROMPTS)
    assert_equal_states(wide, expected, 2e-6)
    (rows,) = pack_prompts(PROMPTS, 32)
    assert len(rows) < len(PROMPTS)  # something is packed
    states = every_state(model.architecture, model.state, rows.tokens, rows.positions, rows.segments)
    packed = [None] * len(PROMPTS)
    for row, (ends, ids) in enumerate(zip(rows.ends, rows.ids, strict=True)):
        for end, prompt in zip(ends, ids, strict=True):
            if prompt >= 0:
                columns = slice(end + 1 - len(PROMPTS[prompt]), end + 1)
                packed[prompt] = {name: np.asarray(value[row, columns]) for name, value in states.items()}
    assert_equal_states(packed, expected, 2e-6)


def test_bfloat16_stays_near_float32(tiny):
    wide, narrow = load_model(str(tiny.folder)), load_model(str(tiny.folder), dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow.state)} == {jnp.dtype("bfloat16")}
    rows = padded(PROMPTS, 16)
    expected = unpadded(every_state(wide.architecture, wide.state, *rows), PROMPTS)
    actual = unpadded(every_state(narrow.architecture, narrow.state, *rows), PROMPTS)
    assert_equal_states(actual, expected, 0.06)
    assert distance(actual[0]["3"], expected[0]["3"]) > 1e-4  # it is another type indeed
