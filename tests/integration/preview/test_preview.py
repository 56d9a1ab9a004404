"""A preview before the run: figures known by construction, planted faults, the command."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from tokenizers import Tokenizer as Library

from mossa_jax.config import Config, Schedule, Tasks, Tokens, Tuning
from mossa_jax.preview import dataset
from mossa_jax.preview.dataset import preview_dataset, write_preview
from mossa_jax.preview.text import preview_text
from mossa_jax.report.drawing.length_histograms import draw_lengths
from mossa_jax.tasks import load_suite
from tests.integration.launch.test_commands import HARNESS, environment
from tests.support.tiny_llama import VOCAB, copy_tokenizer

CLUSTERS = {"fruit": "food", "bread": "food", "boat": "travel", "train": "travel"}
LONG = "and then the old boats go under the big red mill when rain comes from the hills near a river "


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOSSA_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model folder without weights."""
    folder = tmp_path_factory.mktemp("base")
    copy_tokenizer(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    special = {"model_type": "llama", "vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(special | sizes))
    return folder


@pytest.fixture(scope="module")
def ids(base):
    """How many ids a text has, by the tokenizers library alone."""
    library = Library.from_file(str(base / "tokenizer.json"))
    return lambda text: len(library.encode(text, add_special_tokens=False).ids)


def clean(train=120, test=60):
    """task -> split -> rows without a fault."""

    def row(task, split, n):
        return {"inputs": f"{split} {task} number {n}", "targets": f"word {n % 10}"}

    sizes = {"train": train, "test": test}
    return {
        task: {split: [row(task, split, n) for n in range(size)] for split, size in sizes.items()} for task in CLUSTERS
    }


def write(folder, suite, clusters=CLUSTERS):
    for task, splits in suite.items():
        for split, rows in splits.items():
            path = folder / split / f"{task}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "tasks.json").write_text(json.dumps({task: {"cluster": name} for task, name in clusters.items()}))
    return folder


def configured(base, folder, tokens=None, tuning=None, **tasks) -> Config:
    one = Schedule(epochs=1, batch_rows=1)
    return Config(
        base=str(base),
        tasks=Tasks(suite="folder", folder=str(folder), **tasks),
        tokens=tokens or Tokens(share_prefix=False, max_tokens=64, row_length=64),
        tuning=tuning or Tuning(control=one, experimental=one),
    )


def row_of(preview, task) -> pd.Series:
    return preview.tasks.set_index("task").loc[task]


def test_a_clean_suite_has_its_figures_and_no_warning(base, ids, tmp_path):
    suite = clean()
    suite["boat"]["validation"] = suite["boat"]["test"][:7]
    for n, row in enumerate(suite["bread"]["train"]):
        row["template"] = n % 3
    preview = preview_dataset(configured(base, write(tmp_path, suite), held_out=("train",)))
    assert [*preview.tasks.task] == [*CLUSTERS] and [*preview.tasks.cluster] == [*CLUSTERS.values()]
    assert [*preview.tasks.held_out] == [False, False, False, True]
    assert [*preview.tasks.validation] == [0, 0, 7, 0] and [*preview.tasks.templates] == [0, 3, 0, 0]
    for task, splits in suite.items():
        row = row_of(preview, task)
        lengths = [1 + ids(r["inputs"]) + ids(r["targets"]) + 1 for r in splits["train"]]  # BOS and EOS
        assert preview.lengths[task].tolist() == lengths
        assert (row.train, row.test, row.tokens, row.tokens_max) == (120, 60, sum(lengths), max(lengths))
        assert row.tokens_mean == pytest.approx(sum(lengths) / 120)
        assert sum(length <= row.tokens_p95 for length in lengths) >= 114 > sum(n < row.tokens_p95 for n in lengths)
        assert (row.truncated, row.truncated_test, row.duplicates, row.bad_rows) == (0, 0, 0, 0)
        assert (row.overlap, row.overlap_others, row.distinct_prompts) == (0, 0, 60)
        assert row.top_answer == pytest.approx(0.1) and row.source == str(tmp_path)
    assert [*preview.tasks.mixture] == [120, 120, 120, 0]
    assert len(preview.warnings) == 2 and "validation files: boat" in preview.warnings[1]
    assert "clusters with a single task in the mixture: travel (boat)" in preview.warnings[0]
    (tmp_path / "validation/boat.jsonl").unlink()
    assert preview_dataset(configured(base, tmp_path)).warnings == []


def test_planted_overlap_and_duplicates_are_counted(base, tmp_path):
    suite = clean(train=400, test=100)
    for n in range(5):  # a twentieth, in other white space
        suite["bread"]["test"][7 * n]["inputs"] = f"  train\tbread \n number {n} "
    for n in range(3):
        suite["fruit"]["test"][n]["inputs"] = f"train boat number {n}"
    suite["boat"]["train"].append(suite["boat"]["train"][17])
    suite["fruit"]["train"] += [suite["fruit"]["train"][3]] * 2 + [{"inputs": "train  fruit number 9", "targets": "no"}]
    folder = write(tmp_path, suite)
    preview = preview_dataset(configured(base, folder))
    assert [*preview.tasks.overlap] == [0, 0.05, 0, 0] and [*preview.tasks.overlap_others] == [0.03, 0, 0, 0]
    assert [*preview.tasks.duplicates] == [2, 0, 1, 0]  # the same prompt with another answer repeats nothing
    lines = {line.split(":")[1].strip(): line for line in preview.warnings}
    assert len(lines) == 3
    assert "bread (5.0 %);" in lines["more than 1% of the test prompts are training prompts of the same task"]
    others = lines["more than 1% of the test prompts are training prompts of another task in the mixture"]
    assert "fruit (3.0 %);" in others
    assert lines["some training rows repeat an earlier one"].startswith("note: ")
    assert "fruit (2), boat (1);" in lines["some training rows repeat an earlier one"]
    unseen = preview_dataset(configured(base, folder, held_out=("boat",)))  # what E never trains on leaks nothing
    assert [*unseen.tasks.overlap_others] == [0, 0, 0, 0]


def test_cut_rows_are_counted_and_may_become_one_prompt(base, ids, tmp_path):
    suite = clean()
    for n in range(30):
        suite["boat"]["train"][n]["inputs"] += " " + LONG * 4
    for n in range(40):
        suite["boat"]["test"][n]["inputs"] += " " + LONG * 4  # what is left of them is their common end
    assert ids(LONG * 3) > 64
    preview = preview_dataset(configured(base, write(tmp_path, suite)))
    row = row_of(preview, "boat")
    assert row.truncated == pytest.approx(30 / 120) and row.truncated_test == pytest.approx(40 / 60)
    assert row.tokens_max == 64 and (preview.lengths["boat"] == 64).sum() == 30
    assert row.distinct_prompts == 20 + 1
    assert len(preview.warnings) == 3 and all("boat (" in line for line in preview.warnings)


def few_tests(suite):
    del suite["bread"]["test"][49:]


def three_prompts(suite):
    for n, row in enumerate(suite["bread"]["test"]):
        row["inputs"] = f"what {n % 3}"


def repeated_prompts(suite):
    for n, row in enumerate(suite["bread"]["test"]):
        row["inputs"] = f"what {n % 29}"


def repeated_rows(suite):
    suite["bread"]["train"] += suite["bread"]["train"][:2]


def one_answer(suite):
    for n, row in enumerate(suite["bread"]["test"]):
        row["targets"] = "yes" if n < 49 else "no"


def long_rows(suite):
    for row in suite["bread"]["train"][:25]:
        row["inputs"] = LONG * 4 + row["inputs"]


def long_prompts(suite):
    for number, row in enumerate(suite["bread"]["test"][:13]):
        row["inputs"] = LONG * 4 + row["inputs"]
        # Named, or the text in common would be taken for a passage.
        row["item"] = number


def few_rows(suite):
    del suite["bread"]["train"][99:]


def a_bad_row(suite):
    suite["bread"]["train"][5]["targets"] = ""


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (few_tests, "fewer than 50 test prompts: bread (49);"),
        (three_prompts, "fewer than 4 distinct test prompts: bread (3);"),
        (repeated_prompts, "less than half of the test prompts are distinct: bread (29);"),
        (repeated_rows, "more than 1% of the training rows repeat an earlier one: bread (2);"),
        (one_answer, "one answer makes up more than 80% of the test answers: bread (82 %);"),
        (long_rows, "more than 20% of the training rows are cut: bread (21 %);"),
        (long_prompts, "more than 20% of the test prompts are cut: bread (22 %);"),
        (few_rows, "fewer than 100 examples in the mixture: bread (99);"),
        (a_bad_row, "unusable rows are left out: bread (1);"),
    ],
)
def test_a_planted_fault_is_the_only_warning(base, tmp_path, plant, words):
    suite = clean()
    plant(suite)
    preview = preview_dataset(configured(base, write(tmp_path, suite), allow_bad_rows=True))
    assert len(preview.warnings) == 1 and preview.warnings[0].startswith(f"warning: {words} "), preview.warnings
    assert preview_text(preview).count("!") == 1 + 1  # the cell, and what the legend says of it


def test_items_are_shown_and_guesses_are_noted(base, tmp_path):
    suite = clean()
    for n, row in enumerate(suite["fruit"]["test"]):
        row |= {"item": f"passage {n // 5}", "template": n % 4}
    for n, row in enumerate(suite["bread"]["test"][:10]):
        row["inputs"] = f"the old boats go under that big red mill in rain, {'and' * (n // 5)} number {n}"
    for n, row in enumerate(suite["boat"]["test"]):
        row["item"] = int(n >= 30)
    preview = preview_dataset(configured(base, write(tmp_path, suite)))
    columns = ["items", "item_source", "item_mean", "item_max", "test_templates"]
    shown = {task: tuple(row_of(preview, task)[columns]) for task in CLUSTERS}
    assert shown["fruit"] == (12, "column", 5, 5, 4) and shown["train"] == (60, "rows", 1, 1, 0)
    assert shown["bread"] == (51, "guessed", 60 / 51, 10, 0) and shown["boat"] == (2, "column", 30, 30, 0)
    large, guess = sorted(preview.warnings, reverse=True)
    assert "half or more" in large and "boat (30);" in large and large.startswith("warning: ")
    assert "guessed" in guess and "bread (10);" in guess and guess.startswith("note: ")
    lines = {line.split()[0]: line for line in preview_text(preview).splitlines() if line}
    assert " 51? " in lines["bread"] and " 12 " in lines["fruit"] and " 30!" in lines["boat"]


def test_a_threshold_itself_is_no_fault(base, tmp_path):
    suite = clean(train=100, test=50)
    for n, row in enumerate(suite["bread"]["test"]):
        row["targets"] = "yes" if n < 40 else "no"
        row["inputs"] = f"what {n % 25}"
    (note,) = preview_dataset(configured(base, write(tmp_path, suite))).warnings
    assert note.startswith("note: test prompts of which some repeat others after cutting (distinct ones): bread (25); ")


def test_few_steps_lone_tasks_and_missing_ones_are_warned_of(base, tmp_path, monkeypatch):
    folder = write(tmp_path, clean(), CLUSTERS | {"train": "rail", "boat": "water"})
    steps = Tuning(control=Schedule(epochs=1, batch_rows=1, max_steps=19), experimental=Schedule())
    lacking = replace(load_suite(Tasks(suite="folder", folder=str(folder))), missing=("xsum", "newsroom"))
    monkeypatch.setattr(dataset, "load_suite", lambda config: lacking)
    preview = preview_dataset(configured(base, folder, tuning=steps))
    few, lone, missing = preview.warnings
    assert "fewer than 20 steps for the control model: fruit (19), bread (19), boat (19), " in few
    assert "clusters with a single task in the mixture: water (boat), rail (train);" in lone
    assert "tasks that no source has: xsum, newsroom;" in missing and preview.totals.missing == 2


def test_many_tasks_of_one_fault_are_counted_and_the_worst_named(base, tmp_path):
    def row(task, split, n):
        return {"inputs": f"{split} {task} {n}", "targets": f"word {n % 10}"}

    names = [f"task{n}" for n in range(9)]
    suite = {
        name: {"train": [row(name, "train", n) for n in range(150)], "test": [row(name, "test", n) for n in range(40)]}
        for name in names
    }
    del suite["task7"]["test"][20:]
    preview = preview_dataset(configured(base, write(tmp_path, suite, dict.fromkeys(names, "all"))))
    assert len(preview.warnings) == 1
    assert "9 of 9, first task7 (20), task0 (40), task1 (40), task2 (40), task3 (40) and 4 more;" in preview.warnings[0]


def test_the_mixture_and_the_steps_add_up(base, ids, tmp_path):
    suite = clean(train=90, test=50)
    for splits in suite.values():
        for n, row in enumerate(splits["train"]):
            row["inputs"] = f"the red mill {10 + n}"
    length = {1 + ids(r["inputs"]) + ids(r["targets"]) + 1 for splits in suite.values() for r in splits["train"]}
    assert len(length) == 1
    length = length.pop()
    del suite["bread"]["train"][30:]
    tuning = Tuning(
        control=Schedule(epochs=2, batch_rows=4), experimental=Schedule(epochs=1, batch_rows=2, max_steps=5)
    )
    tokens = Tokens(share_prefix=False, max_tokens=3 * length + 1, row_length=3 * length + 1)
    config = configured(base, write(tmp_path, suite), tokens, tuning, max_per_cluster=60, held_out=("train",))
    preview = preview_dataset(config)
    assert [*preview.tasks.mixture] == [45, 15, 60, 0]  # 90 and 30 of food share 60; boat has travel's cap to itself
    clusters, tasks = (preview.mixture[preview.mixture.kind == kind].set_index("name") for kind in ("cluster", "task"))
    assert clusters.given.to_dict() == {"food": 60, "travel": 60} and clusters.rows.to_dict() == {
        "food": 120,
        "travel": 180,
    }
    assert clusters.share.to_dict() == {"food": 0.5, "travel": 0.5}
    assert tasks.given.to_dict() == {"fruit": 45, "bread": 15, "boat": 60, "train": 0}
    assert tasks.share.sum() == pytest.approx(1) and tasks.share["fruit"] == pytest.approx(45 / 120)
    # Three examples fill a row but for one position.
    assert [*preview.tasks.packed_rows] == [30, 10, 30, 30]
    assert [*preview.tasks.control_steps] == [15, 5, 15, 15]  # 2 epochs in batches of 4
    totals = preview.totals
    assert (totals.examples, totals.packed_rows, totals.steps) == (120, 40, 5)
    assert totals.tokens == 120 * length and totals.fill == pytest.approx(3 * length / (3 * length + 1))
    assert totals.trained_experimental == 5 * 2 * 3 * length  # max_steps ends it after 10 of 40 rows
    assert totals.trained_controls == 2 * (90 + 30 + 90 + 90) * length
    assert totals.trained == totals.trained_experimental + totals.trained_controls


def test_long_examples_go_to_long_rows(base, ids, tmp_path):
    suite = clean(train=40, test=50)
    for n, row in enumerate(suite["boat"]["train"]):
        row["inputs"] = LONG + LONG if n < 10 else f"the red mill {10 + n}"
    long, short = (2 + ids(suite["boat"]["train"][n]["inputs"]) + ids("word 1") for n in (0, 10))
    assert 3 * short + 1 < long < 8 * short
    tokens = Tokens(share_prefix=False, max_tokens=long, row_length=3 * short + 1, long_row_length=long)
    tuning = Tuning(control=Schedule(epochs=1, batch_rows=4), experimental=Schedule())
    row = row_of(preview_dataset(configured(base, write(tmp_path, suite), tokens, tuning)), "boat")
    assert row.packed_rows == 10 + 30 / 3  # a long one fills its row, three short ones theirs
    long_batch = 4 * (3 * short + 1) // long  # about as many positions as four short rows have
    assert row.control_steps == math.ceil(10 / 4 + 10 / long_batch)


def test_the_table_fits_and_names_keep_both_ends(base, tmp_path):
    suite, names = clean(train=30, test=20), {}
    for n, task in enumerate([*suite]):
        names[f"task{n}_{'very_' * 20}long_name_{n}"] = suite.pop(task)
    preview = preview_dataset(configured(base, write(tmp_path, names, dict.fromkeys(names, "a cluster " * 9 + "end"))))
    preview.tasks[["train", "test", "validation", "duplicates", "distinct_prompts", "mixture", "packed_rows"]] += 29_000
    table, legend, mixture, warnings = preview_text(preview).split("\n\n")
    assert max(len(line) for part in (table, legend, mixture) for line in part.splitlines()) <= 160
    lines = table.splitlines()
    assert len({len(line) for line in lines[1:5] if not line.endswith("!")}) <= 1
    for n, line in enumerate(lines[1:5]):
        assert line.startswith(f"task{n}_very_") and f"long_name_{n} a cluster" in line and "end " in line
    assert warnings.splitlines() == preview.warnings


def test_lengths_are_drawn_at_their_place(base, tmp_path):
    preview = preview_dataset(configured(base, write(tmp_path, clean())))
    lengths = preview.lengths | {"bread": np.full(120, 40)}
    axes = draw_lengths(preview.tasks, lengths, 64).axes[0]
    said = [text.get_text() for text in axes.texts]
    assert {*CLUSTERS, "food", "travel", "max_tokens 64"} <= {*said}
    ridges = [patch.get_data() for patch in axes.patches if patch.get_fill()]
    assert len(ridges) == 4
    for (top, edges, base_line), values in zip(ridges, lengths.values(), strict=True):
        raised = np.flatnonzero(top < base_line)
        held = {int(np.searchsorted(edges, value, "right")) - 1 for value in values}
        assert {*raised.tolist()} == held and edges[0] <= values.min() and values.max() < edges[-1]
    assert axes.lines and any(set(line.get_xdata()) == {64} for line in axes.lines)


def test_the_command_writes_exports_and_refuses(root, base, tmp_path):
    suite = clean()
    suite["boat"]["train"].append(suite["boat"]["train"][0])
    suite["odd/name"] = suite.pop("train")
    suite["odd/name"]["train"][0]["template"] = 2
    good = tmp_path / "good"
    files = {name.replace("/", "-"): splits for name, splits in suite.items()}
    write(good, files)
    entries = {"odd/name": {"cluster": "travel", "file": "odd-name", "held_out": True}}
    entries |= {task: {"cluster": CLUSTERS[task]} for task in ("boat", "bread", "fruit")}
    (good / "tasks.json").write_text(json.dumps(entries))
    bad = write(tmp_path / "bad", clean())
    lines = (bad / "train/boat.jsonl").read_text().splitlines()
    (bad / "train/boat.jsonl").write_text("\n".join([*lines[:6], lines[6][:-3], *lines[7:]]))
    for name, folder in (("good", good), ("bad", bad)):
        config = configured(base, folder)
        (tmp_path / f"{name}.py").write_text(
            "from mossa_jax.config import *\n\n\ndef get_config():\n"
            f"    return Config(base={config.base!r}, tasks={config.tasks!r}, tokens={config.tokens!r}, "
            f"tuning={config.tuning!r})\n"
        )

    def command(name, *flags):
        return ["launch.tasks", f"--config={tmp_path / name}.py", *flags]

    commands = [
        command("good", f"--out={tmp_path / 'out'}", f"--export={tmp_path / 'frozen'}"),
        command("good", f"--config.tasks.folder={tmp_path / 'frozen'}", f"--out={tmp_path / 'again'}"),
        command("good", f"--export={tmp_path / 'frozen'}"),
        command("good", "--config.tokens.template=odd"),
        command("none"),
        command("good", f"--out={tmp_path / 'good.py'}"),
        command("bad"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", HARNESS, json.dumps(commands), str(tmp_path)],
        cwd=root, env=environment(root), capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    said = [[(tmp_path / f"{n}.{stream}").read_text() for stream in (1, 2)] for n in range(len(commands))]
    assert [int(line) for line in done.stdout.split()] == [0, 0, 2, 2, 2, 2, 3], said
    refusals = [error.splitlines()[-1] for _, error in said[2:]]
    assert "Traceback" not in "".join(error for _, error in said)
    named = ("frozen", "config.tokens.template='odd'", "none.py", "--out=", "boat.jsonl")
    for refusal, words in zip(refusals, named, strict=True):
        assert refusal.startswith("error: ") and words in refusal
    assert refusals[-1].startswith(f"error: {bad / 'train/boat.jsonl'}:7: ")

    out, again = tmp_path / "out", tmp_path / "again"
    for folder in (out, again):
        assert (folder / "lengths.png").read_bytes().startswith(b"\x89PNG")
    tables = [pd.read_csv(folder / "tasks.csv") for folder in (out, again)]
    assert [*tables[0].task] == ["odd/name", "boat", "bread", "fruit"] and [*tables[0].held_out] == [True, *[False] * 3]
    assert tables[0].set_index("task").duplicates["boat"] == 1
    pd.testing.assert_frame_equal(*(table.drop(columns="source") for table in tables))
    for name in ("mixture.csv", "warnings.txt"):
        assert (out / name).read_text() == (again / name).read_text() != ""
    written = (out / "warnings.txt").read_text()
    assert "note: some training rows repeat an earlier one: boat (1);" in written and written in said[0][0]
    assert "preview: 4 tasks" in said[0][1]


def test_the_embedded_suite_needs_no_model_folder(tmp_path):
    tokens = Tokens(share_prefix=False, max_tokens=64, row_length=64)
    preview = preview_dataset(Config(tasks=Tasks(only=("misc_odd_word",), held_out=()), tokens=tokens))
    assert [*preview.tasks.task] == ["misc_odd_word"] and preview.tasks.train[0] == 512 and preview.tasks.test[0] == 256
    write_preview(preview, tmp_path / "out")
    assert pd.read_csv(tmp_path / "out/tasks.csv").train[0] == 512
