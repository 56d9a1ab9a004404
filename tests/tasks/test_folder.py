"""Suites in folders: what is read, and what is refused with file and line."""

import json

import pytest

from mossa_jax.config import Tasks
from mossa_jax.rundir import Refusal
from mossa_jax.tasks import load_suite
from mossa_jax.tasks.folder import folder_suite, read_rows


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


def refused(call, *arguments, code=3) -> str:
    with pytest.raises(Refusal) as caught:
        call(*arguments)
    assert caught.value.code == code
    return str(caught.value)


def test_rows_in_file_order_and_tasks_by_name(folder):
    suite = folder_suite(folder)
    assert [task.name for task in suite.tasks] == ["a", "b", "c"]
    assert {task.cluster for task in suite.tasks} == {"tasks"} and suite.held_out == ()
    rows = suite.tasks[1].examples("test")
    assert [(row.inputs, row.targets, row.template) for row in rows] == [(f"b test {n}", f"{n}", -1) for n in range(3)]
    assert suite.tasks[0].examples("validation") == ()
    write(folder, "validation", "a", [{"inputs": "x", "targets": "y", "template": 4}])
    assert folder_suite(folder).tasks[0].examples("validation")[0].template == 4
    with pytest.raises(ValueError, match="dev"):
        suite.tasks[0].examples("dev")


def test_clusters_and_order_of_tasks_json(folder):
    (folder / "tasks.json").write_text(json.dumps({"c": {"cluster": "two"}, "a": {"cluster": "one", "note": 1}}))
    suite = folder_suite(folder)
    assert [(task.name, task.cluster) for task in suite.tasks] == [("c", "two"), ("a", "one"), ("b", "tasks")]
    assert {name: [t.name for t in tasks] for name, tasks in suite.clusters().items()} == {
        "two": ["c"], "one": ["a"], "tasks": ["b"],
    }  # fmt: skip
    (folder / "tasks.json").write_text(json.dumps({"z": {"cluster": "one"}}))
    assert "'z'" in refused(folder_suite, folder)
    for text in ("{", "[1]", '{"a": 3}'):
        (folder / "tasks.json").write_text(text)
        assert "tasks.json" in refused(folder_suite, folder)


def test_blank_lines_marks_and_carriage_returns_pass(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"inputs": "a\xe2\x80\xa8b"}\r\n\r\n  \n{"inputs": "c", "more": 1}')
    assert [row["inputs"] for row in read_rows(path, ("inputs",))[0]] == ["a\u2028b", "c"]


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
    message = refused(folder_suite(folder).tasks[1].examples, "train")
    assert f"{path}:5:" in message and words in message


def test_what_is_no_suite(folder, tmp_path_factory):
    write(folder, "test", "a", [])
    assert "'a'" in refused(folder_suite(folder).tasks[0].examples, "test")
    write(folder, "train", "a", [{"inputs": "x", "targets": "y", "template": "first"}])
    assert "'first'" in refused(folder_suite(folder).tasks[0].examples, "train")
    (folder / "test/c.jsonl").unlink()
    assert "c.jsonl" in refused(folder_suite, folder)
    assert "does not exist" in refused(folder_suite, folder / "nowhere")
    empty = tmp_path_factory.mktemp("empty")
    for split in ("train", "test"):
        (empty / split).mkdir()
    assert "no .jsonl" in refused(folder_suite, empty)
    (empty / "test").rmdir()
    assert str(empty / "test") in refused(folder_suite, empty)
    assert "inputs" in refused(read_rows, empty / "none.jsonl", ("inputs",))


def test_the_configs_choice_of_tasks(folder):
    choose = lambda **fields: load_suite(Tasks(suite="folder", folder=str(folder), **fields))  # noqa: E731
    assert choose().held_out == ()
    suite = choose(only=("c", "a"), held_out=("a", "b"))
    assert [task.name for task in suite.tasks] == ["a", "c"] and suite.held_out == ("a",)
    for field in ("only", "held_out"):
        message = refused(lambda field=field: choose(**{field: ("a", "nope")}), code=2)
        assert "'nope'" in message and f"tasks.{field}" in message
    assert "every task" in refused(lambda: choose(only=("a",), held_out=("a",)), code=2)


def test_bad_rows_are_left_out_and_counted_on_request(folder):
    good, bad = {"inputs": "x", "targets": "y"}, [{"inputs": "x", "targets": " "}, {"inputs": 3, "targets": "y"}]
    path = write(folder, "train", "a", [good, *bad, good])
    path.write_bytes(path.read_bytes() + b'{"inputs": "x"\n\xff\n{"inputs": "\\ud800", "targets": "y"}\n')
    assert f"{path}:2" in refused(folder_suite(folder).tasks[0].examples, "train")
    task = folder_suite(folder, allow_bad_rows=True).tasks[0]
    assert [row.inputs for row in task.examples("train")] == ["x", "x"]
    assert task.bad_rows == {"train": 5}
