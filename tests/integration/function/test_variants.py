"""Many variants over one base, each against a plain pass with the adapter that it stands for."""

import sys

import numpy as np
import pytest

from mossa_jax.function import profile
from mossa_jax.function.information import make_pairs
from mossa_jax.function.likelihood import log_likelihoods
from mossa_jax.function.packed_pairs import PackedSize, PairConfig
from mossa_jax.function.variant_schedule import schedule_size
from mossa_jax.function.variants import VariantShape, variant_likelihoods, variant_losses, variant_shape
from mossa_jax.llama.adapters import stack
from mossa_jax.llama.files.load import load_model
from mossa_jax.llama.files.peft import load_adapter
from mossa_jax.states import PassConfig
from mossa_jax.tokens.encoded import Encoded, in_memory
from mossa_jax.tokens.packing import Packing
from tests.support.processes import together
from tests.support.tiny_llama import LAYERS, VOCAB

CONFIG = PairConfig(Packing(32, 48), batch_rows=3)
READING = PassConfig("last", CONFIG.batch_rows, CONFIG.packing)
VARIANTS = profile.profile_variants(LAYERS)
SOURCES = profile.sources(VARIANTS)


def examples(count=12, seed=0, shared=()):
    """Pairs of random ids, EOS last; `shared` follows BOS in every prompt."""
    rng = np.random.default_rng(seed)
    draw = lambda size: rng.integers(3, VOCAB, size).tolist()  # noqa: E731
    pairs = [Encoded([1, *shared, *draw(rng.integers(2, 9))], [*draw(rng.integers(0, 5)), 2]) for _ in range(count)]
    return in_memory(pairs)


def shape_for(model, lists, variants=SOURCES, memory=1 << 30):
    sizes = [[PackedSize.of(rows) for rows in CONFIG.pack(model.architecture, pairs)] for pairs in lists]
    return variant_shape(model.architecture, model.mesh, sizes, variants, CONFIG, 4, memory)


def with_sources(adapters, rows):
    """The adapters of variants, written out: every block's matrices from its source."""
    layers = np.arange(rows.shape[1])
    return {target: {name: leaf[rows, layers] for name, leaf in update.items()} for target, update in adapters.items()}


@pytest.fixture
def population(tiny, tiny_adapters):
    """The model, and the base with two adapters of different targets and ranks."""
    model = load_model(str(tiny.folder))
    loaded = [load_adapter(folder, model.architecture) for folder, _ in tiny_adapters]
    return model, stack(model.architecture, [{}, *loaded])


@pytest.mark.parametrize("shared", [(), tuple(range(5, 17))])
def test_every_variant_equals_a_plain_pass_with_its_adapter(population, shared):
    model, adapters = population
    pairs = examples(shared=shared)
    shape = shape_for(model, [pairs])
    assert (shape.pairs.prefix > 0) == bool(shared)
    ours = variant_likelihoods(model, adapters, SOURCES, pairs, CONFIG, shape)
    wanted = log_likelihoods(model, with_sources(adapters, SOURCES), pairs, READING)
    assert ours.shape == (30, 12) and ours.dtype == np.float64
    np.testing.assert_allclose(ours, wanted, rtol=1e-5)
    # All but those that are the same model differ.
    assert len(np.unique(wanted.round(4), axis=0)) == 8 * LAYERS - 7


@pytest.mark.parametrize("lanes", [1, 5])
def test_lanes_change_nothing(population, lanes):
    model, adapters = population
    pairs = examples(seed=1)
    shape = shape_for(model, [pairs])
    other = VariantShape(shape.pairs, schedule_size(SOURCES, lanes))
    ours, wanted = (variant_likelihoods(model, adapters, SOURCES, pairs, CONFIG, each) for each in (other, shape))
    np.testing.assert_allclose(ours, wanted, rtol=1e-5)


def test_exchanging_a_model_for_itself_costs_exactly_nothing(population):
    model, adapters = population
    twins = {target: {name: leaf[[0, 1, 1]] for name, leaf in update.items()} for target, update in adapters.items()}
    rows = rows_of(model, twins)
    swaps = [row for row in rows if row["kept"].startswith("swap")]
    assert len(swaps) == 2 * (LAYERS + 1)
    for measure in ("cost", "information_cost"):
        assert all(row[f"{measure}{end}"] == 0 for row in swaps for end in ("", "_low", "_high"))
    assert any(row["cost"] > 0.01 for row in rows)


def test_blocks_without_an_update_have_exactly_no_gain(population):
    """E changes blocks 3 and above only: keeping it up to block 2 is the base, keeping it from there is E."""
    model, adapters = population
    for update in adapters.values():
        update["b"][1, :2] = 0
    rows = {(row["kept"], row["layer"]): row for row in rows_of(model, adapters) if row["model"] == "tuned"}
    for measure, cost in (("answer_nll", "cost"), ("information", "information_cost")):
        base, full = rows["upto", 0][measure], rows["from", 1][measure]
        assert abs(base - full) > 1e-3
        for kept, k in (("upto", 1), ("upto", 2), ("only", 1), ("only", 2), ("from", 4)):
            assert rows[kept, k][measure] == base
        for kept, k in (("from", 1), ("from", 2), ("from", 3), ("upto", 3), ("only", 3)):
            assert rows[kept, k][cost] == 0 and rows[kept, k][measure] == full


def rows_of(model, adapters):
    pairs = make_pairs(
        model.tokenizer("none"), examples(30, seed=3), np.arange(30), max_tokens=32, truncation="keep_end", seed=(0,),
        swaps=1,
    )  # fmt: skip
    likelihoods = variant_likelihoods(model, adapters, SOURCES, pairs.pairs, CONFIG, shape_for(model, [pairs.pairs]))
    return profile.profile_rows(VARIANTS, pairs, likelihoods)


def test_equal_updates_in_lanes_of_their_own_agree_too(population):
    """The base as a source beside itself, with matrices that its scale takes out, is told apart by no number."""
    model, adapters = population
    pairs = examples(seed=4)
    for update in adapters.values():
        update["a"][0], update["b"][0] = update["a"][1], update["b"][1]
    assert not any(update["scale"][0].any() for update in adapters.values())
    ours = variant_likelihoods(model, adapters, SOURCES, pairs, CONFIG, shape_for(model, [pairs]))
    plain = log_likelihoods(model, with_sources(adapters, SOURCES[:1] * 0), pairs, READING)
    np.testing.assert_allclose(ours[0], plain[0], rtol=1e-6)


def test_lists_share_one_program_whatever_their_sources_and_depths(population):
    model, adapters = population
    lists = [examples(count, seed) for seed, count in enumerate((5, 30, 17))]
    for count in (0, 2):
        variants = profile.sources(profile.profile_variants(LAYERS, count))
        shape = shape_for(model, lists, variants)
        variant_losses.clear_cache()
        for number, pairs in enumerate(lists):
            order = ([0, 1, 2], [0, 2, 1], [0, 1, 1])[number]
            sources = {
                target: {name: leaf[order] for name, leaf in update.items()} for target, update in adapters.items()
            }
            common = variant_likelihoods(model, sources, variants, pairs, CONFIG, shape)
            alone = log_likelihoods(model, with_sources(sources, variants), pairs, READING)
            np.testing.assert_allclose(common, alone, rtol=1e-5)
        assert variant_losses._cache_size() == 1


def test_batches_have_the_rows_that_memory_has_room_for(population):
    model, adapters = population
    pairs = examples(40, seed=6)
    wide, narrow = shape_for(model, [pairs]), shape_for(model, [pairs], memory=200_000)
    assert wide.pairs.rows[0].rows == 3 and narrow.pairs.rows[0].rows == 1
    ours = variant_likelihoods(model, adapters, SOURCES, pairs, CONFIG, narrow)
    np.testing.assert_allclose(ours, variant_likelihoods(model, adapters, SOURCES, pairs, CONFIG, wide), rtol=1e-5)


@pytest.mark.parametrize("meshes", ["2,2,2", pytest.param("1,8,1 4,1,2", marks=pytest.mark.slow)])
def test_eight_devices_equal_one(population, tiny, root, tmp_path, meshes):
    model, adapters = population
    flat = {f"{target}.{side}": leaf for target, update in adapters.items() for side, leaf in update.items()}
    pairs = examples(20, seed=7)
    ids = [(pairs.prompt(i).tolist(), pairs.gather(np.asarray([i])).tolist()) for i in range(len(pairs))]
    columns = {
        name: np.asarray([part + [-1] * (20 - len(part)) for part in parts])
        for name, parts in {
            "prompts": [prompt for prompt, _ in ids],
            "answers": [every[len(prompt) :] for prompt, every in ids],
        }.items()
    }
    np.savez(tmp_path / "inputs.npz", **columns, **flat)
    script = root / "tests/support/variants_on_meshes.py"
    arguments = [tiny.folder, tmp_path / "inputs.npz", tmp_path / "result.npy", meshes]
    together([[sys.executable, script, *arguments]], root, 8, tmp_path)
    alone = variant_likelihoods(model, adapters, SOURCES, pairs, CONFIG, shape_for(model, [pairs]))
    for ours in np.load(tmp_path / "result.npy"):
        np.testing.assert_allclose(ours, alone, rtol=2e-5)
