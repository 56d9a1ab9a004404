"""The report stage: from the tables of the run folder to findings, figures and the page."""

from __future__ import annotations

import json
import time

import pandas as pd

from mossa_jax.errors import BAD_INPUT, NO_ACCESS, Refusal
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.files.write import read_parquet, write_json, write_table
from mossa_jax.findings import find
from mossa_jax.llama.architecture import read_architecture
from mossa_jax.llama.files.load import Model
from mossa_jax.llama.files.locate import locate
from mossa_jax.llama.files.peft import read_about
from mossa_jax.log import log
from mossa_jax.monitoring import goodput
from mossa_jax.processes import agreement
from mossa_jax.report import write_figures, write_page
from mossa_jax.run.context import Run
from mossa_jax.run.prepare import read_record
from mossa_jax.states.parity import parity_or_reason, relative_differences
from mossa_jax.tasks.thresholds import FEW_PROMPTS, FEW_STEPS
from mossa_jax.tokens.tokenizer import encode_prompts

_PARITY_TASKS = 4
_PARITY_TOKENS = 128


def report(run: Run) -> dict:
    """Findings, figures and the page from the tables of the run folder; returns the findings; {} where another writes.

    Raises:
      Refusal: 3 when there is no table of similarities yet.
    """
    with run.ledger.stage("report"), goodput.useful():
        return _report(run)


def _report(run: Run) -> dict:
    config, run_folder = run.config, run.folder
    path = run_folder / "results/cka.parquet"
    if not all(agreement.agreed([run_folder.writer and path.exists()])):
        raise Refusal(
            BAD_INPUT, f"{run_folder.path} has no results/cka.parquet yet; run launch.compare or launch.run first"
        )
    run.stop.leave_if_asked()
    parity = base_parity(run)
    run.stop.leave_if_asked()
    if not run_folder.writer:
        return {}
    table, data = read_parquet(path), read_record(run_folder)
    scores = _scores(run)
    prompts = None
    if config.compare.pool == "all":  # n counts tokens there
        prompts = {name: task["test"].get("distinct", task["test"]["rows"]) for name, task in data["tasks"].items()}
    found = find(table, scores, config.seed, config.compare.draws, prompts) | {"template": data["template"]}
    curves = training_curves(run_folder)
    write_table(run_folder / "results/scores.parquet", scores)
    write_table(run_folder / "results/curves.parquet", curves)
    write_json(run_folder / "results/findings.json", found)
    figures = run_folder / "figures"
    write_figures(table, found, scores, curves, figures)
    goodput.record()  # what there is of this stage so far goes into its page
    write_page(
        run_folder / "report.html", table, found, scores, curves, _task_table(run, data), parity,
        _about(run, found["trust"]["prompts"], table, data),
        figures, goodput.times(run_folder.metrics()),
    )  # fmt: skip
    log.info("report: %s", run_folder / "report.html")
    return found


def base_parity(run: Run) -> pd.DataFrame | str:
    """The base model beside transformers (`states.parity`), or why it was not checked; a table is made once and kept.

    All processes call this together; only the writer's return value means something.
    """
    kept, kept_reason = run.folder / "results/parity.parquet", run.folder / "results/parity.json"
    if all(agreement.agreed([run.folder.writer and kept.exists() and kept.with_suffix(".csv").exists()])):
        return read_parquet(kept) if run.folder.writer else ""
    found = _check_base(run)
    if run.folder.writer:
        if isinstance(found, str):
            log.info("parity with transformers: not checked: %s", found)
            write_json(kept_reason, {"not_checked": found})
        else:
            log.info("parity with transformers: largest relative difference %.1e", relative_differences(found).max())
            write_table(kept, found)
            kept_reason.unlink(missing_ok=True)
    agreement.wait_for_all("parity")
    return found


def _check_base(run: Run) -> pd.DataFrame | str:
    def inputs() -> tuple[Model, list[list[int]]]:
        tokens = run.config.tokens
        texts = [task.examples("test", 1)[0].inputs for task in run.suite.tasks[:_PARITY_TASKS]]
        prompts, _ = encode_prompts(run.tokenizer, texts, tokens.max_tokens, tokens.truncation)
        return run.model, [ids[:_PARITY_TOKENS] for ids in prompts]

    try:
        arch = read_architecture(locate(run.base, run.config.revision, config_only=True))
        return parity_or_reason(arch, inputs)
    except Refusal as refusal:  # a page can be made anew where the model is not at hand
        if refusal.code not in (BAD_INPUT, NO_ACCESS):
            raise
        return str(refusal)


def _scores(run: Run) -> pd.DataFrame:
    tables = [run.read_part("scores", task) for task in run.suite.tasks if run.part("scores", task).exists()]
    columns = ["task", "cluster", "held_out", "model", "exact_match", "n"]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def training_curves(run_folder: RunFolder) -> pd.DataFrame:
    """Training loss by model and step; steps that a restart repeated count once."""
    curves = pd.DataFrame(run_folder.metrics(), columns=["model", "step", "loss"]).dropna()
    curves = curves.drop_duplicates(["model", "step"], keep="last").sort_values(["model", "step"])
    return curves.astype({"step": int}).reset_index(drop=True)


def _task_table(run: Run, record: dict) -> pd.DataFrame:
    rows, suite = [], run.suite
    for task in suite.tasks:
        train, test = record["tasks"][task.name]["train"], record["tasks"][task.name]["test"]
        rows.append(
            {
                "task": task.name,
                "cluster": task.cluster,
                "held_out": task.name in suite.held_out,
                "train_rows": train["rows"],
                "test_rows": test["rows"],
                "truncated_rows": train["cut"],
                "truncated_prompts": test["cut"],
                "steps": read_about(run.tuned_folder(task.name))["steps"],
            }
        )
    return pd.DataFrame(rows)


def _odd_steps(run_folder: RunFolder) -> list[str]:
    """What went wrong in training and was got over, by model."""
    counts: dict[tuple[str, str], int] = {}
    for record in filter(lambda record: "model" in record, run_folder.metrics()):
        for kind in ("skipped", "spikes"):
            counts[record["model"], kind] = max(counts.get((record["model"], kind), 0), record.get(kind, 0))
    words = {"skipped": "updates were skipped, loss or gradient not being finite", "spikes": "loss spikes"}
    return [f"model {model}: {count} {words[kind]}" for (model, kind), count in counts.items() if count]


def _repeats(tasks: dict[str, dict]) -> list[str]:
    """Test prompts that repeat others of their task."""
    left_out = {name: task["test"]["rows"] - task["test"].get("distinct", task["test"]["rows"])
                for name, task in tasks.items()}  # fmt: skip
    left_out = {name: count for name, count in left_out.items() if count}
    if not left_out:
        return []
    most = max(left_out, key=left_out.get)
    return [
        f"{sum(left_out.values())} test prompts in {len(left_out)} tasks repeat others after cutting, and count once "
        f"in similarities (most in {most}: {left_out[most]} of {tasks[most]['test']['rows']})"
    ]


def _about(run: Run, prompts: dict, table: pd.DataFrame, data: dict) -> dict:
    config, suite = run.config, run.suite
    record = json.loads((run.folder / "environment.json").read_text())
    warnings = []
    if prompts["smallest"] < FEW_PROMPTS:
        warnings.append(
            f"the smallest task has {prompts['smallest']} test prompts; below {FEW_PROMPTS} every interval is wide"
        )
    steps = {task.name: read_about(run.tuned_folder(task.name))["steps"] for task in suite.tasks}
    few = [name for name, count in steps.items() if count < FEW_STEPS]
    if few:
        shown = ", ".join(few[:5]) + (", ..." if len(few) > 5 else "")
        warnings.append(
            f"specialists of {len(few)} tasks took fewer than {FEW_STEPS} steps: they are near the pre-trained model "
            f"whatever it holds ({shown})"
        )
    if config.compare.pool == "all":
        warnings.append(
            "every token is a row: tokens that all prompts begin with (BOS, a template) are equal rows in each of "
            "them, and raise similarities of any two models"
        )
    if config.compare.pool == "mean":
        warnings.append(
            "the mean over tokens has BOS in it: where its state is far larger than others, prompts' lengths alone "
            "make models similar"
        )
    warnings += _repeats(data["tasks"])
    if data["missing"]:
        warnings.append(f"tasks that no source has, left out: {', '.join(data['missing'])}")
    for name, task in data["tasks"].items():
        bad = task["train"]["bad_rows"] + task["test"]["bad_rows"]
        if bad:
            warnings.append(f"task {name}: {bad} unusable rows were left out")
    warnings += _odd_steps(run.folder)
    return {
        "name": config.name,
        "base": config.base,
        "suite": suite.name,
        "tasks": len(suite.tasks),
        "prompts_min": int(prompts["smallest"]),
        "prompts_max": int(prompts["largest"]),
        "layers": int(pd.to_numeric(table.layer, errors="coerce").max()),
        "dtype": config.dtype,
        "pooling": config.compare.pool,
        "template": f"{data['template']['name']} ({data['template']['digest']}): {data['template']['text']}",
        "seed": config.seed,
        "devices": f"{record['devices']} x {record['device']}, {record['processes']} process(es)",
        "versions": record["packages"] | {"python": record["python"]},
        "command": record["command"],
        "date": time.strftime("%Y-%m-%d"),
        "warnings": warnings,
    }
