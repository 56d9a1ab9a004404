"""Tensors of torch, files of other machines and paths as users write them, through the public functions."""

import json
import logging
import os

import numpy as np
import pytest
import torch

import mossa_jax as mossa
from tests.support.float64_cka import biased

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 6)).astype(np.float32)
Y = (X @ RNG.normal(size=(6, 4)) + RNG.normal(size=(40, 4))).astype(np.float32)


def refused(call):
    with pytest.raises(mossa.Refusal) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(X),
        torch.tensor(X, requires_grad=True),
        torch.tensor(X).bfloat16(),
        torch.tensor(X).half(),
        torch.tensor(X.T.copy()).T.bfloat16(),
        torch.tensor((X * 100).astype(np.int64)),
        torch.nn.Parameter(torch.tensor(X)),
    ],
)
def test_a_tensor_counts_as_its_numbers(tensor):
    numbers = tensor.detach().double().numpy()
    assert mossa.cka(tensor, Y, "biased") == pytest.approx(biased(numbers, Y), abs=1e-6)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.empty(40, 6, device="meta"), "x is a tensor on meta; give x.cpu()"),
        (torch.tensor(X).to_sparse(), "no dense tensor"),
        (torch.tensor(X).to(torch.complex64), "dtype complex64"),
    ],
)
def test_a_tensor_without_numbers_at_hand_is_refused(tensor, words):
    assert words in refused(lambda: mossa.cka(tensor, Y))


def save(folder, **arrays):
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def test_states_of_another_machine_and_paths_with_home_and_variables_are_read(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("STATES", str(tmp_path))
    a = save(tmp_path / "a", embed=X.astype(">f4"), final_norm=np.asfortranarray(X.astype(">f8")))
    save(tmp_path / "b", embed=Y.astype(">f2"), final_norm=Y)
    for name in ("._embed.npy", ".hidden.npy", "embed.npy~"):
        (a / name).write_bytes(b"rubbish")
    (a / "notes.txt").write_text("words")
    (tmp_path / "ids.json").write_text(json.dumps([f"{n}" for n in range(40)]), encoding="utf-16")
    (tmp_path / "ids.txt").write_bytes(b"\xef\xbb\xbf" + b"\r".join(b"%d" % n for n in range(40)) + b"\r\r")
    with caplog.at_level(logging.WARNING, "mossa_jax"):
        table = mossa.compare_saved("~/a", "$STATES/b", ids_a="~/ids.json", ids_b="${STATES}/ids.txt")
    assert [record.getMessage() for record in caplog.records if "no layers" in record.getMessage()] == [
        f"{a}: 1 files are no layers and not read: notes.txt"
    ]
    want = biased(X.astype(np.float64), Y.astype(np.float64))
    assert table.query("estimator == 'biased' and layer == 'final_norm'").cka.item() == pytest.approx(want, abs=1e-5)


def test_states_are_saved_and_loaded_at_home_in_their_own_number_type(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    states = {"embed": torch.tensor(X).bfloat16(), "1": X.astype(">f8"), "final_norm": X.astype(np.longdouble)}
    for place in ("~/s", "~/s.parquet"):
        mossa.save_states(place, states)
        back, rows = mossa.load_states(place)
        assert len(rows) == 40 and [*back] == ["embed", "1", "final_norm"]
        np.testing.assert_array_equal(back["embed"].astype(np.float32), states["embed"].float().numpy())
        np.testing.assert_array_equal(back["1"], X.astype(np.float64))
    assert not (tmp_path / "~").exists() and not os.path.exists("~")
    assert "states['1'] has shape [3, 6]" in refused(lambda: mossa.save_states("~/t", {"a": X, "1": X[:3]}))
    assert "path=~/s.parquet is" not in refused(lambda: mossa.save_states("~/s.parquet/x", states))


def test_what_is_no_array_file_is_named_and_never_waited_for(tmp_path):
    folder = save(tmp_path / "a", embed=X)
    (folder / "1.npy").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    assert "Git LFS pointer" in refused(lambda: mossa.compare_saved(folder, folder))
    (folder / "1.npy").unlink()
    os.mkfifo(folder / "1.npy")
    assert "is a named pipe" in refused(lambda: mossa.compare_saved(folder, folder))
    (folder / "1.npy").unlink()
    for ids in ("ids.txt", "ids.json", "ids.npy"):
        os.mkfifo(folder / ids)
        assert "is a named pipe" in refused(lambda: mossa.compare_saved(folder, folder))
        (folder / ids).unlink()
    (folder / "ids.json").write_text("[" * 100_000)
    assert "nested deeper" in refused(lambda: mossa.compare_saved(folder, folder))
    (folder / "ids.json").unlink()
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (True, 6), }"
    (folder / "1.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + X.tobytes())
    assert "1.npy is a pickle or not a NumPy array" in refused(lambda: mossa.compare_saved(folder, folder))


def test_other_functions_name_the_place_that_was_meant(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    calls = (
        lambda: mossa.Run("~/none"),
        lambda: mossa.load_model("~/none"),
        lambda: mossa.export_merged("~/none", None, "~/out"),
        lambda: mossa.compare("~/none", "pretrained", "~/none", ["a", "b", "c", "d"]),
        lambda: mossa.load_states("~/none"),
    )
    for call in calls:
        assert str(tmp_path / "none") in refused(call)
    assert "workdir=~nobody-here/x: no home folder" in refused(lambda: mossa.run("demo", "~nobody-here/x"))
