"""Rows that hold the ids all their sequences share only once equal sequences that each carry those ids."""

from dataclasses import fields

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossa_jax.llama.adapters import matrices, scales, with_scales
from mossa_jax.llama.architecture import read_architecture
from mossa_jax.llama.attention import Segments
from mossa_jax.llama.files.load import load_model
from mossa_jax.llama.files.peft import load_adapter
from mossa_jax.llama.model import can_share_prefix, merge, run_blocks
from mossa_jax.tokens.encoded import Encoded, in_memory
from mossa_jax.tokens.packing import shared_prefix
from mossa_jax.tokens.rows import pack_examples
from mossa_jax.tuning.loss import answer_loss
from tests.integration.tuning.test_loss import torch_loss_and_gradients
from tests.support.tiny_llama import FAMILIES, VOCAB, distance, torch_states, write_family

LENGTHS = (40, 27, 1, 2, 9, 3, 17, 1, 5, 21, 2)  # of the ids after the shared ones
LEAD = [1, *np.random.default_rng(8).integers(3, VOCAB, 13).tolist()]


def prompts():
    rng = np.random.default_rng(3)
    # Prompts differ from the next id on, so no more than LEAD is shared.
    return [[*LEAD, 3 + number, *rng.integers(3, VOCAB, size - 1).tolist()] for number, size in enumerate(LENGTHS)]


def examples():
    rng = np.random.default_rng(4)
    return [Encoded(ids, [*rng.integers(3, VOCAB, rng.integers(0, 5)).tolist(), 2]) for ids in prompts()]


@pytest.mark.parametrize("remat", [pytest.param(False, marks=pytest.mark.slow), True])
def test_loss_and_gradients_equal_unshared_rows_and_torch_example_by_example(tiny, tiny_adapters, remat):
    folder, reference = tiny_adapters[0]
    total, count, wanted = torch_loss_and_gradients(reference, examples())
    model = load_model(str(tiny.folder))
    arch, adapter = model.architecture, load_adapter(folder, model.architecture)
    mine = in_memory(examples())
    assert shared_prefix(mine) == len(LEAD) and can_share_prefix(arch)

    def both(length, shared):
        (packed,) = pack_examples(mine, length, prefix_length=shared)
        max_own = packed.max_own
        rows = packed.take(np.arange(len(packed)))
        rows = {field.name: jnp.asarray(getattr(rows, field.name)) for field in fields(rows)}

        @jax.jit
        def results(parts, base):
            def loss(parts):
                whole = with_scales(parts, scales(adapter))
                return answer_loss(merge(arch, base), arch, whole, rows, remat, prefix=shared, max_own=max_own)

            return jax.value_and_grad(loss, has_aux=True)(parts)

        return packed, *results(matrices(adapter), model.state)

    packed, (loss, tokens), gradients = both(68, len(LEAD))
    assert packed.plan.counts.max() > 2 and packed.plan.counts[-1] == 1 and len(packed) > 2
    apart, (plain, _), plain_gradients = both(96, 0)
    assert apart.length * len(apart) > packed.length * len(packed)
    assert int(tokens) == count
    assert float(loss) == pytest.approx(total, rel=1e-5) and float(loss) == pytest.approx(float(plain), rel=1e-6)
    assert len(wanted) == 2 * 7 * arch.layers
    for (target, side, layer), theirs in wanted.items():
        assert distance(gradients[target][side][layer], plain_gradients[target][side][layer]) < 1e-5
        assert distance(gradients[target][side][layer], theirs) < 1e-5, (target, side, layer)


@pytest.mark.parametrize("name", ["llama2_grouped", "llama3_tied", "qwen3_biases"])
def test_states_of_prompts_after_shared_ids_equal_each_prompt_alone(name, tmp_path):
    tiny = write_family(tmp_path / "model", name)
    model = load_model(str(tiny.folder))
    arch = model.architecture
    (packed,) = pack_examples(in_memory(examples()), 68, prefix_length=len(LEAD))
    rows = packed.take(np.arange(len(packed)))

    @jax.jit
    def states(base, tokens, positions, segments):
        visible = Segments(segments, prefix_columns=len(LEAD))
        return run_blocks(merge(arch, base), arch, {}, tokens, positions, visible, tap=lambda x, _: x)[2]

    ours = np.asarray(states(model.state, rows.tokens, rows.positions, rows.segments))
    wanted = torch_states(tiny.torch_model, [[*one.prompt, *one.answer] for one in examples()])
    items = iter(packed.plan.items)
    for row in range(len(rows)):
        for number in range(1, packed.plan.counts[row] + 1):
            item, own = next(items), np.flatnonzero(rows.segments[row] == number)
            columns = [*range(len(LEAD)), *own]
            for layer in range(arch.layers):
                theirs = wanted[item][str(layer + 1)]
                assert np.array_equal(theirs.shape, ours[layer, row, columns].shape)
                assert distance(ours[layer, row, columns], theirs) < 2e-5, (item, layer)


def test_windows_and_dynamic_scaling_share_nothing(tmp_path):
    told = {name: can_share_prefix(read_architecture(write_family(tmp_path / name, name).folder)) for name in FAMILIES}
    alone = {"dynamic", "mistral", "qwen2_some_windowed", "phi3", "phi3_longrope", "gemma2", "gemma3"}
    assert {name for name in told if not told[name]} == alone
