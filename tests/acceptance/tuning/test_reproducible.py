"""`tuning.reproducible`: the same bits on any number of devices, and in several processes."""

import json
import sys

import pytest

from tests.support.paths import ROOT
from tests.support.processes import free_address, together

SCRIPT = ROOT / "tests/support/bits_on_meshes.py"


@pytest.fixture(scope="module")
def one(root, tiny, tmp_path_factory):
    """Returns what one device learns: {"digest", "gap"}."""
    here = tmp_path_factory.mktemp("one")
    (out,) = together([[sys.executable, SCRIPT, tiny.folder, "1,1,1"]], root, 1, here)
    return json.loads(out.splitlines()[-1])["1,1,1"]


@pytest.mark.slow
def test_the_plain_step_learns_the_same_up_to_rounding(one):
    assert 0 < one["gap"] < 1e-4


def test_eight_devices_however_arranged_give_the_bits_of_one(root, tiny, one, tmp_path):
    meshes = "2,4,1 1,8,1"  # on the second mesh, rows do not divide over the devices
    (out,) = together([[sys.executable, SCRIPT, tiny.folder, meshes]], root, 8, tmp_path)
    results = json.loads(out.splitlines()[-1])
    assert {sizes: result["digest"] for sizes, result in results.items()} == dict.fromkeys(
        meshes.split(), one["digest"]
    )


@pytest.mark.slow
def test_two_processes_give_the_bits_of_one(root, tiny, one, tmp_path):
    address = free_address()
    commands = [[sys.executable, SCRIPT, tiny.folder, "2,2,1 1,4,1", 2, address, index] for index in range(2)]
    for out in together(commands, root, 2, tmp_path):
        results = json.loads(out.splitlines()[-1])
        assert {result["digest"] for result in results.values()} == {one["digest"]}
