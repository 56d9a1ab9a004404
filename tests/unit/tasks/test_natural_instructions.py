"""Super-NaturalInstructions files: prompts, answers, clusters, splits, and what is refused."""

import hashlib
import json

import pytest

from mossa_jax.config import Tasks
from mossa_jax.errors import Refusal
from mossa_jax.tasks import load_suite
from mossa_jax.tasks.suite import Example


def content(**fields):
    task = {
        "Contributors": ["somebody"],
        "Categories": ["Sentiment Analysis", "Other"],
        "Definition": ["Say whether it is good."],
        "Positive Examples": [{"input": "shown", "output": "good", "explanation": "so"}],
        "Instances": [{"id": f"t-{n}", "input": f"film {n}", "output": [f"answer {n}", "another"]} for n in range(60)],
    }
    return task | fields


def write(folder, name, task):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(task, indent=4), encoding="utf-8")
    return path


def load(folder, **fields):
    return load_suite(Tasks(suite="natural_instructions", folder=str(folder), **fields))


def refused(call, *arguments, **fields) -> str:
    with pytest.raises(Refusal) as caught:
        call(*arguments, **fields)
    assert caught.value.code == 3
    return str(caught.value)


def is_test(text, share):
    """By the first eight hex digits of the text's SHA-256."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 16**8 < share


def test_licences_are_those_of_the_instances(tmp_path):
    for name, fields in (
        ("task1", {"Instance License": ["CC BY 4.0", "MIT"]}), ("task2", {"Instance License": "MIT"}),
        ("task3", {}), ("task4", {"Instance License": [4, ""]}),
    ):  # fmt: skip
        write(tmp_path, name, content(**fields))
    assert [task.licence for task in load(tmp_path).tasks] == ["CC BY 4.0, MIT", "MIT", "", ""]


def test_a_file_is_a_task_split_by_its_inputs(tmp_path):
    path = write(tmp_path, "task002_b", content())
    write(tmp_path, "task001_a", content(Categories=[], Definition="One text."))
    (tmp_path / "README.json").write_text("{}")
    suite = load(tmp_path, test_share=0.25)
    assert [(task.name, task.cluster) for task in suite.tasks] == [
        ("task001_a", "tasks"), ("task002_b", "Sentiment Analysis"),
    ]  # fmt: skip
    assert suite.held_out == () and suite.tasks[1].source == str(path)
    for task, definition in zip(suite.tasks, ("One text.", "Say whether it is good."), strict=True):
        for split, wanted in (("train", False), ("test", True)):
            numbers = [n for n in range(60) if is_test(f"film {n}", 0.25) == wanted]
            assert numbers and task.examples(split) == [
                Example(f"{definition}\n\nfilm {n}", f"answer {n}") for n in numbers
            ]
        assert task.examples("validation") == []


def test_the_repositorys_own_folder_is_found(tmp_path):
    write(tmp_path / "tasks", "task001_a", content())
    assert [task.name for task in load(tmp_path).tasks] == ["task001_a"]
    (tmp_path / "tasks/task001_a.json").rename(tmp_path / "tasks/other.json")
    assert "task*.json" in refused(load, tmp_path)


def test_a_prompt_lands_in_one_split(tmp_path):
    instances = [{"input": f"film {n % 30}", "output": f"answer {n}"} for n in range(90)]
    write(tmp_path, "task001_a", content(Instances=instances))
    (task,) = load(tmp_path, test_share=0.4).tasks
    train, test = ({row.inputs for row in task.examples(split)} for split in ("train", "test"))
    assert len(train) + len(test) == 30 and not train & test
    assert len(task.examples("train")) == 3 * len(train)


@pytest.mark.parametrize(
    ("instance", "words"),
    [
        ({"input": "", "output": ["x"]}, "'input' is empty"),
        ({"output": ["x"]}, "'input' is null"),
        ({"input": "a", "output": []}, "'output' is null"),
        ({"input": "a", "output": [3]}, "'output' is 3"),
        ({"input": "a", "output": ["\ud800"]}, "surrogate"),
        ({"input": "\ud800", "output": ["a"]}, "surrogate"),
        ("text", "str"),
    ],
)
def test_a_bad_instance_is_named_or_left_out_and_counted(tmp_path, instance, words):
    path = write(tmp_path, "task001_a", content())
    task = json.loads(path.read_text())
    task["Instances"].insert(4, instance)
    write(tmp_path, "task001_a", task)
    # An unusable input belongs to no split and is met in train; "a" is a train prompt of this share.
    assert not is_test("a", 0.25)
    message = refused(load(tmp_path, test_share=0.25).tasks[0].examples, "train")
    assert message.startswith(f"{path}, instance 5: ") and words in message
    (task,) = load(tmp_path, test_share=0.25, allow_bad_rows=True).tasks
    assert len(task.examples("train")) + len(task.examples("test")) == 60
    assert task.bad_rows == {"train": 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{\n"Instances": [\n}', "(line 3, "),
        ("[]", "'Instances'"),
        ('{"Instances": {}}', "'Instances'"),
        ("[" * 100_000, "deeper than 100 levels"),
        (f'{{"Instances": {"9" * 5000}}}', "JSON"),
        ("\xff", "not UTF-8"),
        ('{"Instances": [], "Categories": [3]}', "'Categories'"),
    ],
)
def test_a_file_that_is_no_task_is_refused(tmp_path, text, words):
    path = tmp_path / "task001_a.json"
    path.write_bytes(text.encode("latin-1"))
    message = refused(load, tmp_path)
    assert message.startswith(str(path)) and words in message


def test_a_task_without_definition_or_rows_of_a_split_is_refused(tmp_path):
    path = write(tmp_path, "task001_a", content(Definition=[" "]))
    assert f"{path}: field 'Definition'" in refused(load(tmp_path).tasks[0].examples, "train")
    write(tmp_path, "task001_a", content(Instances=[{"input": "a", "output": "b"}]))
    message = refused(load(tmp_path, test_share=0.25).tasks[0].examples, "test")
    assert str(path) in message and "tasks.test_share=0.25" in message and "1 instances" in message


def test_the_fingerprint_follows_file_split_and_share(tmp_path):
    write(tmp_path, "task001_a", content())
    prints = {
        load(tmp_path, test_share=share).tasks[0].fingerprint(s) for share in (0.1, 0.2) for s in ("train", "test")
    }
    assert len(prints) == 4
    write(tmp_path / "copy", "task007_b", content())
    assert load(tmp_path / "copy", test_share=0.1).tasks[0].fingerprint("train") in prints
    write(tmp_path / "copy", "task007_b", content(Definition="Another."))
    assert load(tmp_path / "copy", test_share=0.1).tasks[0].fingerprint("train") not in prints
