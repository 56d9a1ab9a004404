"""The tuning stage: E on the mixture and a control model per task, each exported as soon as it is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

from mossa_jax.config import MINIATURE, TUNED, Schedule
from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.llama.files.base import base_can_share_prefix
from mossa_jax.llama.files.load import Model
from mossa_jax.llama.files.locate import locate
from mossa_jax.llama.files.peft import save_adapter
from mossa_jax.log import log
from mossa_jax.monitoring import goodput
from mossa_jax.monitoring.progress import Progress
from mossa_jax.processes import agreement
from mossa_jax.run.context import Run
from mossa_jax.run.prepare import prepare
from mossa_jax.run.score import score
from mossa_jax.tasks import Task, chosen_tasks
from mossa_jax.tasks.mixture import mixture_counts, sample
from mossa_jax.tokens.encoded import Examples, join
from mossa_jax.tokens.packing import batches_of, packed
from mossa_jax.tuning.full_finetuning import checkpoints_of, save_full, tune_full
from mossa_jax.tuning.loop import Adapter, Member, steps_for, tune_population


def tune(run: Run) -> None:
    """Tunes E on the mixture and a control model on each task; exports them as PEFT adapters or whole models."""
    config = run.config
    if config.base != MINIATURE:
        locate(config.base, config.revision, config_only=True)  # access is checked before data is read
    prepare(run)
    layers = run.architecture.layers
    if not 0 <= config.tuning.first_layer < layers:
        raise Refusal(
            BAD_CONFIG, f"config.tuning.first_layer={config.tuning.first_layer}: the model has {layers} layers"
        )
    names = run.experimental_names
    if run.untuned(names):
        with run.ledger.stage("E"):
            _tune_experimental(run, names)
    controls = _controls(run)
    if run.untuned(controls):
        with run.ledger.stage("controls"):
            _tune_controls(run, controls)
    if config.tuning.score_prompts:
        with run.ledger.stage("score"):
            score(run)


def _tune_experimental(run: Run, names: list[str]) -> None:
    """E on the mixture, by as many seeds as the configuration asks for."""
    config = run.config
    with goodput.lost("input"):
        encoded = {task.name: run.encoded(task, "train") for task in run.suite.tasks}
        shares = mixture_counts(run.suite, {name: len(split) for name, split in encoded.items()}, config.tasks)
        chosen = {name: sample(name, len(encoded[name]), count, config.seed) for name, count in shares.items()}
        mixture = join([encoded[name].examples.select(items) for name, items in chosen.items()])
        cut = sum(int(encoded[name].cut[items].sum()) for name, items in chosen.items())
        about = {"tasks": sorted(shares), "rows": len(mixture), "truncated_rows": cut, "mixture": shares}
        member = _member(run, TUNED, mixture, config.tuning.experimental)
    log.info("E learns from %d examples in %d packed rows", len(mixture), sum(len(rows) for rows in member.rows))
    members = [replace(member, name=name, seed=run.seed(name)) for name in names]
    _tune(run, "E", members, dict.fromkeys(names, about), lambda: run.model)


def _controls(run: Run) -> dict[str, Task]:
    """Control models by name, one for each task, some by several seeds; and the task of each."""
    tuning = run.config.tuning
    seeded = chosen_tasks(run.suite, "config.tuning.seeded", tuning.seeded)
    of = {}
    for task in run.suite.tasks:
        seeds = tuning.control_seeds if task.name in seeded or not tuning.seeded else 1
        of |= {name: task for name in (task.name, *[f"{task.name}.seed{number}" for number in range(1, seeds)])}
    return of


def _tune_controls(run: Run, controls: dict[str, Task]) -> None:
    """The control models (name -> task)."""
    members, about = [], {}
    with goodput.lost("input"):
        for name, task in controls.items():
            encoded = run.encoded(task, "train")
            members.append(_member(run, name, encoded.examples, run.config.tuning.control))
            about[name] = {"tasks": [task.name], "rows": len(encoded), "truncated_rows": int(encoded.cut.sum())}
            about[name]["bad_rows"] = encoded.bad_rows
    _tune(run, "controls", members, about, lambda: run.population_model)


def _member(run: Run, name: str, examples: Examples, schedule: Schedule) -> Member:
    tokens = run.config.tokens
    rows = packed(examples, tokens, base_can_share_prefix(run.config))
    counts = [len(part) for part in rows]
    batches = batches_of(counts, schedule.batch_rows, tokens.row_length, tokens.long_row_length)
    return Member(name, rows, steps_for(schedule, batches), run.seed(name))


def _tune(run: Run, label: str, members: list[Member], about: dict[str, dict], model: Callable[[], Model]) -> None:
    """Tunes a group of models as its schedule says, each exported as soon as it is done.

    Args:
      run: of the run.
      label: "E" or "controls".
      members: of one kind.
      about: what to write beside each, by name.
      model: gives the base that adapters are tuned over.
    """
    facts = {
        member.name: {
            "model": member.name,
            **about[member.name],
            "steps": member.steps,
            "packed_rows": sum(len(rows) for rows in member.rows),
            "seed": list(member.seed),
            "template": run.tokenizer.record,
            "tuning": asdict(run.config.tuning),
        }
        for member in members
    }
    if run.is_whole(members[0].name):
        _tune_whole(run, label, members, facts)
    else:
        _tune_adapters(run, label, members, facts, model())


def _tune_adapters(run: Run, label: str, members: list[Member], facts: dict[str, dict], model: Model) -> None:
    """Tunes adapters over the base, together; exports them as PEFT folders."""
    schedule = run.schedule(members[0].name)

    def export(member: Member, adapter: Adapter) -> None:
        if run.folder.writer and not run.is_tuned(member.name):
            run.folder.flush()  # who is exported is not trained again, so its curve must be there
            save_adapter(run.tuned_folder(member.name), adapter, run.base, facts[member.name])

    def train(label: str, members: list[Member]) -> None:
        todo = run.untuned(member.name for member in members)
        tune_population(
            label, members, model.state, model.architecture, run.config.tuning, schedule, model.mesh, run.folder,
            run.stop, export, exported={member.name for member in members} - set(todo),
        )  # fmt: skip
        agreement.wait_for_all("export")

    train(label, members)
    # Who was exported once and is gone again: the group is past them.
    gone = run.untuned(member.name for member in members)
    if gone:
        train(f"{label} again", [member for member in members if member.name in gone])


def _tune_whole(run: Run, label: str, members: list[Member], facts: dict[str, dict]) -> None:
    """Tunes all parameters of one model after the other; exports them as Hugging Face folders.

    What is exported is not done again, and its checkpoints, six times as large as a bfloat16 model, are deleted.
    """
    names = run.untuned(member.name for member in members)
    todo = [member for member in members if member.name in names]
    progress = Progress(label, len(members), len(members) - len(todo))
    for number, member in enumerate(todo, len(members) - len(todo) + 1):
        name, outline = member.name, run.outline
        run.release()  # the parameters take its place; where they begin, it is read once more
        parameters = tune_full(
            f"{label} {name}", member, outline, run.weights, run.config.tuning, run.schedule(name),
            run.folder, run.stop,
        )  # fmt: skip
        with goodput.lost("export"):
            save_full(run.tuned_folder(name), outline, parameters, {"base": run.base, **facts[name]})
        del parameters
        agreement.wait_for_all("export")
        if run.folder.writer:
            checkpoints_of(run.folder, f"{label} {name}").rmtree(missing_ok=True)
        progress.line(number, f"{name} exported")
