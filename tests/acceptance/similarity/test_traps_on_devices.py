"""The table of traps on eight devices, by one process and by two."""

import sys

import pytest

from tests.support.paths import ROOT
from tests.support.processes import free_address, together


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_on_eight_devices(root, tmp_path, processes):
    """The same table, by one process and by two; test_sharded and test_matrix have quicker tests of several devices."""
    command = [sys.executable, ROOT / "tests/support/traps_on_devices.py"]
    address = free_address()
    more = [[processes, address, index] for index in range(processes)] if processes > 1 else [[]]
    said = together([[*command, *each] for each in more], root, 8 // processes, tmp_path, timeout=900)
    assert [line.splitlines()[-1] for line in said] == [f"{processes} 8 right"] * processes
