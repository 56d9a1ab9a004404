"""A data set as a suite: tasks, clusters and splits of its rows, from folders of the hub's layout and from a hub."""

import io
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mossa_jax.config import Columns, Tasks
from mossa_jax.errors import Refusal
from mossa_jax.tasks import load_suite
from mossa_jax.tasks.suite import Example, split_of
from tests.support.hub_server import Answers, HubServer, Process, commit_of


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """The library keeps its own copies of data sets: here, for one test."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    datasets.disable_progress_bars()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "flowers"


def load(folder, **fields):
    return load_suite(Tasks(suite="hub", sources=(str(folder),), **fields))


def refused(call, *arguments, code=3, **fields) -> str:
    with pytest.raises(Refusal) as caught:
        call(*arguments, **fields)
    assert caught.value.code == code
    return str(caught.value)


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_parquet(path, rows, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, **options)


def rows_of(numbers, split):
    """Rows of three tasks in two clusters, all mixed."""
    tasks, clusters = ("roses", "asters", "lilies of the é"), ("thorny", "soft", "soft")
    return [
        {
            "inputs": f"{split} é {n}", "targets": f"answer {n}", "template": n % 10, "more": [n],
            "task": tasks[n * n % 7 % 3], "cluster": clusters[n * n % 7 % 3],
        }
        for n in numbers
    ]  # fmt: skip


def examples(rows, task):
    return [Example(row["inputs"], row["targets"], row.get("template", -1)) for row in rows if row["task"] == task]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_rows_are_grouped_by_their_task(folder, ending):
    splits = {"train": rows_of(range(700), "train"), "test": rows_of(range(400), "test")}
    write = {"jsonl": write_jsonl, "parquet": write_parquet}[ending]
    for split, rows in splits.items():
        for part in range(2):  # several files a split
            write(folder / f"data/{split}-{part}.{ending}", rows[:301] if part == 0 else rows[301:])
    suite = load(folder)
    assert suite.name == "flowers" and suite.held_out == ()
    # In the order of their first rows: n = 0, 1 and 3 are tasks 0, 1 and 2.
    assert [(task.name, task.cluster) for task in suite.tasks] == [
        ("roses", "thorny"), ("asters", "soft"), ("lilies of the é", "soft"),
    ]  # fmt: skip
    assert {task.source for task in suite.tasks} == {str(folder)}
    for task in suite.tasks:
        for split, rows in splits.items():
            assert len(examples(rows, task.name)) > 10
            assert task.examples(split) == examples(rows, task.name)
        assert task.examples("validation") == []
    assert load(folder, only=("soft",)).tasks[0].name == "asters"


def test_without_a_task_column_all_rows_are_one_task(folder):
    rows = [{"inputs": f"in {n}", "targets": f"out {n}"} for n in range(600)]
    write_parquet(folder / "train.parquet", rows, row_group_size=100)
    write_parquet(folder / "validation.parquet", rows[:3])
    write_parquet(folder / "test.parquet", rows[:7])
    (task,) = load(folder).tasks
    assert (task.name, task.cluster) == ("flowers", "tasks")
    for split, count in (("train", 600), ("validation", 3), ("test", 7)):
        assert task.examples(split) == [Example(f"in {n}", f"out {n}") for n in range(count)]


def test_without_a_test_split_the_text_decides(folder):
    rows = rows_of(range(400), "train")
    write_jsonl(folder / "train.jsonl", rows)
    for task in load(folder, test_share=0.3).tasks:
        wanted = examples(rows, task.name)
        for split in ("train", "test"):
            part = [row for row in wanted if split_of(row.inputs, 0.3) == split]
            assert len(part) > 5 and task.examples(split) == part
        assert task.examples("validation") == []
    message = refused(load(folder, test_share=1e-9).tasks[0].examples, "test")
    assert "tasks.test_share=1e-09" in message and "'roses'" in message


def test_columns_and_subset_come_from_the_configuration(folder):
    write_parquet(folder / "one/train.parquet", [{"q": "a", "a": "b", "kind": "x", "group": "g", "t": 3}])
    write_parquet(folder / "two/train.parquet", [{"q": "c", "a": "d", "kind": "y", "group": "g", "t": 4}])
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: first\n  data_dir: one\n- config_name: second\n  data_dir: two\n---\nText.\n"
    )
    columns = Columns(inputs="q", targets="a", task="kind", cluster="group", template="t")
    (task,) = load(folder, subset="second", columns=columns, test_share=1e-9).tasks
    assert (task.name, task.cluster, task.examples("train")) == ("y", "g", [Example("c", "d", 4)])
    for subset in ("", "third"):
        message = refused(load, folder, subset=subset, columns=columns)
        assert "first" in message and "second" in message and "tasks.subset" in message


def test_a_configured_column_must_exist(folder):
    write_parquet(folder / "train.parquet", [{"inputs": "a", "targets": "b", "task": "t", "n": 1}])
    for field in ("inputs", "targets", "task", "cluster"):
        message = refused(load, folder, columns=Columns(**{field: "nowhere"}))
        assert "'nowhere'" in message and "inputs, targets, task, n" in message
        assert "'n' is of type int64" in refused(load, folder, columns=Columns(**{field: "n"}))
    assert "'inputs' is of type" in refused(load, folder, columns=Columns(template="inputs"))
    assert load(folder, columns=Columns(task=""), test_share=1e-9).tasks[0].name == "flowers"


def test_bad_rows_are_named_or_left_out_and_counted(folder):
    rows = [{"inputs": f"in {n}", "targets": None if n % 10 == 3 else "out", "task": f"{n % 2}"} for n in range(40)]
    for split in ("train", "test"):
        write_parquet(folder / f"{split}.parquet", rows)
    even, odd = load(folder).tasks
    assert len(even.examples("train")) == 20
    assert "train row 4: field 'targets' is null" in refused(odd.examples, "train")
    task = load(folder, allow_bad_rows=True).tasks[1]
    assert [row.inputs for row in task.examples("test")] == [f"in {n}" for n in range(1, 40, 2) if n % 10 != 3]
    assert task.bad_rows == {"test": 4}
    assert task.fingerprint("test") == load(folder, allow_bad_rows=True).tasks[1].fingerprint("test")


def test_rows_must_name_a_task_and_one_cluster_per_task(folder):
    row = {"inputs": "a", "targets": "b", "task": "t", "cluster": "c"}
    write_parquet(folder / "train.parquet", [row, row | {"task": None}])
    assert "split train: field 'task' is null" in refused(load, folder)
    write_parquet(folder / "train.parquet", [row, row | {"task": "u", "cluster": "d"}, row | {"cluster": "d"}])
    message = refused(load, folder)
    assert "'t'" in message and "'c'" in message and "'d'" in message


def test_a_task_without_rows_in_test_is_refused_when_it_is_read(folder):
    write_parquet(folder / "train.parquet", rows_of(range(20), "train"))
    write_parquet(folder / "test.parquet", rows_of([0], "test"))
    roses, asters, _ = load(folder).tasks
    assert len(roses.examples("test")) == 1
    message = refused(asters.examples, "test")
    assert "'asters'" in message and "test" in message and "tasks.only" in message


def test_the_fingerprint_follows_the_rows_and_not_their_files(folder):
    rows = rows_of(range(50), "train")
    write_parquet(folder / "train.parquet", rows)
    first = [task.fingerprint("train") for task in load(folder).tasks]
    assert len(set(first)) == 3
    write_jsonl(folder / "other/train.jsonl", rows)
    assert [task.fingerprint("train") for task in load(folder / "other").tasks] == first
    write_jsonl(folder / "third/train.jsonl", [*rows[:-1], rows[-1] | {"targets": "new"}])
    assert (
        sum(task.fingerprint("train") != old for task, old in zip(load(folder / "third").tasks, first, strict=True))
        == 1
    )


def test_a_folder_that_is_no_data_set_is_refused_in_one_line(folder, tmp_path):
    folder.mkdir()
    assert str(folder) in refused(load, folder)
    (folder / "train.parquet").write_bytes(b"PAR1 nonsense PAR1")
    assert str(folder) in refused(load, folder)
    write_parquet(tmp_path / "untrained/test.parquet", rows_of(range(3), "test"))
    assert "no split 'train', only test" in refused(load, tmp_path / "untrained")
    assert "nowhere" in refused(load, tmp_path / "nowhere")
    (tmp_path / "scripted").mkdir()
    (tmp_path / "scripted/scripted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    refused(load, tmp_path / "scripted")
    assert not (tmp_path / "ran").exists()


HUB_SCRIPT = """
import json, sys
from mossa_jax.config import Tasks
from mossa_jax.errors import Refusal
from mossa_jax.tasks import load_suite

for line in sys.stdin:
    answers = {}
    for key, source in json.loads(line).items():
        try:
            (task,) = load_suite(Tasks(suite="hub", sources=(source,))).tasks
            rows = [row.inputs for row in task.examples("train")]
            answers[key] = {"name": task.name, "source": task.source, "rows": rows, "refusal": "", "code": 0}
        except Refusal as refusal:
            answers[key] = {"refusal": str(refusal), "code": refusal.code}
    print(json.dumps(answers), flush=True)
"""


class FlatAnswers(Answers):
    """Says that a data set has no sub-folders, where the library looks for them."""

    def do_GET(self):
        if re.search("/tree/[0-9a-f]{40}/", self.path):
            self.answer(404, {"X-Error-Code": "EntryNotFound"})
        else:
            super().do_GET()


def test_a_data_set_of_the_hub_is_read_at_one_commit(tmp_path):
    def files(texts):
        buffer = io.BytesIO()
        pq.write_table(pa.table({"inputs": texts, "targets": texts}), buffer)
        return {"train.parquet": buffer.getvalue(), "test.parquet": buffer.getvalue()}

    server = HubServer(
        datasets={"org/one": {"main": files(["new"]), "old": files(["old"])}, "org/gated": {"main": files(["x"])}},
        gated=["org/gated"],
    )
    server.RequestHandlerClass = FlatAnswers
    server.start()
    both = {"main": "org/one", "old": "org/one@old"}
    try:
        online = Process(HUB_SCRIPT, tmp_path, server.endpoint)
        found = online.ask(both | {"gone": "org/one@gone", "gated": "org/gated", "no": "org/none"})
        online.close()
        offline = Process(HUB_SCRIPT, tmp_path, server.endpoint, HF_HUB_OFFLINE="1")
        kept = offline.ask(both)
        offline.close()
    finally:
        server.stop()
    for key, text in (("main", "new"), ("old", "old")):
        assert not found[key].refusal
        assert (found[key].name, found[key].rows) == ("one", [text])
        assert found[key].source == f"org/one@{commit_of('org/one', key)}"
    assert found["gone"].code == 3 and "'gone'" in found["gone"].refusal
    assert found["gated"].code == 4 and "gated" in found["gated"].refusal
    assert found["no"].code == 4 and "org/none" in found["no"].refusal
    # The library's cache gives the commit that was read last, and no other one is passed off as it.
    assert kept["old"].rows == ["old"] and kept["old"].source == found["old"].source
    assert kept["main"].code == 3 and commit_of("org/one", "main") in kept["main"].refusal
