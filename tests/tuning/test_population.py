"""Many adapters in one program: the same as each alone, through stops and crashes; and what is refused."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from tiny_llama import VOCAB, distance

from mossa_jax.config import Schedule, Tuning
from mossa_jax.llama.load import load_model
from mossa_jax.progress import Stop
from mossa_jax.rundir import Refusal, RunDir
from mossa_jax.tokens.encoded import Encoded, in_memory
from mossa_jax.tokens.packing import batches_of, pack_examples
from mossa_jax.tuning.loop import Member, steps_for, tune_population

SCHEDULE = Schedule(batch_rows=2, learning_rate=1e-2)
STEPS = (30, 17, 8)


def make_member(number: int, steps: int, token: int | None = None) -> Member:
    rng = np.random.default_rng(number)
    draw = lambda size: rng.integers(4, VOCAB, size).tolist()  # noqa: E731
    examples = [Encoded([1, *draw(rng.integers(2, 8))], [*draw(2), 2]) for _ in range(9 + number)]
    if token is not None:
        examples = [Encoded([1, token, *e.prompt[1:]], e.answer) for e in examples]
    # As wide for every member, so that one compiled program serves each of them alone.
    (packed,) = pack_examples(in_memory(examples), 24)
    return Member(f"task {number}", (replace(packed, width=9),), steps, (5, number))


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(str(tiny.folder))


def open_folder(path, kind=RunDir, **options):
    path.mkdir(parents=True, exist_ok=True)
    return kind(path, **options)


def tune(model, members, rundir, stop=None, state=None, **options):
    tuning = Tuning(rank=2, targets=("q_proj", "down_proj"), first_layer=1, log_every=1, **options)
    return tune_population(
        "group", members, model.state if state is None else state, model.architecture, tuning, SCHEDULE, model.mesh,
        rundir, stop or Stop(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def together(model, tmp_path_factory):
    rundir = open_folder(tmp_path_factory.mktemp("together"))
    members = [make_member(number, steps) for number, steps in enumerate(STEPS)]
    return rundir, members, tune(model, members, rundir)


@pytest.mark.parametrize("number", range(3))
def test_a_stacked_control_equals_itself_alone(model, together, tmp_path, number):
    _, members, adapters = together
    alone = tune(model, [members[number]], open_folder(tmp_path))[0]
    for target, part in alone.items():
        for name in ("a", "b"):
            assert distance(adapters[number][target][name], part[name]) <= 1e-5, (target, name)


def test_what_was_learned(together):
    rundir, members, adapters = together
    for member, adapter in zip(members, adapters, strict=True):
        for part in adapter.values():
            assert part["scale"].tolist() == [0, 8, 8]  # alpha 16 over rank 2, none below first_layer
            assert not part["a"][0].any() and not part["b"][0].any()
            assert part["b"][1].any() and part["b"][2].any()
        records = [record for record in rundir.metrics() if record["model"] == member.name]
        assert sorted({record["step"] for record in records}) == list(range(1, member.steps + 1))
        first = next(r["loss"] for r in records if r["step"] == 1)
        last = next(r["loss"] for r in records if r["step"] == member.steps)
        assert last < first
    starts = [adapter["q_proj"]["a"] for adapter in adapters]
    assert distance(starts[0], starts[1]) > 0.1


class _AskingRunDir(RunDir):
    """Asks to stop, or breaks down, when a step is logged."""

    def __init__(self, path, at, action):
        super().__init__(path)
        self.at, self.action = at, action

    def append_metrics(self, record):
        super().append_metrics(record)
        if record["step"] >= self.at:
            self.action()


def assert_bit_equal(found, wanted):
    for ours, theirs in zip(found, wanted, strict=True):
        assert jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))


def test_stopped_on_request_and_resumed_is_bit_equal(model, together, tmp_path):
    _, members, wanted = together
    stop = Stop()

    def ask():
        stop.asked = True

    with pytest.raises(Refusal) as caught:
        tune(model, members, open_folder(tmp_path, _AskingRunDir, at=12, action=ask), stop)
    assert caught.value.code == 75
    saved = {path.name for path in (tmp_path / "checkpoints/group").iterdir() if path.name.isdigit()}
    assert len(saved) == 1 and 12 <= int(saved.pop()) < 16
    rundir = open_folder(tmp_path)
    before = len(rundir.metrics())
    assert_bit_equal(tune(model, members, rundir), wanted)
    assert min(record["step"] for record in rundir.metrics()[before:]) >= 12  # nothing is done twice
    # Once more: all is done, nothing is trained.
    before = len(rundir.metrics())
    assert_bit_equal(tune(model, members, rundir), wanted)
    assert len(rundir.metrics()) == before


def test_broken_down_and_resumed_is_bit_equal(model, together, tmp_path):
    _, members, wanted = together

    def break_down():
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        tune(model, members, open_folder(tmp_path, _AskingRunDir, at=11, action=break_down), checkpoint_every=4)
    steps = sorted(int(path.name) for path in (tmp_path / "checkpoints/group").iterdir() if path.name.isdigit())
    assert steps == [4, 8]
    # The newest checkpoint is torn as well: the one before it is used.
    for file in (tmp_path / "checkpoints/group/8").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    rundir = open_folder(tmp_path)
    before = len(rundir.metrics())
    assert_bit_equal(tune(model, members, rundir, checkpoint_every=4), wanted)
    assert min(record["step"] for record in rundir.metrics()[before:]) in (4, 5)


def test_a_loss_that_is_not_finite_names_the_model(model, tmp_path):
    poison = 3
    state = jax.tree.map(lambda leaf: leaf, model.state)
    state["embedding"] = state["embedding"].replace(state["embedding"][...].at[poison].set(np.nan))
    members = [make_member(0, 6), make_member(1, 6, token=poison)]
    with pytest.raises(Refusal) as caught:
        tune(model, members, open_folder(tmp_path), state=state)
    assert caught.value.code == 5
    assert "task 1" in str(caught.value) and "task 0" not in str(caught.value)
    assert not any(path.name.isdigit() for path in (tmp_path / "checkpoints/group").iterdir())


def test_long_rows_are_trained_as_well_and_disturb_no_neighbour(model, tmp_path):
    rng = np.random.default_rng(7)
    draw = lambda size: rng.integers(4, VOCAB, size).tolist()  # noqa: E731
    long = [Encoded([1, *draw(30)], [*draw(2), 2]) for _ in range(3)]
    short = [Encoded([1, *draw(6)], [*draw(2), 2]) for _ in range(12)]
    mixed = tuple(replace(rows, width=9) for rows in pack_examples(in_memory([*long, *short]), 24, 48))
    assert [len(rows) > 0 for rows in mixed] == [True, True]
    members = [Member("mixed", mixed, 12, (5, 0)), make_member(1, 12), Member("long", mixed, 5, (5, 2))]
    together = tune(model, members, open_folder(tmp_path / "together"))
    for member, adapter in zip(members, together, strict=True):
        alone = tune(model, [member], open_folder(tmp_path / member.name.replace(" ", "_")))[0]
        for target, part in alone.items():
            assert all(distance(adapter[target][name], part[name]) <= 1e-5 for name in ("a", "b")), member.name
    # Only what stands in the long rows was changed: an adapter that never saw them is another one.
    without = tune(model, [replace(members[0], rows=mixed[:1])], open_folder(tmp_path / "without"))[0]
    assert distance(together[0]["q_proj"]["b"], without["q_proj"]["b"]) > 1e-2
    records = [r for r in RunDir(tmp_path / "together").metrics() if r["model"] == "mixed"]
    assert sorted({record["step"] for record in records}) == list(range(1, 13))


def test_steps_follow_from_rows_epochs_and_the_bound():
    assert steps_for(Schedule(epochs=3), batches_of([33], 16, 24)) == 7
    assert steps_for(Schedule(epochs=0.1), batches_of([3], 16, 24)) == 1
    assert steps_for(Schedule(epochs=3, max_steps=5), batches_of([33], 16, 24)) == 5
    assert steps_for(Schedule(epochs=2), batches_of([32, 6], 16, 24, 96)) == 7  # 2 + 6/4 batches an epoch
