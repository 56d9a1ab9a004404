"""Model folders as people have them: some of the matrix, one of a kind. All of it is in the slow tests."""

import pytest

from tests.support.model_folder_cases import CASES
from tests.support.model_folder_check import check
from tests.support.model_folders import write_base

# All of one architecture and one length of prompts: they share their programs.
EQUAL = (
    "weights: one file beside older shards",
    "weights: one file and an index of lost shards",
    "names: the base class",
    "names: no prefix, with a head",
    "names: mixed types",
)
REFUSED = tuple(
    name
    for name, case in CASES.items()
    if case.refusal
    # Those that take a model apart, load it again or render for long are left to the slow tests.
    and name not in ("names: a question answerer", "chat template: that does not end")
)


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model_folders") / "base"
    write_base(folder)
    return folder


@pytest.mark.parametrize("name", EQUAL)
def test_a_folder_gives_what_transformers_reads_in_it(name, base, tmp_path):
    assert check(name, base, tmp_path) == "equal"


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_cannot_be_read_is_refused_by_a_true_name(name, base, tmp_path):
    assert str(tmp_path) in check(name, base, tmp_path)
