"""Many adapters in one program equal each adapter trained alone, through stops and crashes; and refusals."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from mossa_jax.config import Schedule, Tuning
from mossa_jax.errors import Refusal
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.llama.files.load import load_model
from mossa_jax.processes.stop import Stop
from mossa_jax.run.report import training_curves
from mossa_jax.tokens.batches import Batches
from mossa_jax.tokens.encoded import Encoded, in_memory
from mossa_jax.tokens.rows import pack_examples
from mossa_jax.tuning.members import Member, TuningContext, steps_for
from mossa_jax.tuning.population_run import tune_population
from tests.support.tiny_llama import VOCAB, distance

SCHEDULE = Schedule(batch_rows=2, learning_rate=1e-2)
STEPS = (30, 17, 8)


def make_member(number: int, steps: int, token: int | None = None) -> Member:
    rng = np.random.default_rng(number)
    draw = lambda size: rng.integers(4, VOCAB, size).tolist()  # noqa: E731
    examples = [Encoded([1, *draw(rng.integers(2, 8))], [*draw(2), 2]) for _ in range(9 + number)]
    if token is not None:
        examples = [Encoded([1, token, *e.prompt[1:]], e.answer) for e in examples]
    # The same width for every member, so that one compiled program serves each of them alone.
    (packed,) = pack_examples(in_memory(examples), 24)
    return Member(f"task {number}", (replace(packed, width=15),), steps, (5, number))


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(str(tiny.folder))


def open_folder(path, kind=RunFolder, **options):
    path.mkdir(parents=True, exist_ok=True)
    return kind(path, **options)


def tune(model, members, run_folder, stop=None, state=None, schedule=SCHEDULE, done=None, exported=(), **options):
    """Tunes members together; returns their adapters in the same order."""
    tuning = Tuning(rank=2, targets=("q_proj", "down_proj"), first_layer=1, **({"log_every": 1} | options))
    done = {} if done is None else done
    base = model if state is None else replace(model, state=state)
    context = TuningContext(tuning, run_folder, stop or Stop())
    export = lambda member, adapter: done.update({member.name: adapter})  # noqa: E731
    tune_population("group", members, base, schedule, context, export, exported)
    return [done[member.name] for member in members]


@pytest.fixture(scope="module")
def together(model, tmp_path_factory):
    run_folder = open_folder(tmp_path_factory.mktemp("together"))
    members = [make_member(number, steps) for number, steps in enumerate(STEPS)]
    return run_folder, members, tune(model, members, run_folder)


@pytest.mark.parametrize("number", range(3))
def test_a_stacked_control_equals_itself_alone(model, together, tmp_path, number):
    _, members, adapters = together
    alone = tune(model, [members[number]], open_folder(tmp_path))[0]
    for target, part in alone.items():
        for name in ("a", "b"):
            assert distance(adapters[number][target][name], part[name]) <= 1e-5, (target, name)


def test_every_model_learns_above_its_first_layer_and_its_losses_are_recorded(together):
    run_folder, members, adapters = together
    for member, adapter in zip(members, adapters, strict=True):
        for part in adapter.values():
            assert part["scale"].tolist() == [0, 8, 8]  # alpha 16 over rank 2, none below first_layer
            assert not part["a"][0].any() and not part["b"][0].any()
            assert part["b"][1].any() and part["b"][2].any()
        records = [record for record in run_folder.metrics() if record["model"] == member.name]
        assert sorted({record["step"] for record in records}) == list(range(1, member.steps + 1))
        first = next(r["loss"] for r in records if r["step"] == 1)
        last = next(r["loss"] for r in records if r["step"] == member.steps)
        assert last < first
    starts = [adapter["q_proj"]["a"] for adapter in adapters]
    assert distance(starts[0], starts[1]) > 0.1


class _AskingRunDir(RunFolder):
    """Asks to stop, or breaks down, when a step is logged."""

    def __init__(self, path, at, action):
        super().__init__(path)
        self.at, self.action = at, action

    def append_metrics(self, record):
        super().append_metrics(record)
        if record["step"] >= self.at:
            self.action()


def assert_bit_equal(adapters, wanted):
    for ours, theirs in zip(adapters, wanted, strict=True):
        assert jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))


def test_stopped_on_request_and_resumed_is_bit_equal(model, together, tmp_path):
    _, members, wanted = together
    stop, done = Stop(), {}

    def ask():
        stop.asked = True

    with pytest.raises(Refusal) as caught:
        tune(model, members, open_folder(tmp_path, _AskingRunDir, at=12, action=ask), stop, done=done)
    assert caught.value.code == 75 and list(done) == ["task 2"]  # it has eight steps, and was exported after them
    saved = {path.name for path in (tmp_path / "checkpoints/group").iterdir() if path.name.isdigit()}
    assert len(saved) == 1 and 12 <= int(saved.pop()) < 16
    run_folder = open_folder(tmp_path)
    before = len(run_folder.metrics())
    assert_bit_equal(tune(model, members, run_folder, done=done), wanted)
    assert min(record["step"] for record in run_folder.metrics()[before:]) >= 12  # nothing is done twice
    # A third run finds everything done and trains nothing.
    before = len(run_folder.metrics())
    tune(model, members, run_folder, done=done)
    assert len(run_folder.metrics()) == before


def test_broken_down_and_resumed_is_bit_equal(model, together, tmp_path):
    _, members, wanted = together
    done = {}

    def break_down():
        raise RuntimeError("power cut")

    run_folder = open_folder(tmp_path, _AskingRunDir, at=11, action=break_down)
    with pytest.raises(RuntimeError, match="power cut"):
        tune(model, members, run_folder, checkpoint_every=4, done=done)
    steps = sorted(int(path.name) for path in (tmp_path / "checkpoints/group").iterdir() if path.name.isdigit())
    assert steps == [4, 8]
    # The newest checkpoint is torn as well, so the one before it is used.
    for file in (tmp_path / "checkpoints/group/8").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert list(done) == ["task 2"]  # it has eight steps
    # A kill may come between a member's export and the line of the step before its last.
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines()
    (lost,) = [line for line in lines if json.loads(line)["model"] == "task 2" and json.loads(line)["step"] == 7]
    path.write_text("".join(f"{line}\n" for line in lines if line != lost))
    run_folder = open_folder(tmp_path)
    before = len(run_folder.metrics())
    assert_bit_equal(tune(model, members, run_folder, checkpoint_every=4, done=done, exported=["task 2"]), wanted)
    again = run_folder.metrics()[before:]
    assert min(record["step"] for record in again) in (4, 5)
    # An exported model keeps its curve.
    known = {name: value for name, value in json.loads(lost).items() if name != "crc"}
    assert [record for record in again if record["model"] == "task 2"] == [known]


class _StopAt(Stop):
    """Asks to stop after some steps, or breaks down there."""

    def __init__(self, steps, breaks=False):
        super().__init__()
        self._left, self._breaks = steps, breaks

    @property
    def asked(self):
        self._left -= 1
        if self._left == 0 and self._breaks:
            raise RuntimeError("power cut")
        return self._left == 0

    @asked.setter
    def asked(self, _):
        pass


def curves_of(path):
    return training_curves(RunFolder(path)).to_csv().encode()


def test_curves_are_means_over_the_models_own_steps_and_interruptions_leave_no_mark(model, together, tmp_path):
    """Two slots and windows of seven steps, which neither the models' first steps nor checkpoints are multiples of."""
    steps_folder, members, _ = together
    options = {"slots": 2, "log_every": 7, "checkpoint_every": 4}
    tune(model, members, open_folder(tmp_path / "whole"), **options)
    single = training_curves(steps_folder).set_index(["model", "step"]).loss
    for member in members:
        rows = training_curves(RunFolder(tmp_path / "whole")).query("model == @member.name")
        ends = sorted({*range(7, member.steps + 1, 7), member.steps})
        assert rows.step.tolist() == ends
        for begin, end, loss in zip([0, *ends], ends, rows.loss, strict=False):
            assert loss == pytest.approx(single[member.name].loc[begin + 1 : end].mean(), rel=1e-4)
    done = {}
    for steps, breaks in [(3, False), (9, True), (6, False), (7, True), (1, False)]:
        with pytest.raises((Refusal, RuntimeError)):
            tune(model, members, open_folder(tmp_path / "broken"), _StopAt(steps, breaks), exported=done, done=done,
                 **options)  # fmt: skip
    tune(model, members, open_folder(tmp_path / "broken"), exported=done, done=done, **options)
    assert curves_of(tmp_path / "broken") == curves_of(tmp_path / "whole")


@pytest.mark.slow
def test_twelve_models_through_four_slots_equal_themselves_alone(model, tmp_path):
    """Steps differ widely: every slot is filled again, at different steps, while the others are in the middle."""
    steps = [23, 3, 17, 1, 9, 30, 2, 12, 5, 8, 19, 4]
    members = [make_member(number, count) for number, count in enumerate(steps)]
    run_folder = open_folder(tmp_path / "together")
    adapters = tune(model, members, run_folder, slots=4)
    for member, adapter in zip(members, adapters, strict=True):
        alone = tune(model, [member], open_folder(tmp_path / member.name.replace(" ", "_")))[0]
        for target, part in alone.items():
            assert all(distance(adapter[target][name], part[name]) <= 1e-5 for name in ("a", "b")), member.name
        losses = {record["step"] for record in run_folder.metrics() if record["model"] == member.name}
        assert losses == set(range(1, member.steps + 1))
    # Stopped while slots are being filled again, and resumed: the same bits.
    for at in (4, 13, 24):
        done, stop = {}, Stop()
        folder = tmp_path / f"stopped{at}"
        asking = open_folder(folder, _AskingRunDir, at=at, action=lambda stop=stop: setattr(stop, "asked", True))
        with pytest.raises(Refusal) as caught:
            tune(model, members, asking, stop, slots=4, done=done)
        assert caught.value.code == 75
        assert_bit_equal(tune(model, members, open_folder(folder), slots=4, done=done), adapters)


def poisoned(model, token):
    state = jax.tree.map(lambda leaf: leaf, model.state)
    state["embedding"] = state["embedding"].replace(state["embedding"][...].at[token].set(np.nan))
    return state


def test_a_loss_that_is_never_finite_names_the_model_and_its_rows(model, tmp_path):
    members = [make_member(0, 6), make_member(1, 6, token=3)]
    with pytest.raises(Refusal) as caught:
        tune(model, members, open_folder(tmp_path), state=poisoned(model, 3))
    assert caught.value.code == 5
    assert "task 1" in str(caught.value) and "task 0" not in str(caught.value)
    assert "3 steps in a row, now at step 3 (examples " in str(caught.value)


def test_a_poisoned_batch_is_skipped_by_its_model_alone(model, tmp_path):
    """One model of four has one poisoned example of 19: its batches are skipped, and no other model notices."""
    poison = 3
    members = [make_member(number, 12) for number in range(3)]
    rng = np.random.default_rng(9)
    draw = lambda size: rng.integers(4, VOCAB, size).tolist()  # noqa: E731
    examples = [Encoded([1, *draw(18)], [*draw(2), 2]) for _ in range(18)]  # one in a row
    sick = Encoded([1, poison, *draw(17)], [*draw(2), 2])

    def fourth(*more):
        return Member("fourth", (replace(pack_examples(in_memory([*examples, *more]), 24)[0], width=15),), 12, (5, 3))

    state = poisoned(model, poison)
    run_folder = open_folder(tmp_path / "sick")
    adapters = tune(model, [*members, fourth(sick)], run_folder, state=state)
    healthy = tune(model, [*members, fourth(examples[0])], open_folder(tmp_path / "well"), state=state)
    assert_bit_equal(adapters[:3], healthy[:3])
    records = [record for record in run_folder.metrics() if record["model"] == "fourth"]
    skipped = [record["step"] for record in records if record["loss"] is None]
    assert 1 <= len(skipped) <= 2  # nineteen rows, two per step: once per epoch of nine or ten steps
    assert max(record.get("skipped", 0) for record in records) == len(skipped)
    assert not any(record.get("skipped") for record in run_folder.metrics() if record["model"] != "fourth")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(adapters[3]))
    assert adapters[3]["q_proj"]["b"].any()


def test_a_loss_far_above_the_usual_is_counted(model, tmp_path):
    """Step 25 shows an example whose answer the model has been taught never to give."""
    rng = np.random.default_rng(3)
    prompts = [[1, *rng.integers(4, VOCAB, 12).tolist()] for _ in range(40)]
    usual = [Encoded(prompt, [7] * 8 + [2]) for prompt in prompts]
    odd = Encoded(prompts[0], [11] * 8 + [2])
    (packed,) = pack_examples(in_memory([*usual, odd]), 24)
    member = Member("odd", (packed,), 60, (5, 1))
    run_folder = open_folder(tmp_path)
    tune(model, [member], run_folder, schedule=Schedule(batch_rows=1, learning_rate=3e-2))
    records = sorted(run_folder.metrics(), key=lambda record: record["step"])
    losses = [record["loss"] for record in records]
    counts = [record.get("spikes", 0) for record in records]
    jumps = [step for step in range(20, 60) if losses[step] > 3 * np.mean(losses[:step])]
    assert jumps and counts[-1] >= 1
    assert any(counts[step] > counts[step - 1] for step in jumps)


@pytest.mark.slow
def test_micro_batches_sum_to_the_whole_batch(model, tmp_path):
    """The loss of a step is the mean over all its answer tokens, not a mean of the micro-batches' means."""
    results = {}
    for parts in (1, 2, 4):
        members = [make_member(number, 10) for number in range(2)]
        schedule = Schedule(batch_rows=4, learning_rate=1e-2, parts=parts)
        run_folder = open_folder(tmp_path / str(parts))
        results[parts] = tune(model, members, run_folder, schedule=schedule), [r["loss"] for r in run_folder.metrics()]
    for parts in (2, 4):
        assert np.allclose(results[parts][1], results[1][1], atol=1e-5)
        for ours, theirs in zip(results[parts][0], results[1][0], strict=True):
            assert all(distance(ours[t][n], theirs[t][n]) < 1e-4 for t in ours for n in ("a", "b"))


@pytest.mark.slow
def test_long_rows_are_learned_from_and_disturb_no_neighbour(model, tmp_path):
    rng = np.random.default_rng(7)
    draw = lambda size: rng.integers(4, VOCAB, size).tolist()  # noqa: E731
    long = [Encoded([1, *draw(30)], [*draw(2), 2]) for _ in range(3)]
    short = [Encoded([1, *draw(6)], [*draw(2), 2]) for _ in range(12)]
    mixed = tuple(replace(rows, width=15) for rows in pack_examples(in_memory([*long, *short]), 24, 48))
    assert [len(rows) > 0 for rows in mixed] == [True, True]
    members = [Member("mixed", mixed, 12, (5, 0)), make_member(1, 12), Member("long", mixed, 5, (5, 2))]
    together = tune(model, members, open_folder(tmp_path / "together"))
    for member, adapter in zip(members, together, strict=True):
        alone = tune(model, [member], open_folder(tmp_path / member.name.replace(" ", "_")))[0]
        for target, part in alone.items():
            assert all(distance(adapter[target][name], part[name]) <= 1e-5 for name in ("a", "b")), member.name
    # Without the long rows, everything else the same, another adapter is learned.
    without = tune(model, [replace(members[0], rows=mixed[:1])], open_folder(tmp_path / "without"))[0]
    assert distance(together[0]["q_proj"]["b"], without["q_proj"]["b"]) > 1e-2
    records = [r for r in RunFolder(tmp_path / "together").metrics() if r["model"] == "mixed"]
    assert sorted({record["step"] for record in records}) == list(range(1, 13))


def test_steps_follow_from_rows_epochs_and_the_bound():
    assert steps_for(Schedule(epochs=3), Batches((33, 0), (16, 1))) == 7
    assert steps_for(Schedule(epochs=0.1), Batches((3, 0), (16, 1))) == 1
    assert steps_for(Schedule(epochs=3, max_steps=5), Batches((33, 0), (16, 1))) == 5
    assert steps_for(Schedule(epochs=2), Batches((32, 6), (16, 4))) == 7  # 2 + 6/4 batches per epoch
