"""A run resumes on another mesh: the same models in the same slots at the same steps."""

import json
import shutil
import sys

import numpy as np
import pytest

from tests.support.paths import ROOT
from tests.support.processes import together

SCRIPT = ROOT / "tests/support/slots_on_meshes.py"
NAMES = [f"model{number}" for number in range(7)]


def tune(root, tiny, folder, sizes, stop_at=0):
    """Runs until `stop_at` or to the end; returns what was logged so far, in its order.

    Also asserts the warning where the adapter axis has more places than there are slots.
    """
    devices = int(np.prod([int(size) for size in sizes.split(",")]))
    command = [sys.executable, SCRIPT, tiny.folder, folder, sizes, stop_at]
    (out,) = together([command], root, devices, folder.parent)
    warnings, log = json.loads(out.splitlines()[-1])
    places = -(-3 // int(sizes[0])) * int(sizes[0])
    assert len(warnings) == (places > 3) and all("slots=3 leaves places on" in line for line in warnings)
    assert all(f"raise it to {places}" in line for line in warnings)
    return log


def adapters(folder):
    return [dict(np.load(folder / f"{name}.npz")) for name in NAMES]


@pytest.fixture(scope="module")
def straight(root, tiny, tmp_path_factory):
    """Runs on one device without a stop; returns (log, adapters)."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    return tune(root, tiny, folder, "1,1,1"), adapters(folder)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["8,1,1", "1,1,1"])
def test_a_run_resumes_on_meshes_with_more_or_fewer_places(root, tiny, straight, tmp_path, first):
    """Three slots take eight, three and four places, so arrays in the checkpoints differ in length."""
    log, wanted = straight
    begun = tmp_path / "begun"
    before = tune(root, tiny, begun, first, stop_at=11)
    assert 10 < max(step for name, step in before if name == "model0") < 16
    for second in ("1,1,1", "2,4,1", "8,1,1"):
        if second == first:
            continue
        folder = tmp_path / second
        shutil.copytree(begun, folder)
        whole = tune(root, tiny, folder, second)
        assert whole[: len(before)] == before
        # Only what the stop logged at once comes earlier than without a stop.
        assert list(dict.fromkeys(map(tuple, whole))) == list(dict.fromkeys(map(tuple, log))), second
        for name, ours, theirs in zip(NAMES, adapters(folder), wanted, strict=True):
            assert theirs["q_proj.b"].any()
            for leaf in theirs:
                assert np.abs(ours[leaf] - theirs[leaf]).max() <= 1e-5, (second, name, leaf)
