"""Adapters that are kept while their models are trained: which, that they are true, and that training never notices."""

import jax
import numpy as np
import pytest

from mossa_jax.config import Schedule, Tuning
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.llama.files.load import load_model
from mossa_jax.processes.stop import Stop
from mossa_jax.tuning import population_run
from mossa_jax.tuning.members import TuningContext
from mossa_jax.tuning.population_run import tune_population
from mossa_jax.tuning.slots import plan_slots
from tests.integration.tuning.test_population import make_member

STEPS = (30, 17, 8, 3)
# Half, a quarter and an eighth of each, rounded up.
KEPT = {(0, 4), (0, 8), (0, 15), (1, 3), (1, 5), (1, 9), (2, 1), (2, 2), (2, 4), (3, 1), (3, 2)}
SLOTS = 2


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(str(tiny.folder))


@pytest.fixture(scope="module")
def members():
    return [make_member(number, steps) for number, steps in enumerate(STEPS)]


class _Breaking(RunFolder):
    """Breaks down when the loss of a step is recorded."""

    at = 0

    def append_metrics(self, record):
        super().append_metrics(record)
        if record["model"] == "task 0" and record["step"] == self.at:
            raise RuntimeError("broken down")


def tune(model, members, run_folder, snapshots, checkpoint_every=200):
    """Returns the adapters by name, and the snapshots by (name, steps)."""
    tuning = Tuning(rank=2, targets=("q_proj", "down_proj"), slots=SLOTS, log_every=1, snapshots=snapshots)
    tuning.checkpoint_every = checkpoint_every
    ends, kept = {}, {}

    def keep(member, step, adapter):
        kept[member.name, step] = adapter

    try:
        tune_population(
            "group",
            members,
            model,
            Schedule(batch_rows=2, learning_rate=1e-2),
            TuningContext(tuning, run_folder, Stop()),
            lambda member, adapter: ends.update({member.name: adapter}),
            keep_snapshot=keep,
        )
    except RuntimeError as error:
        assert str(error) == "broken down"
    return ends, kept


def folder(path, kind=RunFolder):
    path.mkdir(parents=True)
    return kind(path)


@pytest.fixture(scope="module")
def watched(model, members, tmp_path_factory):
    """Returns ends, snapshots, and the arrays of all slots after every step as the training loop has them."""
    states = []
    train = population_run.train

    def watching(label, total, state, step, *reports, **options):
        def watched(state, number):
            state, metrics = step(state, number)
            states.append(jax.tree.map(np.array, state.adapters))
            return state, metrics

        return train(label, total, state, watched, *reports, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(population_run, "train", watching)
        ends, kept = tune(model, members, folder(tmp_path_factory.mktemp("watched") / "run"), snapshots=3)
    return ends, kept, states


def equal(ours, theirs):
    return jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))


def test_each_model_is_kept_at_shares_of_its_own_steps_whatever_its_slot(watched):
    _, kept, _ = watched
    assert set(kept) == {(f"task {number}", step) for number, step in KEPT}


def test_a_snapshot_is_the_adapter_of_that_step(watched):
    _, kept, states = watched
    plan = plan_slots(STEPS, SLOTS)
    for number, step in KEPT:
        slot, state = plan.slot[number], states[plan.start[number] + step - 1]
        for target, leaves in kept[f"task {number}", step].items():
            for name in ("a", "b"):
                assert np.array_equal(leaves[name], state[target][name][slot]), (number, step)
            assert leaves["scale"].tolist() == [8, 8, 8]


def test_trained_adapters_have_the_same_bits_without_snapshots(model, members, watched, tmp_path):
    ends, none = tune(model, members, folder(tmp_path / "run"), snapshots=0)
    assert not none and set(ends) == set(watched[0])
    assert all(equal(ends[name], watched[0][name]) for name in ends)


@pytest.mark.parametrize("at", [5, 9, 16])
def test_a_run_that_breaks_down_keeps_every_snapshot_with_its_bits(model, members, watched, tmp_path, at):
    place = tmp_path / "run"
    breaking = folder(place, _Breaking)
    breaking.at = at
    _, first = tune(model, members, breaking, snapshots=3, checkpoint_every=7)
    assert 0 < len(first) < len(KEPT)
    breaking.close()
    ends, rest = tune(model, members, RunFolder(place), snapshots=3, checkpoint_every=7)
    assert set(first) | set(rest) == set(watched[1])
    for kept in (first, rest):
        assert all(equal(adapter, watched[1][key]) for key, adapter in kept.items())
    assert all(equal(ends[name], watched[0][name]) for name in ends)


def test_a_checkpoint_is_continued_with_another_number_of_snapshots(model, members, watched, tmp_path):
    place = tmp_path / "run"
    breaking = folder(place, _Breaking)
    breaking.at = 9
    tune(model, members, breaking, snapshots=0, checkpoint_every=7)
    breaking.close()
    ends, kept = tune(model, members, RunFolder(place), snapshots=1, checkpoint_every=7)
    assert ("task 0", 15) in kept and equal(kept["task 0", 15], watched[1]["task 0", 15])
    assert all(equal(ends[name], watched[0][name]) for name in ends)
