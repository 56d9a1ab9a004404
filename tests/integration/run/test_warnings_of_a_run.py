"""The warnings of a run: said once, at its start or its end, in the words of the preview, and kept for the page."""

import copy
import json
import logging
import re
import shutil

import pytest
from markupsafe import escape

from mossa_jax.errors import Refusal
from mossa_jax.findings.warnings import RunWarning
from mossa_jax.log import log
from mossa_jax.preview.dataset import preview_dataset
from mossa_jax.processes.stop import Stop
from mossa_jax.report.numbers import with_minus
from mossa_jax.run import pipeline, prepare, warnings
from mossa_jax.run.pipeline import summary
from tests.conftest import load_config
from tests.support.run_folders import rewrite

LONG = "and then the old boats go under the big red mill when rain comes from the hills near a river " * 3
CLUSTERS = {"fruit": "food", "bread": "food", "boat": "travel", "cart": "travel"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOSSA_CACHE", str(tmp_path / "cache"))


def clean(train=120, test=60):
    def row(task, split, n):
        return {"inputs": f"{split} {task} number {n}", "targets": f"word {n % 10}"}

    sizes = {"train": train, "test": test}
    return {
        task: {split: [row(task, split, n) for n in range(size)] for split, size in sizes.items()} for task in CLUSTERS
    }


def planted(tiny_config, folder, suite, steps=30, pool="last"):
    """The tiny configuration on a suite of one's own."""
    for task, splits in suite.items():
        for split, rows in splits.items():
            path = folder / split / f"{task}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tasks.json").write_text(json.dumps({task: {"cluster": name} for task, name in CLUSTERS.items()}))
    config = copy.deepcopy(load_config(tiny_config))
    config.tasks.folder = str(folder)
    config.compare.pool = pool
    for schedule in (config.tuning.control, config.tuning.experimental):
        schedule.batch_rows, schedule.max_steps = 1, steps
    return config


def lines_at_start(config, workdir):
    """The warnings that a run says before its first step, and the run."""
    run = pipeline.Run(config, pipeline.open_run(config, str(workdir)), Stop())
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    log.addHandler(handler)
    try:
        warnings.announce(run, prepare.prepare(run))
    finally:
        log.removeHandler(handler)
        run.folder.close()
    return lines, run


def test_a_clean_suite_is_not_warned_of(tiny_config, tmp_path):
    lines, run = lines_at_start(planted(tiny_config, tmp_path / "tasks", clean()), tmp_path / "run")
    assert lines == [] and warnings.early_warnings(run) == []


def test_planted_faults_are_said_once_each_in_the_words_of_the_preview(tiny_config, tmp_path, monkeypatch):
    suite = clean()
    for row in suite["bread"]["test"]:  # every prompt is cut, and what is left of them is their common end
        row["inputs"] = f"{row['inputs']} {LONG}"
    for n, row in enumerate(suite["boat"]["test"]):
        row["inputs"] = f"what {n % 20}"
    suite["cart"]["train"][3] = suite["cart"]["train"][2]
    config = planted(tiny_config, tmp_path / "tasks", suite, steps=11)
    lines, run = lines_at_start(config, tmp_path / "run")
    starts = [
        "fewer than 4 distinct test prompts: bread (1);",
        "less than half of the test prompts are distinct: boat (20);",
        "more than 20% of the test prompts are cut: bread (100 %);",
        "fewer than 20 steps for the control model: fruit (11), bread (11), boat (11), cart (11);",
        "fewer than 20 steps for E: 11;",
    ]
    assert len(lines) == len(starts)
    assert all(line.startswith(f"warning: {start} ") for line, start in zip(lines, starts, strict=True))
    early = warnings.early_warnings(run)
    assert [warning.line for warning in early][:5] == lines and early[5].line.startswith("note: some training rows")
    assert preview_dataset(config).warnings == [warning.line for warning in early]
    # On the same rows they are not looked for again, and the page needs no rows.
    monkeypatch.setattr(warnings, "_data_warnings", lambda run: pytest.fail("looked for again"))
    assert lines_at_start(config, tmp_path / "run")[0] == lines
    shutil.rmtree(tmp_path / "tasks")
    assert warnings.early_warnings(run) == early
    monkeypatch.undo()
    with pytest.raises(Refusal):
        lines_at_start(config, tmp_path / "other")


def test_other_rows_are_looked_at_anew(tiny_config, tmp_path):
    config = planted(tiny_config, tmp_path / "tasks", clean())
    lines_at_start(config, tmp_path / "run")
    rewrite(tmp_path / "run/warnings.json", lambda kept: kept.update(rests_on="other rows", warnings=[]))
    (tmp_path / "tasks/tasks.json").write_text(json.dumps({task: {"cluster": task} for task in CLUSTERS}))
    lines, _ = lines_at_start(config, tmp_path / "run")
    assert [line.split(":")[1] for line in lines] == [" clusters with a single task in the mixture"]


def test_the_pooling_is_warned_of_and_many_kinds_are_counted(tiny_config, tmp_path):
    suite = clean(train=60, test=40)
    for rows in suite["bread"].values():
        for n, row in enumerate(rows):
            row |= {"inputs": f"{row['inputs']} {LONG}", "item": n, "targets": "yes"}
    suite["fruit"]["test"] = [row | {"item": 1} for row in suite["fruit"]["test"]]
    suite["boat"]["test"][:9] = suite["cart"]["train"][:9]
    suite["cart"]["test"][:9] = suite["cart"]["train"][:9]
    config = planted(tiny_config, tmp_path / "tasks", suite, steps=11, pool="mean")
    lines, run = lines_at_start(config, tmp_path / "run")
    early = [warning for warning in warnings.early_warnings(run) if not warning.about.is_note]
    assert len(early) > 8 == len(lines) and early[-1].kind == "pool_mean"
    assert lines[:7] == [warning.line for warning in early[:7]]
    assert [line for line in preview_dataset(config).warnings if line.startswith("w")] == [w.line for w in early]
    assert lines[7] == f"warning: and {len(early) - 7} more, which launch.tasks shows, and the page"


def test_a_finished_run_says_each_warning_once(tiny_run):
    _, folder = tiny_run
    analysis = json.loads((folder / "results/findings.json").read_text())
    said = analysis["warnings"]
    kinds = [warning["kind"] for warning in said]
    # 12 test prompts and 6 to 12 steps: a run of this size shows nothing, and says so.
    assert {"few_prompts", "few_steps", "few_steps_of_e"} <= set(kinds) and len(kinds) == len(set(kinds))
    page = re.sub(r"\s+", " ", (folder / "report.html").read_text().split('<script type="text/plain" id="plotly"')[0])
    end = summary(analysis | {"page": str(folder / "report.html"), "variants": []}, 10_000)
    early = {warning["kind"] for warning in json.loads((folder / "warnings.json").read_text())["warnings"]}
    for warning in said:
        assert page.count(str(escape(with_minus(warning["sentence"])))) == 1, warning
        assert end.count(RunWarning.of_record(warning).short) == (warning["kind"] not in early)
    for finding in analysis["findings"]:
        if finding["verdict"] != "not measured":
            assert finding["qualifications"] and str(escape(with_minus(finding["qualifications"][0]))) in page
