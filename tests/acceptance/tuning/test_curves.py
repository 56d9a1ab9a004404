"""Training on meshes of virtual devices and in two processes gives the loss curves of one device."""

import json
import sys

import numpy as np
import pytest

from tests.support.paths import ROOT
from tests.support.processes import free_address, together

SCRIPT = ROOT / "tests/support/curves_on_meshes.py"


@pytest.fixture(scope="module")
def one(root, tiny, tmp_path_factory):
    """Returns the curves on one device."""
    here = tmp_path_factory.mktemp("one")
    (out,) = together([[sys.executable, SCRIPT, tiny.folder, "1,1,1", here / "run"]], root, 1, here)
    curves = np.asarray(json.loads(out.splitlines()[-1])["1,1,1"]["curves"])
    assert curves.shape == (8, 20) and (curves > 0).all()
    assert (curves[:, -1] < curves[:, 0] - 0.05).all()  # every model learns, so curves could differ
    return curves


@pytest.mark.slow
def test_eight_devices_however_arranged_give_the_curves_of_one(root, tiny, one, tmp_path):
    meshes = "8,1,1 2,4,1 1,4,2"
    (out,) = together([[sys.executable, SCRIPT, tiny.folder, meshes, tmp_path / "run"]], root, 8, tmp_path)
    results = json.loads(out.splitlines()[-1])
    for sizes in meshes.split():
        assert np.abs(np.asarray(results[sizes]["curves"]) - one).max() <= 1e-5, sizes
    # The base is whole on each of eight devices, and no device ever gathers another's adapter.
    assert results["8,1,1"]["gathers"] == []
    assert results["2,4,1"]["gathers"]  # the base's own, over fsdp: the search finds gathers where there are some


@pytest.mark.slow
def test_two_processes_give_the_curves_of_one(root, tiny, one, tmp_path):
    address = free_address()
    commands = [
        [sys.executable, SCRIPT, tiny.folder, "4,1,1 1,2,2", tmp_path / "run", 2, address, index] for index in range(2)
    ]
    outputs = together(commands, root, 2, tmp_path)
    results = json.loads(outputs[0].splitlines()[-1])
    for sizes in ("4,1,1", "1,2,2"):
        assert np.abs(np.asarray(results[sizes]["curves"]) - one).max() <= 1e-5, sizes
