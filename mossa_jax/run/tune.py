"""The tuning stage: E on the mixture and a control model per task, each exported as soon as it is done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import jax

from mossa_jax.config import MINIATURE, TUNED, Schedule
from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.files.paths import copy_folder
from mossa_jax.files.write import is_whole, new_folder
from mossa_jax.llama.adapters import Adapter
from mossa_jax.llama.files.base import base_can_share_prefix
from mossa_jax.llama.files.load import Model
from mossa_jax.llama.files.locate import locate
from mossa_jax.llama.files.peft import save_adapter
from mossa_jax.llama.fingerprint import WEIGHTS
from mossa_jax.log import log
from mossa_jax.monitoring import goodput
from mossa_jax.monitoring.progress import Progress
from mossa_jax.processes import agreement
from mossa_jax.run.ahead import Programs
from mossa_jax.run.cards import card_record
from mossa_jax.run.context import Run
from mossa_jax.run.exported import model_about
from mossa_jax.run.later_programs import score_programs
from mossa_jax.run.prepare import prepare
from mossa_jax.run.rounds import end_round, next_round, remove_checkpoints
from mossa_jax.run.score import score
from mossa_jax.run.takeover import take_models
from mossa_jax.run.warnings import announce
from mossa_jax.tasks.mixture import mixture_counts, sample
from mossa_jax.tokens.batches import Batches
from mossa_jax.tokens.encoded import Examples, concatenate
from mossa_jax.tokens.packing import Packing
from mossa_jax.tokens.permuted import permute_answers
from mossa_jax.tuning.full_finetuning import FullPrograms, save_full, tune_full
from mossa_jax.tuning.members import Member, TuningContext, steps_for
from mossa_jax.tuning.population_programs import steps_ahead
from mossa_jax.tuning.population_run import tune_population

# Tells the draw of a twin's answers from the other draws of its seed.
_PERMUTATION = 5


@dataclass(frozen=True)
class Group:
    """Models that are tuned by one schedule.

    Attributes:
      label: of the stage, progress lines and checkpoints: "E" or "controls".
      members: the models.
      records: what is written beside each exported model, by its name.
    """

    label: str
    members: list[Member]
    records: dict[str, dict[str, Any]]

    @property
    def names(self) -> list[str]:
        """The members' names."""
        return [member.name for member in self.members]


def tune(run: Run, later: Mapping[str, Programs] | None = None) -> None:
    """Tunes E on the mixture and a control model on each task; exports them as PEFT adapters or full models.

    Args:
      run: the run.
      later: programs of the stages that follow this one, by stage, for the thread that compiles ahead.

    Raises:
      Refusal: 2 for a `tuning.first_layer` that the model does not have; and whatever preparing the data, loading the
        model, training and scoring refuse.
    """
    config = run.config
    if config.base != MINIATURE:
        locate(config.base, config.revision, config_only=True)  # access is checked before data is read
    announce(run, prepare(run))
    take_models(run)
    remove_checkpoints(run)
    first_layer, layers = config.tuning.first_layer, run.architecture.layers
    if not 0 <= first_layer < layers:
        raise Refusal(
            BAD_CONFIG,
            f"config.tuning.first_layer={first_layer}: the model has {layers} layers; give 0 to {layers - 1}",
        )
    control_names = list(run.controls)
    experimental = _Once(lambda: _experimental_group(run))
    controls = _Once(lambda: _control_group(run))
    stages = {"E": (run.experimental_names, experimental, run.mesh)}
    stages["controls"] = (control_names, controls, run.population_mesh)
    untuned = [stage for stage, (names, _, _) in stages.items() if run.untuned(names)]
    for stage in untuned:
        names, pack, mesh = stages[stage]
        if not run.is_whole(names[0]):
            run.ahead.add(stage, partial(_steps, run, pack, mesh))
    if config.tuning.score_prompts:
        run.ahead.add("score", partial(score_programs, run))
    for stage, programs in (later or {}).items():
        run.ahead.add(stage, programs)
    _ = run.base  # the miniature model is pre-trained here, in a stage of its own
    if "E" in untuned:
        with run.ledger.stage("E"):
            group = experimental()
            rows, steps = sum(group.records[group.names[0]]["mixture"].values()), group.members[0].steps
            log.info("E: the multi-task model, %s steps on %s examples of all tasks", f"{steps:,}", f"{rows:,}")
            _tune_group(run, group, lambda: run.model)
    if "controls" in untuned:
        with run.ledger.stage("controls"):
            log.info("controls: %s", _count_controls(run))
            _tune_group(run, controls(), lambda: run.population_model)
    if config.tuning.score_prompts:
        with run.ledger.stage("score"):
            run.ahead.take_over("score")
            score(run)


def _count_controls(run: Run) -> str:
    """Says how many control models there are, and of which kinds."""
    twins = sum(control.is_twin for control in run.controls.values())
    tasks = len(run.suite.tasks)
    seeds = len(run.controls) - twins - tasks
    kinds = [f"{tasks} specialists, one per task"]
    kinds += [f"{seeds} second seeds"] * bool(seeds) + [f"{twins} twins that learn permuted answers"] * bool(twins)
    return f"{len(run.controls)} models: {', '.join(kinds)}"


class _Once:
    """A group that is packed once, by whichever thread asks for it first."""

    def __init__(self, pack: Callable[[], Group]):
        self._pack, self._lock = pack, threading.Lock()
        self._group: Group | None = None

    def __call__(self) -> Group:
        with self._lock:
            if self._group is None:
                self._group = self._pack()
            return self._group


def _steps(run: Run, group: Callable[[], Group], mesh: jax.sharding.Mesh) -> Iterator[Callable[[], object]]:
    """Yields what compiles each step of a group of adapters."""
    members = group().members
    return steps_ahead(members, run.outline_on(mesh), run.schedule(members[0].name), run.config.tuning)


def _experimental_group(run: Run) -> Group:
    """Returns E on the mixture, one model for each of its seeds."""
    config = run.config
    with goodput.lost("input"):
        encoded = {task.name: run.encoded(task, "train") for task in run.suite.tasks}
        shares = mixture_counts(run.suite, {name: len(split) for name, split in encoded.items()}, config.tasks)
        items = {name: sample(name, len(encoded[name]), count, config.seed) for name, count in shares.items()}
        mixture = concatenate([encoded[name].examples.select(index) for name, index in items.items()])
        cut = sum(int(encoded[name].cut[index].sum()) for name, index in items.items())
        first = _pack_member(run, TUNED, mixture, config.tuning.experimental)
    data = {"tasks": sorted(shares), "rows": len(mixture), "truncated_rows": cut, "mixture": shares}
    members = [
        replace(first, name=name, seed=run.seed(name), rests_on=run.model_digest(name))
        for name in run.experimental_names
    ]
    return Group("E", members, {member.name: _record(run, member, data) for member in members})


def _control_group(run: Run) -> Group:
    """Returns the control models, each on its own task; twins learn permuted answers."""
    group = Group("controls", [], {})
    with goodput.lost("input"):
        for name, control in run.controls.items():
            encoded = run.encoded(control.task, "train")
            examples = encoded.examples
            if control.is_twin:
                seed = (*run.seed(name), _PERMUTATION)
                examples = permute_answers(encoded, run.tokenizer, run.config.tokens, seed)
            member = _pack_member(run, name, examples, run.config.tuning.control)
            data = {
                "tasks": [control.task.name],
                "answers": "permuted" if control.is_twin else "own",
                "rows": len(encoded),
                "truncated_rows": int(encoded.cut.sum()),
                "bad_rows": encoded.bad_rows,
            }
            group.members.append(member)
            group.records[name] = _record(run, member, data)
    return group


def _pack_member(run: Run, name: str, examples: Examples, schedule: Schedule) -> Member:
    """Packs a model's examples and counts its steps."""
    rows = Packing.of(run.config.tokens).examples(examples, base_can_share_prefix(run.config))
    steps = steps_for(schedule, Batches.of(rows, schedule.batch_rows))
    return Member(name, rows, steps, run.seed(name), run.model_digest(name))


def _row_count(member: Member) -> int:
    return sum(len(rows) for rows in member.rows)


def _record(run: Run, member: Member, data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is written beside an exported model; `data` says what it learned from."""
    return {
        "model": member.name,
        **data,
        **card_record(run, data["tasks"]),
        "steps": member.steps,
        "packed_rows": _row_count(member),
        "seed": list(member.seed),
        "template": run.tokenizer.record,
        "tuning": asdict(run.config.tuning),
        "rests_on": run.model_basis(member.name),
        "digest": member.rests_on,
    }


def _tune_group(run: Run, group: Group, base: Callable[[], Model]) -> None:
    """Tunes a group as its schedule says; `base` returns the model that adapters are tuned over."""
    if run.is_whole(group.members[0].name):
        _tune_in_full(run, group)
    else:
        _tune_adapters(run, group, base())


def _tune_adapters(run: Run, group: Group, base: Model) -> None:
    """Tunes adapters over one base, together; exports them as PEFT folders."""
    models = {member.name: member.rests_on for member in group.members}
    while missing := run.untuned(group.names):
        current = next_round(run, group.label, models, missing)
        members = [member for member in group.members if member.name in current.names]
        _tune_together(run, group, current.label, members, base)
        end_round(run, group.label)
        remove_checkpoints(run)


def _tune_together(run: Run, group: Group, label: str, members: list[Member], base: Model) -> None:
    """Tunes some of a group's adapters in one program, and exports each as soon as it is done."""

    def record_of(member: Member) -> dict[str, Any]:
        return {**group.records[member.name], WEIGHTS: run.base_weights}

    def export(member: Member, adapter: Adapter) -> None:
        if run.folder.writer and not run.is_tuned(member.name):
            run.folder.flush()  # an exported model is not trained again, so its curve must be on disk before
            _set_aside(run, member.name)
            save_adapter(run.tuned_folder(member.name), adapter, run.base, record_of(member))

    def keep_snapshot(member: Member, step: int, adapter: Adapter) -> None:
        if run.folder.writer:
            about = record_of(member) | {"steps": step, "of_steps": member.steps}
            save_adapter(run.snapshot_folder(member.name, step), adapter, run.base, about)

    run.ahead.take_over(group.label)
    names = [member.name for member in members]
    exported = set(names) - set(run.untuned(names))
    context = TuningContext(run.config.tuning, run.folder, run.stop)
    schedule = run.schedule(names[0])
    tune_population(label, members, base, schedule, context, export, exported, keep_snapshot, group.members)
    agreement.wait_for_all("export")


def _set_aside(run: Run, name: str) -> None:
    """Copies an adapter that rests on other rows to `replaced/`, before a new one takes its place."""
    folder = run.tuned_folder(name)
    if is_whole(folder):
        with new_folder(run.folder / f"replaced/{folder.name}.{model_about(run, name).get('digest', 'old')}") as new:
            copy_folder(folder, new)


def _tune_in_full(run: Run, group: Group) -> None:
    """Tunes all parameters of one model after another; exports them as Hugging Face folders.

    An exported model is not tuned again. Its checkpoints, six times as large as a bfloat16 model, are deleted.
    """
    untuned = run.untuned(group.names)
    members = [member for member in group.members if member.name in untuned]
    done = len(group.members) - len(members)
    progress = Progress(group.label, len(group.members), done, "models")
    context = TuningContext(run.config.tuning, run.folder, run.stop)
    outline = run.outline
    schedule = run.schedule(group.names[0])
    programs = FullPrograms(group.label, group.members, outline, schedule, run.config.tuning)
    for number, member in enumerate(members, done + 1):
        group_label = f"{group.label} {member.name}"
        label = next_round(run, group_label, {member.name: member.rests_on}, [member.name]).label
        run.release()  # the parameters take the base's place; `run.weights` reads it once more at the first step
        parameters = tune_full(label, member, programs, run.weights, context)
        with goodput.lost("export"):
            record = {"base": run.base, **group.records[member.name], WEIGHTS: run.base_weights}
            save_full(run.tuned_folder(member.name), outline, parameters, record)
        del parameters
        agreement.wait_for_all("export")
        end_round(run, group_label)
        remove_checkpoints(run)
        progress.line(number, f"{member.name} exported")
