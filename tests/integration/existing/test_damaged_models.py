"""Models that a run has exported are checked wherever they are used: a flipped bit never becomes a figure."""

import shutil

import pytest

import mossa_jax as mossa
from mossa_jax.errors import Refusal
from mossa_jax.llama.files.about import write_about
from tests.support.tiny_llama import random_texts

PROMPTS = random_texts(4, seed=5)


@pytest.fixture
def damaged(tiny_adapters, tmp_path):
    """An adapter with the record of a run, in which one bit of a number was flipped since."""
    folder = shutil.copytree(tiny_adapters[0][0], tmp_path / "adapter")
    write_about(folder, {"model": "alpha", "template": None})
    path = folder / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(bytes(data))
    return str(folder)


def test_a_damaged_adapter_is_refused_by_every_way_in(tiny, damaged, tmp_path):
    model = mossa.load_model(str(tiny.folder))
    ways = [
        lambda: mossa.layer_states(model, PROMPTS, adapter=damaged),
        lambda: mossa.compare(model, "pretrained", damaged, PROMPTS),
        lambda: mossa.export_merged(model, damaged, str(tmp_path / "merged")),
    ]
    for way in ways:
        with pytest.raises(Refusal, match=r"adapter_model\.safetensors is not as it was written") as caught:
            way()
        assert caught.value.code == 3
    assert not (tmp_path / "merged").exists()
