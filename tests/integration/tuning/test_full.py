"""Full fine-tuning equals torch, on one device and on eight, through a stop; and the folder that it writes."""

import json
import math
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossa_jax.config import OPTIMIZERS, Schedule, Tuning
from mossa_jax.errors import Refusal
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.llama.architecture import read_config
from mossa_jax.llama.files.about import read_about
from mossa_jax.llama.files.load import load_model
from mossa_jax.llama.model import abstract_state, parameter_count
from mossa_jax.llama.placement import shardings
from mossa_jax.processes.stop import Stop
from mossa_jax.run.report import training_curves
from mossa_jax.tokens.batches import Batches
from mossa_jax.tokens.encoded import Encoded, in_memory
from mossa_jax.tokens.rows import pack_examples
from mossa_jax.tuning import full_finetuning as full
from mossa_jax.tuning.batch import place_batch
from mossa_jax.tuning.full_finetuning import FullPrograms, save_full, tune_full
from mossa_jax.tuning.members import Member, TuningContext
from mossa_jax.tuning.optimizer import FullOptimizer
from tests.support.paths import ROOT
from tests.support.processes import together
from tests.support.tiny_llama import VOCAB, distance, import_torch, random_prompts, torch_model, write_family

SCHEDULE = Schedule(batch_rows=4, learning_rate=2e-3)
TUNING = Tuning(warmup=0.2, beta1=0.8, beta2=0.95, weight_decay=0.1, clip=1.0, log_every=1)
PROGRAM = ROOT / "tests/support/full_on_devices.py"


def make_examples(token: int | None = None) -> list[Encoded]:
    rng = np.random.default_rng(0)
    draw = lambda size: rng.integers(4, VOCAB, size).tolist()  # noqa: E731
    first = [1] if token is None else [1, token]
    return [Encoded([*first, *draw(rng.integers(2, 8))], [*draw(rng.integers(1, 4)), 2]) for _ in range(30)]


def make_member(steps: int = 10, token: int | None = None) -> Member:
    return Member("E", pack_examples(in_memory(make_examples(token)), 24), steps, (7, 1))


def tune(model, member, run_folder, stop=None, tuning=TUNING, **schedule):
    chosen = replace(SCHEDULE, **schedule)
    context = TuningContext(tuning, run_folder, stop or Stop())
    programs = FullPrograms("E", [member], model, chosen, tuning)
    return tune_full("E", member, programs, lambda: model.state, context)


def open_folder(path, kind=RunFolder, **options):
    path.mkdir(parents=True, exist_ok=True)
    return kind(path, **options)


def losses_of(run_folder) -> list[float | None]:
    records = run_folder.metrics()
    assert {record["model"] for record in records} == {"E"}
    steps = [record["step"] for record in records]
    assert sorted(set(steps)) == list(range(1, max(steps) + 1))
    return [record["loss"] for record in sorted(records, key=lambda record: record["step"])]


def train_in_torch(folder, member, optimizer, skipped=()):
    """Takes the same steps in transformers, each example of a batch alone, some skipped; returns (losses, model)."""
    torch = import_torch()
    model, examples, losses = torch_model(folder).train(), make_examples(), []
    rows = member.rows[0]
    batches = Batches.of([rows], SCHEDULE.batch_rows, seed=(*member.seed, 2))
    theirs = optimizer(model.parameters())
    for step in range(member.steps):
        rise = int(TUNING.warmup * member.steps)
        rate = 0.5 * (1 + math.cos(math.pi * (step - rise) / (member.steps - rise)))
        theirs.param_groups[0]["lr"] = SCHEDULE.learning_rate * ((step + 1) / rise if step < rise else rate)
        if step in skipped:
            losses.append(None)
            continue
        chosen = [examples[item] for item in rows.plan.take(batches.at(step)[1]).items]
        nats = torch.tensor(0.0)
        for example in chosen:
            prompt, answer = list(map(int, example.prompt)), list(map(int, example.answer))
            said = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            nats = nats + torch.nn.functional.cross_entropy(said, torch.tensor(answer), reduction="sum")
        loss = nats / sum(len(example.answer) for example in chosen)
        theirs.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), TUNING.clip)
        assert norm > TUNING.clip  # so the clip changes the gradient
        theirs.step()
        losses.append(loss.item())
    return losses, model


def adamw(parameters):
    torch = import_torch()
    betas = (TUNING.beta1, TUNING.beta2)
    return torch.optim.AdamW(parameters, lr=0.0, betas=betas, weight_decay=TUNING.weight_decay)


def adafactor(parameters):
    from transformers.optimization import Adafactor

    return Adafactor(
        parameters, lr=0.0, weight_decay=TUNING.weight_decay, scale_parameter=False, relative_step=False
    )  # fmt: skip


def assert_equal_to_torch(folder, tmp_path, name, theirs, skipped=()):
    """Compares ten steps of both sides through the folder that `save_full` writes; returns the run folder."""
    model, member, run_folder = load_model(str(folder)), make_member(), open_folder(tmp_path / "run")
    state = tune(model, member, run_folder, optimizer=name)
    save_full(tmp_path / "saved", model, state, {})
    start, ours = (torch_model(path).state_dict() for path in (folder, tmp_path / "saved"))
    losses, wanted = train_in_torch(folder, member, theirs, skipped)
    np.testing.assert_allclose(*(np.asarray(part, float) for part in (losses_of(run_folder), losses)), rtol=1e-5)
    assert losses[-1] < losses[0]
    wanted = wanted.state_dict()
    assert ours.keys() == wanted.keys()
    for tensor, value in wanted.items():
        assert distance(ours[tensor], value) <= 1e-4, tensor
        assert distance(ours[tensor] - start[tensor], value - start[tensor]) <= 1e-2, tensor
    return run_folder


@pytest.mark.parametrize("kind", ["tiny", pytest.param("tiny_tied", marks=pytest.mark.slow)])
def test_ten_steps_of_adamw_equal_torch_in_losses_and_in_every_tensor(kind, request, tmp_path):
    assert_equal_to_torch(request.getfixturevalue(kind).folder, tmp_path, "adamw", adamw)


@pytest.mark.slow
def test_ten_steps_of_adafactor_equal_those_of_transformers(tiny, tmp_path):
    assert_equal_to_torch(tiny.folder, tmp_path, "adafactor", adafactor)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama_biases", "qwen2", "qwen3", "mistral"])
def test_biases_and_norms_of_heads_are_trained_as_torch_trains_them(name, tmp_path):
    write_family(tmp_path / "model", name)
    assert_equal_to_torch(tmp_path / "model", tmp_path, "adamw", adamw)


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(str(tiny.folder))


@pytest.fixture(scope="module")
def tuned_run(model, tmp_path_factory):
    run_folder = open_folder(tmp_path_factory.mktemp("tuned"))
    return run_folder, tune(model, make_member(), run_folder)


@pytest.fixture(scope="module")
def tuned(tuned_run):
    return tuned_run[1]


class _AskingRunDir(RunFolder):
    """Asks to stop when the sixth step is logged."""

    def __init__(self, path, stop):
        super().__init__(path)
        self.stop = stop

    def append_metrics(self, record):
        super().append_metrics(record)
        self.stop.asked = record["step"] >= 6


@pytest.mark.slow
def test_stopped_on_request_and_resumed_is_bit_equal(model, tuned, tmp_path):
    stop = Stop()
    with pytest.raises(Refusal) as caught:
        tune(model, make_member(), open_folder(tmp_path, _AskingRunDir, stop=stop), stop)
    assert caught.value.code == 75
    (step,) = [path.name for path in (tmp_path / "checkpoints/E").iterdir() if path.name.isdigit()]
    assert 6 <= int(step) < 9
    run_folder = open_folder(tmp_path)
    before = len(run_folder.metrics())
    # The base's weights are not used again: training resumes from the checkpoint alone.
    blank = jax.tree.map(jnp.zeros_like, model.state)
    resumed = tune(replace(model, state=blank), make_member(), run_folder)
    assert jax.tree.all(jax.tree.map(np.array_equal, resumed, tuned))
    assert min(record["step"] for record in run_folder.metrics()[before:]) > 6
    losses_of(run_folder)


class _StopAfter(Stop):
    """Asks to stop after some steps."""

    def __init__(self, steps):
        super().__init__()
        self._left = steps

    @property
    def asked(self):
        self._left -= 1
        return self._left == 0

    @asked.setter
    def asked(self, _):
        pass


def test_curves_are_means_over_windows_and_interruptions_leave_no_mark(model, tuned_run, tmp_path):
    single, tuning = losses_of(tuned_run[0]), replace(TUNING, log_every=4, checkpoint_every=3)
    tune(model, make_member(), open_folder(tmp_path / "whole"), tuning=tuning)
    whole = training_curves(RunFolder(tmp_path / "whole"))
    assert whole.step.tolist() == [4, 8, 10]
    means = [np.mean(single[begin:end]) for begin, end in ((0, 4), (4, 8), (8, 10))]
    np.testing.assert_allclose(whole.loss, means, rtol=1e-5)
    for steps in (2, 4, 1):
        with pytest.raises(Refusal):
            tune(model, make_member(), open_folder(tmp_path / "broken"), _StopAfter(steps), tuning)
    tune(model, make_member(), open_folder(tmp_path / "broken"), tuning=tuning)
    assert training_curves(RunFolder(tmp_path / "broken")).to_csv() == whole.to_csv()


def poisoned(model, token):
    """Returns the model with NaN as the embedding of a token."""
    state = jax.tree.map(lambda leaf: leaf, model.state)
    state["embedding"] = state["embedding"].replace(state["embedding"][...].at[token].set(np.nan))
    return replace(model, state=state)


def test_a_loss_that_is_never_finite_stops_and_names_member_step_and_examples(model, tmp_path):
    member, run_folder = make_member(token=3), open_folder(tmp_path)
    with pytest.raises(Refusal) as caught:
        tune(poisoned(model, 3), member, run_folder)
    said = str(caught.value)
    assert caught.value.code == 5 and "'E' is not finite for 3 steps in a row" in said and "at step 3 " in said
    assert "model.embed_tokens.weight of " in said and "holds NaN or infinity" in said
    rows = member.rows[0]
    batches = Batches.of([rows], SCHEDULE.batch_rows, seed=(*member.seed, 2))
    assert f"(examples {', '.join(map(str, rows.plan.take(batches.at(2)[1]).items[:8]))}" in said
    assert losses_of(run_folder) == [None] * 3 and [record["skipped"] for record in run_folder.metrics()] == [1, 2, 3]
    assert not any(path.name.isdigit() for path in (tmp_path / "checkpoints/E").iterdir())


def test_parameters_that_are_not_finite_in_the_end_are_refused(model, tmp_path):
    # No example has this token, so no gradient shows it.
    assert 3 not in {token for example in make_examples() for token in [*example.prompt, *example.answer]}
    with pytest.raises(Refusal, match="'E' has parameters that are not finite; it is not exported") as caught:
        tune(poisoned(model, 3), make_member(steps=2), open_folder(tmp_path))
    assert caught.value.code == 5


def poison_batches(monkeypatch, numbers):
    """Makes the steps of these numbers read answers beyond their rows, which gives NaN."""
    compile_step = full.compile_step

    def poisoning(*arguments):
        update = compile_step(*arguments)

        def step(state, batch, number, total):
            if number in numbers:
                batch = batch | {"predict": batch["predict"] + 10_000}
            return update(state, batch, number, total)

        return step

    monkeypatch.setattr(full, "compile_step", poisoning)


def test_updates_of_poisoned_batches_are_skipped_as_if_torch_had_left_them_out(tiny, tmp_path, monkeypatch):
    skipped = (2, 5, 6)
    poison_batches(monkeypatch, skipped)
    run_folder = assert_equal_to_torch(tiny.folder, tmp_path, "adamw", adamw, skipped=skipped)
    records = run_folder.metrics()
    assert [records[step]["loss"] for step in skipped] == [None] * 3
    assert [record.get("skipped", 0) for record in records] == [0, 0, 1, 1, 1, 2, 3, 3, 3, 3]


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("adafactor", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_batch_in_micro_batches_gives_the_same_model_as_the_whole_batch(optimizer, model, tuned_run, tmp_path):
    # Micro-batches of one row, with different numbers of answer tokens: a mean of means would give another model.
    run_folder, one = tuned_run
    if optimizer != "adamw":
        run_folder = open_folder(tmp_path / "one")
        one = tune(model, make_member(), run_folder, optimizer=optimizer)
    parts = tune(model, make_member(), open_folder(tmp_path / "parts"), optimizer=optimizer, parts=4)
    np.testing.assert_allclose(losses_of(RunFolder(tmp_path / "parts")), losses_of(run_folder), rtol=1e-5)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: distance(a, b) < 1e-5, parts, one)))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_abstract_arguments_are_those_of_a_run(kind, model):
    optimizer = FullOptimizer(1e-3, 0.0, 0.9, 0.999, 0.1, 1.0, kind)
    rows = make_member().rows[0]
    batch = place_batch(model.mesh, rows.take(np.arange(4)))
    begin, _ = full.make_initialize(model, optimizer)
    planned = full.abstract_arguments(model, optimizer, rows=4, row_length=rows.length, answers=rows.width)
    described = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), tree)  # noqa: E731
    assert described(planned[:2]) == described((begin(model.state), batch))
    assert all(number.shape == () and number.dtype == jnp.int32 for number in planned[2:])


@pytest.mark.slow
def test_micro_batches_take_less_memory_for_the_pass(model):
    """Reads the memory of compiled programs, for a model that is small beside its batch; nothing is run."""
    optimizer = FullOptimizer(1e-3, 0.0, 0.9, 0.999, 0.1, 1.0)
    begin, where = full.make_initialize(model, optimizer)
    widths = {"tokens": 96, "segments": 96, "positions": 96, "predict": 8, "labels": 8}
    batch = {name: jax.ShapeDtypeStruct((64, width), np.int32) for name, width in widths.items()}
    whole, parts = (
        full.make_step(full.FullStepSpec(model, optimizer, where, micro_batches=count))
        .lower(jax.eval_shape(begin, model.state), batch, 0, 10)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
        for count in (1, 8)
    )
    assert parts < whole / 3


def test_checkpoints_of_another_schedule_are_refused(model, tuned_run):
    run_folder, _ = tuned_run
    with pytest.raises(Refusal, match="checkpoints of another config") as caught:
        tune(model, make_member(), run_folder, learning_rate=1e-3)
    assert caught.value.code == 2


def test_an_unknown_optimizer_is_refused(model, tmp_path):
    with pytest.raises(Refusal, match="'sgd' is unknown; these are: adamw, adafactor") as caught:
        tune(model, make_member(), open_folder(tmp_path), optimizer="sgd")
    assert caught.value.code == 2


@pytest.mark.slow
def test_long_rows_are_learned_from_as_well(model, tmp_path):
    rng = np.random.default_rng(1)
    draw = lambda size: rng.integers(4, VOCAB, size).tolist()  # noqa: E731
    long = [Encoded([1, *draw(30)], [*draw(2), 2]) for _ in range(4)]
    rows = pack_examples(in_memory([*make_examples(), *long]), 24, 48)
    assert len(rows) == 2
    seen = tune(model, Member("E", rows, 8, (7, 1)), open_folder(tmp_path / "both"))
    unseen = {token for e in long for token in e.prompt} - {token for e in make_examples() for token in e.prompt}
    moved = np.abs(np.asarray(seen["embedding"][...]) / np.asarray(model.state["embedding"][...])).std(axis=1)
    assert unseen and all(moved[token] > 1e-4 for token in unseen)


def test_the_state_is_donated_and_the_base_is_left_as_it_is(model, tmp_path, monkeypatch):
    states, compile_step = [], full.compile_step

    def watched(*arguments):
        update = compile_step(*arguments)

        def step(state, *rest):
            states.append(state)
            return update(state, *rest)

        return step

    monkeypatch.setattr(full, "compile_step", watched)
    before = jax.tree.map(np.array, model.state)
    tune(model, make_member(steps=3), open_folder(tmp_path))
    assert len(states) == 3
    assert all(leaf.is_deleted() for state in states for leaf in jax.tree.leaves(state))
    assert jax.tree.all(jax.tree.map(np.array_equal, model.state, before))


@pytest.mark.slow
def test_a_bfloat16_base_keeps_float32_masters(tiny, tuned_run, tmp_path):
    model = load_model(str(tiny.folder), dtype="bfloat16")
    start = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), model.state)
    run_folder = open_folder(tmp_path / "run")
    state = tune(model, make_member(), run_folder, tuning=replace(TUNING, weight_decay=0.0), learning_rate=1e-6)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    # Steps far below the resolution of bfloat16 add up.
    moved = jax.tree.map(lambda new, old: float(jnp.abs(new - old).max()), state, start)
    assert all(3e-6 < leaf < 1e-5 for leaf in jax.tree.leaves(moved))
    save_full(tmp_path / "saved", model, state, {})
    assert read_config(tmp_path / "saved")["torch_dtype"] == "bfloat16"
    again = load_model(str(tmp_path / "saved"), dtype="bfloat16").state
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b.astype(jnp.bfloat16)), again, state))
    # Computed in the base's bfloat16: near the loss in float32, but not equal to it.
    assert losses_of(run_folder)[0] == pytest.approx(losses_of(tuned_run[0])[0], rel=0.02)
    assert losses_of(run_folder)[0] != pytest.approx(losses_of(tuned_run[0])[0], rel=1e-5)


def test_the_saved_folder_loads_in_transformers_with_equal_logits(model, tuned, tmp_path):
    torch = import_torch()
    about = {"model": "E", "tasks": ["one", "two"], "steps": 10}
    save_full(tmp_path / "saved", model, tuned, about)
    assert read_about(tmp_path / "saved").items() >= about.items()
    assert "library_name: transformers" in (tmp_path / "saved/README.md").read_text()
    theirs = torch_model(tmp_path / "saved")
    assert (tmp_path / "saved/tokenizer.json").exists()
    from mossa_jax.llama.attention import Segments
    from mossa_jax.llama.model import logits, merge, run_blocks

    module = merge(model.architecture, tuned)
    for ids in random_prompts(3):
        tokens = jnp.asarray([ids])
        positions = jnp.arange(len(ids))[None]
        _, last, _ = run_blocks(
            module, model.architecture, {}, tokens, positions, Segments(jnp.ones_like(tokens)), lambda *_: None
        )
        ours = logits(module, model.architecture, last)[0]
        with torch.no_grad():
            assert distance(ours, theirs(torch.tensor([ids])).logits[0]) <= 1e-5
        assert distance(ours, logits(merge(model.architecture, model.state), model.architecture, last)[0]) > 1e-3


def test_a_folder_is_replaced_whole_or_not_at_all(model, tuned, tmp_path, monkeypatch):
    save_full(tmp_path / "saved", model, tuned, {"model": "first"})

    def full_disk(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(full, "write_about", full_disk)
    with pytest.raises(OSError, match="disk full"):
        save_full(tmp_path / "saved", model, model.state, {"model": "second"})
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    assert read_about(tmp_path / "saved")["model"] == "first"
    again = load_model(str(tmp_path / "saved")).state
    assert jax.tree.all(jax.tree.map(np.array_equal, again, tuned))


def test_adafactor_lowers_the_loss_with_a_smaller_state(model, tmp_path):
    run_folder, sizes = open_folder(tmp_path), {}
    tune(model, make_member(steps=20), run_folder, optimizer="adafactor")
    losses = losses_of(run_folder)
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    for kind in OPTIMIZERS:
        optimizer = FullOptimizer(1e-3, 0.0, 0.9, 0.999, 0.0, 1.0, kind=kind)
        moments = jax.eval_shape(optimizer.transformation().init, model.state)
        sizes[kind] = sum(leaf.size for leaf in jax.tree.leaves(moments))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(model.state))
    assert sizes["adamw"] >= 2 * parameters and sizes["adafactor"] < 0.1 * parameters


def test_a_step_takes_room_for_one_gradient_and_for_no_second_copy(model):
    """Reads the memory of the compiled program, for a model that is large beside its batch; nothing is run."""
    arch = replace(model.architecture, vocab=64, hidden=256, feed_forward=768, layers=12, heads=2, head_dim=128)
    shapes = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        abstract_state(arch, jnp.dtype("float32")), shardings(arch, model.mesh),
    )  # fmt: skip
    large = replace(model, architecture=arch, state=shapes)
    optimizer = FullOptimizer(1e-3, 0.0, 0.9, 0.999, 0.1, 1.0)
    begin, where = full.make_initialize(large, optimizer)
    widths = {"tokens": 8, "segments": 8, "positions": 8, "predict": 2, "labels": 2}
    batch = {name: jax.ShapeDtypeStruct((1, width), np.int32) for name, width in widths.items()}
    step = full.make_step(full.FullStepSpec(large, optimizer, where)).lower(jax.eval_shape(begin, shapes), batch, 0, 10)
    memory, bytes_ = step.compile().memory_analysis(), 4 * parameter_count(arch)
    assert 3 * bytes_ <= memory.alias_size_in_bytes < 3.01 * bytes_  # parameters and two moments, in place
    assert bytes_ <= memory.temp_size_in_bytes < 1.5 * bytes_


@pytest.mark.slow
def test_ids_that_all_examples_share_are_learned_from_as_if_each_had_its_own(model, tmp_path):
    examples = in_memory(make_examples(token=5))
    together, apart = (pack_examples(examples, 24, prefix_length=shared) for shared in (2, 0))
    assert together[0].prefix_length == 2 and len(together[0]) < len(apart[0])
    states = []
    for name, rows in (("together", together), ("apart", apart)):
        member, every = (
            Member("E", rows, 2, (7, 1)),
            len(rows[0]),
        )  # each step sees all examples, whatever row they are in
        states.append(tune(model, member, open_folder(tmp_path / name), batch_rows=every))
    assert jax.tree.all(jax.tree.map(lambda one, other: distance(one, other) < 1e-5, *states))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_eight_devices_equal_one_and_every_parameter_and_moment_is_spread(optimizer, tiny, model, root, tmp_path):
    one = open_folder(tmp_path / "one")
    save_full(tmp_path / "saved", model, tune(model, make_member(), one, optimizer=optimizer), {})
    path = f"PYTHONPATH={root}:{root / 'tests'}"
    command = ["env", path, sys.executable, PROGRAM, tiny.folder, optimizer, tmp_path / "many"]
    (said,) = together([command], root, 8, tmp_path)

    assert len(losses_of(one)) == 10
    np.testing.assert_allclose(losses_of(RunFolder(tmp_path / "many")), losses_of(one), rtol=1e-5)
    alone, many = (torch_model(folder).state_dict() for folder in (tmp_path / "saved", tmp_path / "many/saved"))
    assert all(distance(many[name], alone[name]) <= 1e-5 for name in alone)

    spread = 0
    for name, shape, share in json.loads(said.splitlines()[-1]):
        if "norm" in name or "count" in name or not shape or 1 in shape[-1:]:
            continue  # norms and scalars are whole on every device; an empty leaf holds nothing
        spread += 1
        matrix = name.startswith("parameters.") or optimizer == "adamw"
        assert share == 1 / 8 if matrix else share in (1 / 4, 1 / 2), name
    assert spread == 27  # nine matrices, and for each of them two moments or the means of its rows and columns


def test_models_of_a_group_share_their_programs(model, tuned_run, tmp_path, monkeypatch):
    """The answers of the second model's rows are longer: one step serves both, and the first model stays as it is."""
    compiled, compile_step = [], full.compile_step
    monkeypatch.setattr(full, "compile_step", lambda *arguments: compiled.append(1) or compile_step(*arguments))
    longer = [replace(example, answer=[*example.answer[:-1], 5, 6, 7, 2]) for example in make_examples()]
    members = [make_member(), Member("F", pack_examples(in_memory(longer), 24), 3, (7, 2))]
    assert members[0].rows[0].width < members[1].rows[0].width
    programs = FullPrograms("E", members, model, SCHEDULE, TUNING)
    context = TuningContext(TUNING, open_folder(tmp_path), Stop())
    first, _ = (tune_full(member.name, member, programs, lambda: model.state, context) for member in members)
    assert len(compiled) == 1
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: distance(a, b) < 1e-5, first, tuned_run[1])))
