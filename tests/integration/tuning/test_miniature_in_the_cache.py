"""The miniature base in the cache is read as it was written, or made again with one line."""

import logging
import shutil

import pytest

from mossa_jax.config import Pretraining
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.processes.stop import Stop
from mossa_jax.tuning.pretrain import miniature_base

SMALL = Pretraining(layers=1, hidden=16, heads=2, feed_forward=16, steps=2, documents=40, batch_rows=2, row_length=64)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


DAMAGE = {
    "nothing": lambda folder: None,
    "weights": lambda folder: flip(folder / "model.safetensors"),
    "config": lambda folder: flip(folder / "config.json"),
    "missing": lambda folder: (folder / "tokenizer.json").unlink(),
    "record": lambda folder: (folder / "mossa.json").unlink(),
    "all": lambda folder: shutil.rmtree(folder),
}


@pytest.mark.parametrize(
    "damage", [pytest.param(name, marks=() if name == "weights" else pytest.mark.slow) for name in DAMAGE]
)
def test_damage_is_said_and_mended(tmp_path, monkeypatch, caplog, damage):
    monkeypatch.setenv("MOSSA_CACHE", str(tmp_path / "cache"))

    def base():
        return miniature_base(SMALL, 0, RunFolder(tmp_path / "run"), Stop())

    files = {path.name: path.read_bytes() for path in base().iterdir()}
    assert not (tmp_path / "run/checkpoints/pretraining").exists()
    DAMAGE[damage](base())
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert {path.name: path.read_bytes() for path in base().iterdir()} == files
    lines = [line for line in caplog.messages if "made again" in line]
    assert len(lines) == (damage not in ("nothing", "all"))
