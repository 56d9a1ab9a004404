"""A task folder as people have it: which files are tasks, under which names, and what is left out and said."""

import gzip
import json
import os
import unicodedata

import pytest

from mossa_jax.config import Columns, Tasks
from mossa_jax.errors import Refusal
from mossa_jax.tasks.folder import folder_suite
from mossa_jax.tasks.left_out import columns_beside
from mossa_jax.tasks.natural_instructions import natural_instructions_suite

ROW = b'{"inputs": "in", "targets": "out"}\n'


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.jsonl").write_bytes(ROW)
    return tmp_path


def read(folder):
    return folder_suite(Tasks(suite="folder", folder=str(folder)))


def left(folder):
    return {one.kind: list(one.names) for one in read(folder).left_out}


def refused(folder):
    with pytest.raises(Refusal) as caught:
        [row for task in read(folder).tasks for row in task.rows("train")]
    assert caught.value.code == 3 and "\n" not in str(caught.value)
    return str(caught.value)


def both(folder, name, content=ROW):
    for split in ("train", "test"):
        (folder / split / name).write_bytes(content)


def test_packed_files_and_endings_in_capitals_are_tasks_too(folder):
    both(folder, "b.jsonl.gz", gzip.compress(ROW * 3))
    both(folder, "C.JSONL", ROW * 2)
    suite = read(folder)
    assert {task.name: len(task.examples("train")) for task in suite.tasks} == {"C": 2, "a": 1, "b": 3}
    assert suite.left_out == ()


def test_what_is_no_task_is_named(folder):
    for name in ("d.json", "e.csv", ".hidden.jsonl", "._a.jsonl", "a.jsonl~", "#a.jsonl#", "Thumbs.db"):
        both(folder, name)
    (folder / "test/lone.jsonl").write_bytes(ROW)
    for split in ("validation", "dev", "images"):
        (folder / split).mkdir()
    (folder / "validation/a.jsonl").write_bytes(ROW)
    (folder / "validation/b.jsonl").write_bytes(ROW)
    (folder / "dev/a.jsonl").write_bytes(ROW)
    (folder / "more.tsv").write_text("x")
    (folder / "README.md").write_text("words")
    (folder / "tasks.json").write_text('{"a": {"cluster": "c", "heldout": true}}')
    assert left(folder) == {
        "other_files": ["train/d.json", "train/e.csv", "test/d.json", "test/e.csv", "dev/", "more.tsv"],
        "lone_files": ["validation/b.jsonl", "test/lone.jsonl"],
        "unknown_fields": ["heldout"],
        "validation_files": ["a"],
    }


def test_fields_that_are_not_read_are_named_and_slips_of_those_that_are(folder):
    both(folder, "a.jsonl", b'{"inputs": "i", "targets": "t", "items": "x", "lang": "de", "task": "a"}\n')
    assert left(folder) == {"misspelt_columns": ["items (for item)"], "unread_columns": ["lang"]}
    assert columns_beside(["inputs", "targets", "items", "item"], Columns()) == (["items"], [])


@pytest.mark.parametrize(("on_disk", "in_table"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_a_composed_and_a_decomposed_name_are_one(folder, on_disk, in_table):
    name = "résumé"
    both(folder, unicodedata.normalize(on_disk, name) + ".jsonl")
    (folder / "tasks.json").write_text(json.dumps({unicodedata.normalize(in_table, name): {"cluster": "c"}}))
    assert [task.name for task in read(folder).tasks] == [unicodedata.normalize("NFC", name), "a"]
    for form in ("NFC", "NFD"):
        both(folder, unicodedata.normalize(form, name) + ".jsonl")
    assert "has two files of one split" in refused(folder)


def test_a_task_table_is_read_with_its_mark_and_refused_for_what_it_is(folder):
    path = folder / "tasks.json"
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_text('{"a":\r\n {"cluster": "c"}}', encoding=encoding)
        assert read(folder).tasks[0].cluster == "c"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    assert "Git LFS pointer" in refused(folder)
    path.write_text('{"A": {}}')
    assert "did you mean a?" in refused(folder)
    path.write_text('{"a": [1]}')
    assert "'a' is [1], no object" in refused(folder)


def test_what_is_no_file_of_rows_is_named_and_never_waited_for(folder):
    path = folder / "train/a.jsonl"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n")
    assert "Git LFS pointer" in refused(folder)
    path.unlink()
    os.mkfifo(path)
    assert "is a named pipe" in refused(folder)
    path.unlink()
    path.mkdir()
    assert "is a folder" in refused(folder)
    path.rmdir()
    path.symlink_to(path)
    assert "Too many levels of symbolic links" in refused(folder)
    path.unlink()
    both(folder, "b.jsonl.gz", gzip.compress(ROW)[:-9])
    both(folder, "a.jsonl")
    assert "b.jsonl.gz cannot be read" in refused(folder)


def test_a_name_that_is_not_utf_8_is_named(folder):
    with open(os.fsencode(folder / "train") + b"/\xff.jsonl", "wb") as file:
        file.write(ROW)
    assert "name is not UTF-8" in refused(folder) and refused(folder).encode()
    os.rename(os.fsencode(folder / "train") + b"/\xff.jsonl", os.fsencode(folder / "train") + b"/\xff.csv")
    assert left(folder)["other_files"] == ["train/'\\udcff.csv'"]


def test_a_folder_of_other_files_says_what_it_holds(folder):
    (folder / "train/a.jsonl").rename(folder / "train/a.json")
    assert "holds no .jsonl or .parquet file, but a.json;" in refused(folder)


def test_super_natural_instructions_passes_hidden_files_over_and_names_others(tmp_path):
    task = {"Definition": ["d"], "Instances": [{"input": "i", "output": ["o"]}]}
    for name in ("task1_x.json", "._task1_x.json", "other.json"):
        (tmp_path / name).write_text(json.dumps(task), encoding="utf-8-sig")
    suite = natural_instructions_suite(Tasks(suite="natural_instructions", folder=str(tmp_path)))
    assert [task.name for task in suite.tasks] == ["task1_x"] and suite.left_out[0].names == ("other.json",)
