"""The whole run, stage after stage: tune, score, compare, report. Each stage goes on where it was left.

The unit of finished work is a file: a tuned model's folder, a task's part of a table. A unit that is there is not done
again; everything that is written appears whole or not at all.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import metadata

import jax
import numpy as np
import pandas as pd

from mossa_jax import config as config_lib
from mossa_jax.monitoring import goodput
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.config import MINIATURE, Config, Schedule
from mossa_jax.run.prepare import prepare
from mossa_jax.llama.files.locate import locate
from mossa_jax.llama.files.load import Model
from mossa_jax.llama.files.peft import save_adapter
from mossa_jax.run.models import chosen_engine, exact_matches, similarities
from mossa_jax.monitoring.progress import Progress
from mossa_jax.log import log
from mossa_jax.run.report import report
from mossa_jax.errors import BAD_CONFIG, BAD_INPUT, Refusal
from mossa_jax.files.run_folder import RunDir
from mossa_jax.files.write import write_parquet, write_table
from mossa_jax.similarity.cells import cells, with_q
from mossa_jax.tasks import Task, chosen_tasks
from mossa_jax.tasks.mixture import mixture_counts, sample
from mossa_jax.tokens.encoded import Examples, join
from mossa_jax.tokens.packing import batches_of
from mossa_jax.monitoring.trackers import Trackers, check_trackers
from mossa_jax.tuning.full_finetuning import checkpoints_of, save_full, tune_full
from mossa_jax.tuning.loop import Adapter, Member, steps_for, tune_population
from mossa_jax.run.context import TUNED, Bench, may_share, packed

PRETRAINED = "pretrained"
ORDER = ("experimental", "control", "task", "cluster", "held_out")


def run(bench: Bench) -> dict:
    """Tunes E and every control, scores, compares and reports; returns the findings, where this process writes them."""
    tune(bench)
    compare(bench)
    return report(bench)


def summary(found: dict, workdir: str) -> str:
    """The findings in words, with the page's path, for people at a terminal."""
    lines = [f"[{finding['verdict']}] {finding['title']}: {finding['sentence']}" for finding in found["findings"]]
    return "\n".join(["", "Findings", *lines, "", f"Report: {os.path.join(workdir, 'report.html')}"])


def open_run(config: Config, workdir: str) -> RunDir:
    """Checks the configuration and claims the run folder for it.

    Raises:
      Refusal: 2 for a bad configuration or a folder of another one.
    """
    config_lib.check(config)
    check_trackers(config.track)
    rundir = RunDir(workdir, writer=jax.process_index() == 0)
    rundir.open(config, environment())
    if config.track and rundir.writer:
        rundir.trackers = Trackers(config.track, rundir.path, config.name, asdict(config))
    return rundir


def _command(argv: list[str]) -> str:
    """The command line as one types it: a module that was started by `python -m` shows up as the path of its file."""
    folder, script = os.path.split(argv[0])
    if os.path.basename(folder) == "launch" and script.endswith(".py"):
        return shlex.join(["python", "-m", f"launch.{script.removesuffix('.py')}", *argv[1:]])
    return shlex.join([os.path.basename(sys.executable), *argv])


def environment() -> dict:
    """Versions, devices and the command, for the record."""
    packages = "mossa_jax jax jaxlib flax optax orbax-checkpoint transformers datasets numpy".split()
    return {
        "command": _command(sys.argv),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
    }


def tune(bench: Bench) -> None:
    """Tunes E on the mixture and a control model on each task; exports them as PEFT adapters or whole models."""
    config = bench.config
    if config.base != MINIATURE:
        locate(config.base, config.revision, config_only=True)  # access is checked before data is read
    prepare(bench)
    layers = bench.architecture.layers
    if not 0 <= config.tuning.first_layer < layers:
        raise Refusal(
            BAD_CONFIG, f"config.tuning.first_layer={config.tuning.first_layer}: the model has {layers} layers"
        )
    names = bench.experimental_names
    if bench.untuned(names):
        with bench.ledger.stage("E"):
            _tune_experimental(bench, names)
    controls = _controls(bench)
    if bench.untuned(controls):
        with bench.ledger.stage("controls"):
            _tune_controls(bench, controls)
    if config.tuning.score_prompts:
        with bench.ledger.stage("score"):
            _score(bench)


def _tune_experimental(bench: Bench, names: list[str]) -> None:
    """E on the mixture, by as many seeds as the configuration asks for."""
    config = bench.config
    with goodput.lost("input"):
        encoded = {task.name: bench.encoded(task, "train") for task in bench.suite.tasks}
        shares = mixture_counts(bench.suite, {name: len(split) for name, split in encoded.items()}, config.tasks)
        chosen = {name: sample(name, len(encoded[name]), count, config.seed) for name, count in shares.items()}
        mixture = join([encoded[name].examples.select(items) for name, items in chosen.items()])
        cut = sum(int(encoded[name].cut[items].sum()) for name, items in chosen.items())
        about = {"tasks": sorted(shares), "rows": len(mixture), "truncated_rows": cut, "mixture": shares}
        member = _member(bench, TUNED, mixture, config.tuning.experimental)
    log.info("E learns from %d examples in %d packed rows", len(mixture), sum(len(rows) for rows in member.rows))
    members = [replace(member, name=name, seed=bench.seed(name)) for name in names]
    _tune(bench, "E", members, dict.fromkeys(names, about), lambda: bench.model)


def _controls(bench: Bench) -> dict[str, Task]:
    """Control models by name, one for each task, some by several seeds; and the task of each."""
    tuning = bench.config.tuning
    seeded = chosen_tasks(bench.suite, "config.tuning.seeded", tuning.seeded)
    of = {}
    for task in bench.suite.tasks:
        seeds = tuning.control_seeds if task.name in seeded or not tuning.seeded else 1
        of |= {name: task for name in (task.name, *[f"{task.name}.seed{number}" for number in range(1, seeds)])}
    return of


def _tune_controls(bench: Bench, controls: dict[str, Task]) -> None:
    """The control models (name -> task)."""
    members, about = [], {}
    with goodput.lost("input"):
        for name, task in controls.items():
            encoded = bench.encoded(task, "train")
            members.append(_member(bench, name, encoded.examples, bench.config.tuning.control))
            about[name] = {"tasks": [task.name], "rows": len(encoded), "truncated_rows": int(encoded.cut.sum())}
            about[name]["bad_rows"] = encoded.bad_rows
    _tune(bench, "controls", members, about, lambda: bench.population_model)


def _member(bench: Bench, name: str, examples: Examples, schedule: Schedule) -> Member:
    tokens = bench.config.tokens
    rows = packed(examples, tokens, may_share(bench.config))
    counts = [len(part) for part in rows]
    batches = batches_of(counts, schedule.batch_rows, tokens.row_length, tokens.long_row_length)
    return Member(name, rows, steps_for(schedule, batches), bench.seed(name))


def _tune(bench: Bench, label: str, members: list[Member], about: dict[str, dict], model: Callable[[], Model]) -> None:
    """Tunes a group of models as its schedule says, each exported as soon as it is done.

    Args:
      bench: of the run.
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
            "template": bench.tokenizer.record,
            "tuning": asdict(bench.config.tuning),
        }
        for member in members
    }
    if bench.is_whole(members[0].name):
        _tune_whole(bench, label, members, facts)
    else:
        _tune_adapters(bench, label, members, facts, model())


def _tune_adapters(bench: Bench, label: str, members: list[Member], facts: dict[str, dict], model: Model) -> None:
    """Tunes adapters over the base, together; exports them as PEFT folders."""
    schedule = bench.schedule(members[0].name)

    def export(member: Member, adapter: Adapter) -> None:
        if bench.rundir.writer and not bench.is_tuned(member.name):
            bench.rundir.flush()  # who is exported is not trained again, so its curve must be there
            save_adapter(bench.tuned_folder(member.name), adapter, bench.base, facts[member.name])

    def train(label: str, members: list[Member]) -> None:
        todo = bench.untuned(member.name for member in members)
        tune_population(
            label, members, model.state, model.architecture, bench.config.tuning, schedule, model.mesh, bench.rundir,
            bench.stop, export, exported={member.name for member in members} - set(todo),
        )  # fmt: skip
        mesh_lib.wait_for_all("export")

    train(label, members)
    # Who was exported once and is gone again: the group is past them.
    gone = bench.untuned(member.name for member in members)
    if gone:
        train(f"{label} again", [member for member in members if member.name in gone])


def _tune_whole(bench: Bench, label: str, members: list[Member], facts: dict[str, dict]) -> None:
    """Tunes all parameters of one model after the other; exports them as Hugging Face folders.

    What is exported is not done again, and its checkpoints, six times as large as a bfloat16 model, are deleted.
    """
    names = bench.untuned(member.name for member in members)
    todo = [member for member in members if member.name in names]
    progress = Progress(label, len(members), len(members) - len(todo))
    for number, member in enumerate(todo, len(members) - len(todo) + 1):
        name, outline = member.name, bench.outline
        bench.release()  # the parameters take its place; where they begin, it is read once more
        parameters = tune_full(
            f"{label} {name}", member, outline, bench.weights, bench.config.tuning, bench.schedule(name),
            bench.rundir, bench.stop,
        )  # fmt: skip
        with goodput.lost("export"):
            save_full(bench.tuned_folder(name), outline, parameters, {"base": bench.base, **facts[name]})
        del parameters
        mesh_lib.wait_for_all("export")
        if bench.rundir.writer:
            checkpoints_of(bench.rundir, f"{label} {name}").rmtree(missing_ok=True)
        progress.line(number, f"{name} exported")


def _score(bench: Bench) -> None:
    """Exact match of base, E and C_t on each task's test prompts."""
    tuning = bench.config.tuning
    todo = bench.unfinished("scores")
    progress = Progress("scores", len(bench.suite.tasks), len(bench.suite.tasks) - len(todo))
    for number, task in enumerate(todo, len(bench.suite.tasks) - len(todo) + 1):
        examples = task.examples("test", min(tuning.score_prompts, bench.config.tasks.max_test))
        with goodput.useful("score", number - 1):
            shares = exact_matches(bench, [None, TUNED, task.name], examples)
        rows = [
            {"model": model, "exact_match": float(share), "n": len(examples)}
            for model, share in zip(("base", TUNED, "control"), shares, strict=True)
        ]
        _write_part(bench, "scores", task, rows)
        progress.line(number, f"{task.name}: base {shares[0]:.2f}, E {shares[1]:.2f}, control {shares[2]:.2f}")
        bench.stop.leave_if_asked()


def _write_part(bench: Bench, stage: str, task: Task, rows: list[dict]) -> None:
    if bench.rundir.writer:
        write_parquet(bench.part(stage, task), pd.DataFrame(rows))


def compare(bench: Bench) -> pd.DataFrame | None:
    """Compares pre-trained and tuned E with the control models, task by task; writes results/cka.parquet.

    Returns:
      The table; None on processes that do not write.
    """
    prepare(bench)
    with bench.ledger.stage("compare"):
        return _compare(bench)


def _compare(bench: Bench) -> pd.DataFrame | None:
    tasks, rundir = bench.suite.tasks, bench.rundir
    lacking = bench.untuned([TUNED, *(task.name for task in tasks)])
    if lacking:
        raise Refusal(
            BAD_INPUT,
            f"{rundir.path} has no adapter or model of {lacking[0]!r} yet; run launch.tune or launch.run first",
        )
    todo = bench.unfinished("cka")
    progress = Progress("compare", len(tasks), len(tasks) - len(todo))
    how = _engine(bench, tasks) if todo else ""
    for number, task in enumerate(todo, len(tasks) - len(todo) + 1):
        with goodput.useful("compare", number - 1):
            rows, text = _compare_task(bench, task, how)
        goodput.running(())  # nothing is any more: similarities are on the host
        _write_part(bench, "cka", task, rows)
        progress.line(number, f"{task.name}: {text}")
        bench.stop.leave_if_asked()
    table = None
    if rundir.writer:
        table = with_q(pd.concat([bench.read_part("cka", task) for task in tasks]), _untouched(bench))
        table = table[[*ORDER, *[name for name in table.columns if name not in (*ORDER, "undefined")], "undefined"]]
        write_table(rundir / "results/cka.parquet", table)
    mesh_lib.wait_for_all("table")
    return table


def _engine(bench: Bench, tasks: list[Task]) -> str:
    """How similarities are found, by the task with the most prompts."""
    controls = 1 + bench.config.compare.mismatched
    prompts = max(len(bench.encoded(task, "test")) for task in tasks)
    return chosen_engine(bench, 2 + controls, prompts, pairs_of(controls))


def pairs_of(controls: int) -> list[tuple[int, int]]:
    """What is compared among the base (0), E (1) and so many controls (2, ...)."""
    return [(one, control) for control in range(2, 2 + controls) for one in (0, 1)] + [(0, 1)]


def _compare_task(bench: Bench, task: Task, how: str) -> tuple[list[dict], str]:
    controls = [task.name, *_mismatched(bench, task)]
    models, pairs = [None, TUNED, *controls], pairs_of(len(controls))
    found = similarities(bench, how, models, bench.test_prompts(task), pairs)
    rows = []
    for (one, other), made in zip(pairs, cells(found, pairs, bench.architecture.state_names()), strict=True):
        named = {"experimental": models[one] or PRETRAINED, "control": models[other]}
        rows += [{**named, **cell} for cell in made]
    middle = str(bench.architecture.layers // 2)
    shown = [
        f"{row['experimental']} {row['cka']:.3f}"
        for row in rows
        if row["layer"] == middle and row["estimator"] == "debiased" and row["control"] == task.name
    ]
    dropped = f", {found.dropped} rows not finite" if found.dropped else ""
    return rows, f"layer {middle}: {', '.join(shown)}, n {found.n}{dropped}"


def _untouched(bench: Bench) -> list[str]:
    """The layers below all adapters; none where models are tuned in full."""
    tuning = bench.config.tuning
    if "full" in (tuning.control.method, tuning.experimental.method):
        return []
    return bench.architecture.state_names()[: 1 + tuning.first_layer]


def _mismatched(bench: Bench, task: Task) -> list[str]:
    """Control models of other clusters for this task's prompts, drawn anew for each task.

    Of tasks of the mixture, where there are any: E has not seen the others. One specialist that is odd must not stand
    for "others" in a whole cluster.
    """
    suite = bench.suite
    others = [other.name for other in suite.tasks if other.cluster != task.cluster]
    others = [name for name in others if name not in suite.held_out] or others
    order = np.random.default_rng((*bench.seed(task.name), 4)).permutation(len(others))
    return [others[index] for index in order[: bench.config.compare.mismatched]]
