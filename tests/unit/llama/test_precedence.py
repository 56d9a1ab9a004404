"""Which files hold a model's weights."""

import pytest

from mossa_jax.errors import Refusal
from mossa_jax.llama.files.precedence import INDEX, SINGLE, weight_files

SHARDS = ["model-1.safetensors", "model-2.safetensors"]
MAP = {"weight_map": {"a": SHARDS[1], "b": SHARDS[0], "c": SHARDS[1]}}


def never(name):
    raise AssertionError(f"{name} is read")


def test_a_single_file_comes_before_an_index_that_is_not_even_read():
    assert weight_files([*SHARDS, INDEX, SINGLE], "here", never) == [SINGLE]


def test_an_index_names_each_file_once():
    assert weight_files([*SHARDS, INDEX, "other.safetensors"], "here", lambda name: MAP) == SHARDS


def test_a_file_that_the_settings_name_comes_first():
    assert weight_files([SINGLE, "w.safetensors"], "here", never, "w.safetensors") == ["w.safetensors"]
    assert weight_files([SINGLE], "here", lambda name: MAP, "w.safetensors.index.json") == SHARDS


def test_without_an_index_all_weights_count_but_adapters_and_the_authors_layout():
    files = [*SHARDS, "adapter_model.safetensors", "consolidated.safetensors", "config.json"]
    assert weight_files(files, "here", never) == SHARDS
    assert weight_files(["config.json"], "here", never) == []


@pytest.mark.parametrize(
    "name",
    ["../a.safetensors", "/a.safetensors", "a/../../b.safetensors", "..\\a.safetensors", "gs://x/a.safetensors",
     "a\0.safetensors", "", 7, None, [], {"a": 1}, "a.bin", "a"],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_refused(name):
    with pytest.raises(Refusal) as caught:
        weight_files([INDEX], "here", lambda _: {"weight_map": {"x": SHARDS[0], "y": name}})
    assert caught.value.code == 3 and "\n" not in str(caught.value)
    if name is not None:
        with pytest.raises(Refusal):
            weight_files([SINGLE], "here", never, name)


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": 3}])
def test_what_is_no_index_is_refused(index):
    with pytest.raises(Refusal, match="no index of tensors"):
        weight_files([INDEX], "here", lambda name: index)
