"""What is read of generation_config.json."""

import json

import pytest

from mossa_jax.errors import Refusal
from mossa_jax.llama.generation_config import read_stop_ids, unused_settings


def write(folder, **settings):
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("value", "ids"), [(2, (2,)), ([5, 2, 5], (5, 2)), (None, None), ([], None), (3.0, (3,)), (0, (0,))]
)
def test_stop_ids_are_a_number_or_a_list(value, ids, tmp_path):
    assert read_stop_ids(write(tmp_path, eos_token_id=value)) == ids


def test_a_folder_without_the_file_names_no_stop_ids(tmp_path):
    assert read_stop_ids(tmp_path) is None and unused_settings(tmp_path) == []


@pytest.mark.parametrize("value", ["</s>", -1, [1, None], 2**31, 1.5, True, {"a": 1}, [[2]], 10**400])
def test_what_is_no_id_is_refused(value, tmp_path):
    with pytest.raises(Refusal, match="eos_token_id") as caught:
        read_stop_ids(write(tmp_path, eos_token_id=value))
    assert caught.value.code == 3


def test_settings_that_answers_leave_out_are_named(tmp_path):
    write(tmp_path, do_sample=True, temperature=0.6, repetition_penalty=1.05, num_beams=1, no_repeat_ngram_size=3)
    assert unused_settings(tmp_path) == ["repetition_penalty=1.05", "no_repeat_ngram_size=3"]
