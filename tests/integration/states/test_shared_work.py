"""Work that is done once for all prompts or models gives the states that each of them has alone."""

import jax
import numpy as np
import pytest

from mossa_jax.llama.adapters import stack, zero_adapter
from mossa_jax.llama.files.load import load_model
from mossa_jax.llama.files.peft import load_adapter
from mossa_jax.states import PassConfig, keep, keep_states
from mossa_jax.states.prompts import first_changed_block
from mossa_jax.tokens.packing import Packing, common_prefix
from tests.support.tiny_llama import (
    LAYERS,
    NAMES,
    VOCAB,
    distance,
    random_prompts,
    torch_states,
    write_adapter,
    write_family,
)

LEAD = [1, *np.random.default_rng(8).integers(3, VOCAB, 36).tolist()]  # more than one step of the shared columns
ZERO = "zero"


def behind_lead(count, seed=0, **sizes):
    return [[*LEAD, *own[1:]] for own in random_prompts(count, seed, **sizes)]


def states(folder, adapters, prompts, pool="last", **options):
    model = load_model(str(folder))
    parts = {None: lambda _: {}, ZERO: lambda _: zero_adapter(model.architecture)}
    loaded = [parts.get(path, lambda path: load_adapter(path, model.architecture))(path) for path in adapters]
    stacked = stack(model.architecture, loaded)
    config = PassConfig(pool, 3, Packing(**{"row_length": 96, **options}))
    kept = keep_states(model, stacked, prompts, config)
    return np.asarray(jax.device_get(kept.states))[:, :, kept.valid], kept.names


def by_torch(reference, prompts, pool):
    pooled = {"last": lambda layer: layer[-1], "mean": lambda layer: layer.mean(0)}[pool]
    return np.stack([[pooled(prompt[name]) for prompt in torch_states(reference, prompts)] for name in NAMES])


@pytest.mark.parametrize("pool", ["last", pytest.param("mean", marks=pytest.mark.slow)])
@pytest.mark.parametrize("lengths", [pytest.param({}, marks=pytest.mark.slow), {"shortest": 60, "longest": 90}])
def test_shared_ids_are_run_once(tiny, tiny_adapters, pool, lengths, monkeypatch):
    """Prompts with a few ids of their own, or with more than a block of queries."""
    prompts = behind_lead(12, **lengths)
    seen = []
    run = keep.keep_batch
    monkeypatch.setattr(keep, "keep_batch", lambda spec, *rest: (seen.append((spec, rest[2])), run(spec, *rest))[1])
    paths = [None, tiny_adapters[0][0]]
    shared, names = states(tiny.folder, paths, prompts, pool)
    assert names == tuple(NAMES)
    assert seen and all(spec.prefix_length == 64 and int((rows.segments > 0).sum(1).max()) <= 96 for spec, rows in seen)
    apart, _ = states(tiny.folder, paths, prompts, pool, row_length=160, share_prefix=False)
    assert distance(shared, apart) < 1e-5
    for found, reference in zip(shared, (tiny.torch_model, tiny_adapters[0][1]), strict=True):
        for layer, theirs in zip(found, by_torch(reference, prompts, pool), strict=True):
            assert distance(layer, theirs) < 1e-4


@pytest.mark.parametrize(
    "name",
    [
        "qwen3_biases",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("llama_biases", "mistral", "qwen2_some_windowed", "dynamic")
        ),
    ],
)
def test_other_families(name, tmp_path):
    tiny = write_family(tmp_path / "model", name)
    prompts = behind_lead(6, shortest=10, longest=60)
    found, _ = states(tiny.folder, [ZERO], prompts)
    for layer, theirs in zip(found[0], by_torch(tiny.torch_model, prompts, "last"), strict=True):
        assert distance(layer, theirs) < 1e-4


def test_blocks_below_the_first_adapter_are_run_once(tiny, tmp_path, monkeypatch):
    reference = write_adapter(tiny.folder, tmp_path / "late", seed=5, layers=[LAYERS - 2])
    prompts, widths = random_prompts(9), []
    run = keep.run_models

    def counted(spec, model, adapters, batch, prefix, consume, state):
        def spying(state, layer, x, every_position):
            widths.append(len(x))
            return consume(state, layer, x, every_position)

        return run(spec, model, adapters, batch, prefix, spying, state)

    monkeypatch.setattr(keep, "run_models", counted)
    jax.clear_caches()
    found, _ = states(tiny.folder, [None, tmp_path / "late"], prompts, row_length=32)
    assert sorted(set(widths)) == [1, 2]
    assert np.array_equal(found[0, : LAYERS - 1], found[1, : LAYERS - 1])
    assert distance(found[0, LAYERS - 1 :], found[1, LAYERS - 1 :]) > 1e-3
    for layer, theirs in zip(found[1], by_torch(reference, prompts, "last"), strict=True):
        assert distance(layer, theirs) < 1e-4


def test_first_changed_block(tiny, tiny_adapters):
    arch = load_model(str(tiny.folder)).architecture
    full = load_adapter(tiny_adapters[0][0], arch)
    assert first_changed_block(arch, stack(arch, [{}, full])) == 0
    nothing = {name: {**part, "b": 0 * part["b"]} for name, part in full.items()}
    assert first_changed_block(arch, stack(arch, [nothing])) == arch.layers - 1
    late = {
        name: {**part, "scale": np.where(np.arange(arch.layers) < 1, 0, part["scale"])} for name, part in full.items()
    }
    assert first_changed_block(arch, stack(arch, [nothing, late])) == 1


def test_a_prefix_is_shared_only_if_it_is_long_enough():
    assert common_prefix(behind_lead(5)) == len(LEAD)
    assert common_prefix(random_prompts(5)) == 0  # BOS alone
    assert common_prefix([LEAD, LEAD]) == len(LEAD) - 1  # every prompt keeps an id of its own
