"""The split by factors on a mesh, in a process with eight virtual devices."""

import sys

from tests.support.paths import ROOT
from tests.support.processes import together


def test_the_split_on_eight_devices_is_that_on_one(tmp_path):
    (said,) = together([[sys.executable, ROOT / "tests/support/factors_on_devices.py"]], ROOT, 8, tmp_path)
    assert said == "8 right\n"
