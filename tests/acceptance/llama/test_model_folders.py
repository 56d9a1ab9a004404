"""Every model folder of the matrix against transformers: ids, states of every layer, greedy answers; or refused."""

import pytest

from tests.support.model_folder_cases import CASES
from tests.support.model_folder_check import check
from tests.support.model_folders import write_base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model_folders") / "base"
    write_base(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_folder_equals_transformers_or_is_refused_by_a_true_name(name, base, tmp_path):
    assert (check(name, base, tmp_path) == "equal") == (not CASES[name].refusal)


@pytest.mark.slow
def test_the_matrix_is_large_enough_to_mean_something():
    equal = [name for name, case in CASES.items() if not case.refusal]
    assert len(equal) >= 40 and len(CASES) - len(equal) >= 40
