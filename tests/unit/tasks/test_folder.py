"""Suites in folders: what is read, what is refused, what is written; and the configuration's choice of tasks."""

import errno
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mossa_jax import tasks as tasks_module
from mossa_jax.config import Columns, Tasks
from mossa_jax.errors import Refusal
from mossa_jax.tasks import load_suite
from mossa_jax.tasks.folder import folder_suite, write_folder
from mossa_jax.tasks.suite import SPLITS, Example, Suite, Task


def write(folder, split, task, rows):
    path = folder / split / f"{task}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    for task in ("b", "a", "c"):
        for split in ("train", "test"):
            write(tmp_path, split, task, [{"inputs": f"{task} {split} {n}", "targets": f"{n}"} for n in range(3)])
    return tmp_path


def read(folder, **fields):
    return folder_suite(Tasks(suite="folder", folder=str(folder), **fields))


def choose(folder, **fields):
    return load_suite(Tasks(suite="folder", folder=str(folder), **fields))


def refused(call, *arguments, code=3, **fields) -> str:
    with pytest.raises(Refusal) as caught:
        call(*arguments, **fields)
    assert caught.value.code == code
    return str(caught.value)


def test_rows_come_in_file_order_and_tasks_by_name(folder):
    write(folder, "train", "a-b", [{"inputs": "x", "targets": "y"}])
    write(folder, "test", "a-b", [{"inputs": "x", "targets": "y"}])
    (folder / "train/.a.jsonl").write_text("left by an editor")
    (folder / "train/notes.txt").write_text("no rows")
    suite = read(folder)
    assert [task.name for task in suite.tasks] == ["a", "a-b", "b", "c"]
    assert {task.cluster for task in suite.tasks} == {"tasks"} and suite.held_out == ()
    assert {task.source for task in suite.tasks} == {str(folder)}
    rows = suite.tasks[2].examples("test")
    assert [(row.inputs, row.targets, row.template) for row in rows] == [(f"b test {n}", f"{n}", -1) for n in range(3)]
    assert suite.tasks[0].examples("validation") == []
    write(folder, "validation", "a", [{"inputs": "x", "targets": "y", "template": 4}])
    assert read(folder).tasks[0].examples("validation")[0].template == 4
    with pytest.raises(ValueError, match="dev"):
        suite.tasks[0].examples("dev")


def test_tasks_json_gives_clusters_order_and_held_out_tasks(folder):
    table = {"c": {"cluster": "two"}, "a": {"cluster": "one", "note": 1, "held_out": True}}
    (folder / "tasks.json").write_text(json.dumps(table))
    suite = read(folder)
    assert [(task.name, task.cluster) for task in suite.tasks] == [("c", "two"), ("a", "one"), ("b", "tasks")]
    assert {name: [t.name for t in tasks] for name, tasks in suite.clusters().items()} == {
        "two": ["c"], "one": ["a"], "tasks": ["b"],
    }  # fmt: skip
    assert suite.held_out == ("a",) and choose(folder).held_out == ("a",)
    (folder / "tasks.json").write_text(json.dumps({"z": {"cluster": "one"}}))
    assert "'z'" in refused(read, folder)
    for text in ("{", "[1]", '{"a": 3}', '{"a": {"held_out": 1}}', '{"a": {"cluster": 3}}', '{"\\ud800": {}}', "\xff"):
        (folder / "tasks.json").write_bytes(text.encode("latin-1"))
        assert "tasks.json" in refused(read, folder)


def test_licences_are_those_that_the_source_states(folder, tmp_path):
    table = {"a": {"licence": "CC BY 4.0"}, "b": {"license": "MIT"}, "c": {"licence": ""}}
    (folder / "tasks.json").write_text(json.dumps(table))
    suite = read(folder)
    assert {task.name: task.licence for task in suite.tasks} == {"a": "CC BY 4.0", "b": "MIT", "c": ""}
    write_folder(suite, tmp_path / "again")
    assert [task.licence for task in read(tmp_path / "again").tasks] == ["CC BY 4.0", "MIT", ""]
    (folder / "tasks.json").write_text('{"a": {"licence": 4}}')
    assert "'licence'" in refused(read, folder)


def test_a_task_may_have_a_name_that_is_no_file_name(folder):
    (folder / "tasks.json").write_text(json.dumps({"the/first: ä": {"file": "c"}}), encoding="utf-8")
    suite = read(folder)
    assert [task.name for task in suite.tasks] == ["the/first: ä", "a", "b"]
    assert suite.tasks[0].examples("train")[0].inputs == "c train 0"
    (folder / "tasks.json").write_text(json.dumps({"x": {"file": "c"}, "y": {"file": "c"}}))
    assert "'c'" in refused(read, folder)
    (folder / "tasks.json").write_text(json.dumps({"x": {"file": "../test/c"}}))
    assert "'x'" in refused(read, folder)
    (folder / "tasks.json").write_text(json.dumps({"a": {"file": "c"}}))
    assert "2 tasks called 'a'" in refused(choose, folder)


def test_parquet_and_jsonl_stand_side_by_side(folder):
    pq.write_table(pa.table({"inputs": ["p"], "targets": ["q"]}), folder / "train/d.parquet")
    write(folder, "test", "d", [{"inputs": "r", "targets": "s"}])
    task = read(folder).tasks[3]
    assert task.examples("train") == [Example("p", "q")] and task.examples("test") == [Example("r", "s")]
    pq.write_table(pa.table({"inputs": ["p"], "targets": ["q"]}), folder / "test/d.parquet")
    message = refused(read, folder)
    assert str(folder / "test/d.jsonl") in message and str(folder / "test/d.parquet") in message


def test_fields_have_the_names_that_the_configuration_gives_them(folder):
    for split in ("train", "test"):
        write(folder, split, "a", [{"question": split, "answer": "y"}])
    suite = read(folder, columns=Columns(inputs="question", targets="answer"))
    assert suite.tasks[0].examples("train") == [Example("train", "y")]
    assert "'question'" in refused(suite.tasks[1].examples, "train")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"inputs": "a", "targets": ', "JSON"),
        (b'{"inputs": "a\xff", "targets": "b"}', "UTF-8"),
        (b'["a", "b"]', "list"),
        (b'{"inputs": "a"}', "'targets'"),
        (b'{"inputs": "a", "targets": 3}', "'targets'"),
        (b'{"inputs": "  ", "targets": "b"}', "'inputs'"),
        (b'{"inputs": null, "targets": "b"}', "'inputs'"),
    ],
)
def test_a_broken_line_is_named(folder, line, words):
    path = folder / "train/b.jsonl"
    path.write_bytes(path.read_bytes() + b"\n" + line + b"\n")  # three rows, a blank line, the broken one
    message = refused(read(folder).tasks[1].examples, "train")
    assert message.startswith(f"{path}:5:") and words in message


def test_a_folder_that_is_no_suite_is_refused(folder, tmp_path_factory):
    path = write(folder, "test", "a", [])
    assert refused(read(folder).tasks[0].examples, "test").startswith(f"{path}:1:")
    write(folder, "train", "a", [{"inputs": "x", "targets": "y", "template": "first"}])
    assert "'first'" in refused(read(folder).tasks[0].examples, "train")
    (folder / "test/c.jsonl").unlink()
    assert "test/c.jsonl" in refused(read, folder)
    assert "does not exist" in refused(read, folder / "nowhere")
    empty = tmp_path_factory.mktemp("empty")
    for split in ("train", "test"):
        (empty / split).mkdir()
    assert "no .jsonl" in refused(read, empty)
    (empty / "test").rmdir()
    assert str(empty / "test") in refused(read, empty)


def test_bad_rows_are_left_out_and_counted_on_request(folder):
    row, bad = {"inputs": "x", "targets": "y"}, [{"inputs": "x", "targets": " "}, {"inputs": 3, "targets": "y"}]
    path = write(folder, "train", "a", [row, *bad, row])
    path.write_bytes(path.read_bytes() + b'{"inputs": "x"\n\xff\n{"inputs": "\\ud800", "targets": "y"}\n')
    assert f"{path}:2" in refused(read(folder).tasks[0].examples, "train")
    task = read(folder, allow_bad_rows=True).tasks[0]
    assert [row.inputs for row in task.examples("train")] == ["x", "x"]
    assert task.bad_rows == {"train": 5}
    assert task.examples("test") and task.bad_rows == {"train": 5}


def test_the_configuration_chooses_tasks(folder):
    assert choose(folder).held_out == ()
    suite = choose(folder, only=("c", "a"), held_out=("b", "a"))
    assert [task.name for task in suite.tasks] == ["a", "c"] and suite.held_out == ("a",)
    for field in ("only", "held_out"):
        message = refused(choose, folder, **{field: ("a", "nope")}, code=2)
        assert "'nope'" in message and f"tasks.{field}" in message and "a, b, c, tasks" in message
    assert "every task" in refused(choose, folder, only=("a",), held_out=("a",), code=2)


def test_clusters_are_chosen_by_name(folder):
    (folder / "tasks.json").write_text(json.dumps({"c": {"cluster": "two"}, "a": {"cluster": "two", "held_out": True}}))
    assert choose(folder, held_out=("two",)).held_out == ("c", "a")
    suite = choose(folder, only=("two",))
    assert [task.name for task in suite.tasks] == ["c", "a"] and suite.held_out == ("a",)
    suite = choose(folder, only=("b", "c"))
    assert [task.name for task in suite.tasks] == ["c", "b"] and suite.held_out == ()


def test_an_unknown_name_is_refused_with_the_closest_ones(folder):
    for n in range(30):
        for split in ("train", "test"):
            write(folder, split, f"task_{n:02}", [{"inputs": "x", "targets": "y"}])
    message = refused(choose, folder, only=("tsk_27",), code=2)
    listed = message.partition("there are ")[2]
    assert listed.startswith("task_27, ") and listed.count(",") == 11 and listed.endswith(" and 22 more")


@pytest.mark.parametrize("name", ["tuned", "pretrained", "base"])
def test_a_task_cannot_have_the_name_of_a_model(folder, name):
    for split in ("train", "test"):
        write(folder, split, name, [{"inputs": "x", "targets": "y"}])
    assert repr(name) in refused(choose, folder)


def test_two_names_that_differ_in_their_unicode_form_alone_are_refused():
    tasks = tuple(Task(name, "c", lambda split: ()) for name in ("caf\u00e9", "cafe\u0301"))
    message = refused(tasks_module._with_choice, Suite("own", tasks), Tasks())
    assert "'caf\\xe9'" in message and "'cafe\\u0301'" in message


ROWS = {
    "plain": [Example("in\u2028one", "é\r\n", 0), Example("two", "😀", -1), Example("three", "3", 12)],
    "with/slash": [Example("x", "y")],
    "ünïcode name": [Example("日本", "q")],
    "a.b": [Example("p", "q", 3)],
}


def in_memory(rows=ROWS) -> Suite:
    def task(name, cluster):
        return Task(name, cluster, lambda split: rows[name] if split != "validation" or name == "plain" else ())

    clusters = ("two", "one", "two", "the third: ä")
    return Suite("memory", tuple(task(*pair) for pair in zip(rows, clusters, strict=True)), ("ünïcode name", "plain"))


def contents(suite):
    return [(task.name, task.cluster, [task.examples(split) for split in SPLITS]) for task in suite.tasks]


def test_a_suite_that_is_written_reads_back_the_same(tmp_path):
    suite = in_memory()
    write_folder(suite, tmp_path / "new/suite")
    again = read(tmp_path / "new/suite")
    assert contents(again) == contents(suite)
    assert sorted(again.held_out) == sorted(suite.held_out)
    path = tmp_path / "new/suite/train/plain.jsonl"
    lines = [json.loads(line) for line in path.read_bytes().decode().split("\n")[:-1]]
    assert lines == [
        {"inputs": "in\u2028one", "targets": "é\r\n", "task": "plain", "template": 0},
        {"inputs": "two", "targets": "😀", "task": "plain"},
        {"inputs": "three", "targets": "3", "task": "plain", "template": 12},
    ]
    assert sorted(path.name for path in (tmp_path / "new/suite/validation").iterdir()) == ["plain.jsonl"]
    write_folder(again, tmp_path / "again")
    assert contents(read(tmp_path / "again")) == contents(suite)


def test_only_the_first_rows_are_written_on_request(tmp_path):
    write_folder(in_memory(), tmp_path / "suite", max_rows=2)
    assert [row.inputs for row in read(tmp_path / "suite").tasks[0].examples("test")] == ["in\u2028one", "two"]


def test_a_folder_is_written_completely_or_not_at_all(tmp_path, monkeypatch):
    def broken(split):
        yield Example("x", "y")
        raise Refusal(3, "bad data")

    suite = Suite("s", (*in_memory().tasks, Task("last", "one", broken)))
    assert refused(write_folder, suite, tmp_path / "suite") == "bad data"
    assert list(tmp_path.iterdir()) == []

    def full(*arguments, **fields):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("json.dumps", full)
    assert "space" in refused(write_folder, in_memory(), tmp_path / "suite", code=6)
    assert list(tmp_path.iterdir()) == []


def test_no_existing_folder_is_overwritten(tmp_path):
    (tmp_path / "mine").mkdir()
    write_folder(in_memory(), tmp_path / "mine")  # empty
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json*")}
    assert str(tmp_path / "mine") in refused(write_folder, in_memory(), tmp_path / "mine", code=2)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json*")} == before
    file = pathlib.Path(tmp_path / "file")
    file.write_text("text")
    assert str(file) in refused(write_folder, in_memory(), file, code=2)
    assert file.read_text() == "text"
