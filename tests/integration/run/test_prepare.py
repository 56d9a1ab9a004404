"""A run's data: what is recorded, what a change does, and that the suite may lie anywhere."""

import json
import pathlib
import runpy
import shutil

import numpy as np
import pytest
from transformers import AutoTokenizer

import mossa_jax as mossa
from mossa_jax.config import Tasks
from mossa_jax.errors import Refusal
from mossa_jax.llama.files.peft import load_adapter
from mossa_jax.processes.facts import first_difference
from mossa_jax.processes.stop import Stop
from mossa_jax.run import pipeline, prepare
from mossa_jax.tasks import load_suite
from mossa_jax.tasks.folder import write_folder
from tests.support.run_folders import edit_about, part_of, rewrite


def run_in(config, workdir):
    return pipeline.Run(config, pipeline.open_run(config, str(workdir)), Stop())


@pytest.fixture
def again(tiny_config, tiny_run, tasks_folder, tmp_path):
    """A run on copies of a finished run and of its tasks, claimed."""
    config = runpy.run_path(str(tiny_config))["get_config"]()
    workdir = shutil.copytree(tiny_run[1], tmp_path / "run", ignore=shutil.ignore_patterns(".lock", ".holder"))
    config.tasks.folder = str(shutil.copytree(tasks_folder, tmp_path / "tasks"))
    rewrite(workdir / "config.json", lambda record: record["tasks"].update(folder=config.tasks.folder))
    run = run_in(config, workdir)
    yield run
    run.folder.close()


def edit(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_the_record_counts_rows_and_names_the_template(tiny_run, tiny):
    config, workdir = tiny_run
    tasks_folder = pathlib.Path(config.tasks.folder)
    record = json.loads((workdir / "data.json").read_text())
    assert record["template"]["name"] == "none" and record["template"]["text"] == "{content}"
    assert record["missing"] == [] and list(record["tasks"]) == ["last_word", "copy_first", "count_words"]
    for name, task in record["tasks"].items():
        assert task["source"] == str(tasks_folder), name
        for split, rows in (("train", 24), ("test", 12)):
            assert task[split]["rows"] == rows and task[split]["bad_rows"] == 0
    # The longest rows are cut; their ids are counted here by the tokenizer alone.
    library = AutoTokenizer.from_pretrained(str(tiny.folder))

    def size(text):
        return len(library(text, add_special_tokens=False).input_ids)

    for name, task in record["tasks"].items():
        for split in ("train", "test"):
            lines = (tasks_folder / split / f"{name}.jsonl").read_text().splitlines()
            rows = [json.loads(line) for line in lines]
            answer = (lambda row: size(row["targets"]) + 1) if split == "train" else (lambda row: 0)
            assert task[split]["cut"] == sum(1 + size(row["inputs"]) + answer(row) > 48 for row in rows)
    digests = [
        json.loads((workdir / f"adapters/{name}/mossa.json").read_text())["template"]
        for name in ("tuned", *record["tasks"])
    ]
    assert digests == [record["template"]] * 4
    assert json.loads((workdir / "results/findings.json").read_text())["template"] == record["template"]


def test_equal_test_prompts_count_once(again, tiny_config, tmp_path):
    config = runpy.run_path(str(tiny_config))["get_config"]()
    config.tasks.folder = str(shutil.copytree(again.config.tasks.folder, tmp_path / "twice"))
    path = tmp_path / "twice/test/copy_first.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, *lines[:5]]))
    run = run_in(config, tmp_path / "new")
    try:
        record = prepare.prepare(run)
        prompts = {task.name: run.test_prompts(task) for task in run.suite.tasks}
    finally:
        run.folder.close()
    assert [record["tasks"][name]["test"][key] for name in prompts for key in ("rows", "distinct")] == [
        12, 12, 17, 12, 12, 12,
    ]  # fmt: skip
    wanted = again.encoded(next(task for task in again.suite.tasks if task.name == "copy_first"), "test").examples
    # The draw of more rows has another order.
    ids = sorted(prompt.tolist() for prompt in prompts["copy_first"].ids)
    assert ids == sorted(wanted.prompt(at).tolist() for at in range(12)) and len(wanted) == 12


def test_test_rows_are_a_draw_with_items_and_templates(again, tiny_config, tmp_path):
    config = runpy.run_path(str(tiny_config))["get_config"]()
    config.tasks.folder = str(shutil.copytree(again.config.tasks.folder, tmp_path / "items"))
    config.tasks.max_test = 9
    path = tmp_path / "items/test/copy_first.jsonl"
    rows = [json.loads(line) | {"item": n // 6, "template": n % 3} for n, line in enumerate(path.open())]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = run_in(config, tmp_path / "new")
    try:
        record = prepare.prepare(run)["tasks"]["copy_first"]["test"]
        task = next(task for task in run.suite.tasks if task.name == "copy_first")
        encoded, prompts = run.encoded(task, "test"), run.test_prompts(task)
        examples, few = run.test_examples(task, 99), run.test_examples(task, 4)
    finally:
        run.folder.close()
    texts = [row["inputs"] for row in rows]
    places = [texts.index(row.inputs) for row in examples]
    assert len(set(places)) == 9 and places != sorted(places) and few == examples[:4]
    # Examples and encoded rows are the same, in the same order.
    assert [row.template for row in examples] == encoded.templates.tolist() == prompts.templates.tolist()
    ids = run.tokenizer.prompts([row.inputs for row in examples])
    short = [n for n, prompt in enumerate(ids) if not encoded.cut[n]]
    assert short and all(encoded.examples.prompt(n).tolist() == list(ids[n]) for n in short)
    assert (prompts.items[:, None] == prompts.items).tolist() == [[a // 6 == b // 6 for b in places] for a in places]
    largest = max(sum(place < 6 for place in places), sum(place >= 6 for place in places))
    assert (record["items"], record["item_source"], record["templates"]) == (2, "column", 3)
    assert record["largest_item"] == largest


def test_processes_that_read_other_rows_are_refused(again, monkeypatch):
    """The facts that processes compare name the task and the split of a row that differs."""
    told = []
    monkeypatch.setattr(prepare.agreement, "same", lambda subject, facts, way_out: told.append(dict(facts)))
    prepare.prepare(again)
    with open(f"{again.config.tasks.folder}/test/copy_first.jsonl", "a") as lines:
        lines.write('{"inputs": "one more", "targets": "one"}\n')
    monkeypatch.setattr(prepare, "read_sound_record", lambda folder: (None, ""))
    prepare.prepare(pipeline.Run(again.config, again.folder, Stop()))
    ours, theirs = told
    reason = first_difference("process 1 on host", ours, theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == ["task copy_first, test"]
    assert "process 1 on host has task copy_first, test=" in reason and "template" in " ".join(ours)


def test_rows_that_changed_since_the_run_began_are_refused(again):
    prepare.prepare(again)  # unchanged rows are accepted
    with open(f"{again.config.tasks.folder}/test/copy_first.jsonl", "a") as lines:
        lines.write('{"inputs": "one more", "targets": "one"}\n')
    changed = pipeline.Run(again.config, again.folder, Stop())
    for stage in (pipeline.tune, pipeline.compare):
        with pytest.raises(Refusal, match=r"copy_first.*test rows.*changed") as caught:
            stage(changed)
        assert caught.value.code == 3


def test_adapters_of_another_template_are_not_compared(again, tiny):
    folder = again.folder.path / "adapters/copy_first"
    edit_about(folder, lambda about: about["template"].update(name="llama2", digest="other"))
    part_of(again.folder.path, "cka", "copy_first").unlink()
    with pytest.raises(Refusal, match=r"copy_first.*tuned with template 'llama2'") as caught:
        pipeline.compare(again)
    assert caught.value.code == 3
    for call in (
        lambda: mossa.compare(str(tiny.folder), "pretrained", str(folder), ["a", "b", "c", "d"]),
        lambda: mossa.layer_states(mossa.load_model(str(tiny.folder)), ["a"], adapter=str(folder)),
    ):
        with pytest.raises(Refusal, match="llama2") as caught:
            call()
        assert caught.value.code == 3
    edit_about(folder, lambda about: about.pop("template"))  # an adapter whose template is unknown is accepted
    mossa.compare(str(tiny.folder), "pretrained", str(folder), ["a", "b", "c", "d"])


def test_a_run_folder_of_another_template_is_refused(again):
    rewrite(again.folder.path / "data.json", lambda record: record["template"].update(digest="other"))
    with pytest.raises(Refusal, match="another version of template 'none'") as caught:
        prepare.prepare(again)
    assert caught.value.code == 3


@pytest.mark.slow
def test_the_miniature_from_a_folder_gives_the_same_table(tiny_config, tmp_path):
    chosen = ("sentiment_review", "paraphrase_synonym", "misc_odd_word")
    tables = []
    write_folder(load_suite(Tasks()), tmp_path / "exported")
    for number, tasks in enumerate((Tasks(), Tasks(suite="folder", folder=str(tmp_path / "exported")))):
        config = runpy.run_path(str(tiny_config))["get_config"]()
        config.tasks = tasks
        config.tasks.only, config.tasks.max_train, config.tasks.max_test = chosen, 24, 12
        config.tuning.control.max_steps = config.tuning.experimental.max_steps = 3
        run = run_in(config, tmp_path / f"run{number}")
        try:
            pipeline.run_all(run)
        finally:
            run.folder.close()
        tables.append((run.folder.path / "results/cka.csv").read_bytes())
        assert len({line.split(b",")[2] for line in tables[-1].splitlines()[1:]}) == 3
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_further_seeds_are_models_of_their_own(tiny_config, tmp_path):
    config = runpy.run_path(str(tiny_config))["get_config"]()
    config.tasks.only = ("copy_first", "count_words")
    config.tuning.seeds, config.tuning.control_seeds, config.tuning.seeded = 2, 3, ("numbers",)
    config.tuning.twins = ()
    config.tuning.control.max_steps = config.tuning.experimental.max_steps = 2
    config.tuning.score_prompts = 0
    run = run_in(config, tmp_path / "run")
    try:
        pipeline.tune(run)
        names = ["copy_first", "count_words", "count_words.seed1", "count_words.seed2", "tuned", "tuned.seed1"]
        assert sorted(path.name for path in (tmp_path / "run/adapters").iterdir()) == names
        about = {name: json.loads((run.adapter_folder(name) / "mossa.json").read_text()) for name in names}
        assert len({tuple(each["seed"]) for each in about.values()}) == 6
        assert about["count_words.seed2"]["tasks"] == ["count_words"] and about["tuned.seed1"]["rows"] == 48
        weights = {(run.adapter_folder(name) / "adapter_model.safetensors").read_bytes() for name in names}
        assert len(weights) == 6
        # One that is gone is made again, with the same weights.
        lost = run.adapter_folder("count_words.seed1")
        before = (lost / "adapter_model.safetensors").read_bytes()
        shutil.rmtree(lost)
        pipeline.tune(pipeline.Run(config, run.folder, Stop()))
        again = load_adapter(lost, run.architecture)
        shutil.rmtree(lost)
        lost.mkdir()
        (lost / "adapter_model.safetensors").write_bytes(before)
        (lost / "adapter_config.json").write_bytes((run.adapter_folder("tuned") / "adapter_config.json").read_bytes())
        wanted = load_adapter(lost, run.architecture)
        assert all(np.allclose(again[t][n], wanted[t][n], atol=1e-6) for t in wanted for n in ("a", "b"))
        config.tuning.seeded = ("nope",)
        with pytest.raises(Refusal, match=r"config\.tuning\.seeded") as caught:
            pipeline.tune(run)
        assert caught.value.code == 2
    finally:
        run.folder.close()
