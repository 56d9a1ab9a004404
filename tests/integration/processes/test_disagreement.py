"""Two processes of one run that were started otherwise: a few of the trials of tests/acceptance."""

import pytest

from tests.support.disagreeing import Change, last_line, two_ends
from tests.support.tiny_llama import write_tasks


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (Change(("--config.tuning.rank=7",)), 2, "has config.tuning.rank=7, process 0 has"),
        (Change(fake="jaxlib=0.1"), 2, 'has jaxlib="0.1", process 0 has'),
    ],
)
def test_both_end_and_name_the_difference(tiny_config, tmp_path, change, code, words):
    codes, said, _ = two_ends([f"--config={tiny_config}", f"--workdir={tmp_path / 'run'}"], change, tmp_path)
    assert codes == [code, code], said
    assert all(words in last_line(text) and "Traceback" not in text for text in said)
    assert not (tmp_path / "run").exists()


def test_both_end_where_a_task_file_differs(tiny_config, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    write_tasks(first / "tasks")
    write_tasks(second / "tasks")
    with (second / "tasks/train/last_word.jsonl").open("a") as rows:
        rows.write('{"inputs": "one more", "targets": "one"}\n')
    flags = [f"--config={tiny_config}", f"--workdir={tmp_path / 'run'}", "--config.tasks.folder=./tasks"]
    codes, said, _ = two_ends(flags, Change(folder=second), first)
    assert codes == [3, 3], said
    assert all("config.tasks.folder/train/last_word.jsonl=" in last_line(text) for text in said)
