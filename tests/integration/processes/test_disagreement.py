"""Two processes of one run that were started otherwise: a few of the trials of tests/acceptance."""

import shutil

import pytest

from tests.support.disagreeing import Trial, ends_of
from tests.support.tiny_llama import write_tasks


@pytest.fixture(scope="module")
def ends(tiny_config, tmp_path_factory):
    here = tmp_path_factory.mktemp("disagreement")
    write_tasks(here / "first/tasks")
    shutil.copytree(here / "first", here / "second")
    with (here / "second/tasks/train/last_word.jsonl").open("a") as rows:
        rows.write('{"inputs": "one more", "targets": "one"}\n')
    flags = [f"--config={tiny_config}", f"--workdir={here}/run", "--config.tasks.folder=./tasks"]
    first = str(here / "first")
    trials = {
        "field": Trial(flags, first, more=["--config.tuning.rank=7"]),
        "version": Trial(flags, first, fake="jaxlib=0.1"),
        "rows": Trial(flags, first, other_folder=str(here / "second")),
    }
    found = dict(zip(trials, ends_of(trials.values(), here), strict=True))
    assert not (here / "run").exists()
    return found


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("field", 2, "has config.tuning.rank=7, process 0 has"),
        ("version", 2, 'has jaxlib="0.1", process 0 has'),
        ("rows", 3, "has config.tasks.folder/train/last_word.jsonl="),
    ],
)
def test_both_end_and_name_the_difference(ends, name, code, words):
    assert ends[name].codes == [code, code], ends[name].said
    assert all(words in last for last in ends[name].last)
    assert not any("Traceback" in text for text in ends[name].said)
