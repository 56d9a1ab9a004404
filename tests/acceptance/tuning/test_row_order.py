"""The rows of every step are the same on 1, 2 and 8 processes, and after a stop."""

import json
import sys

import pytest

from tests.support.paths import ROOT
from tests.support.processes import free_address, together


@pytest.mark.slow
def test_every_step_has_the_same_rows_on_any_number_of_processes(root, tiny, tasks_folder, tmp_path):
    script = ROOT / "tests/support/rows_on_processes.py"
    found = {}
    for count in (1, 2, 8):
        here = tmp_path / str(count)
        here.mkdir()
        command = [sys.executable, script, tiny.folder, tasks_folder, here / "run"]
        address = free_address()
        more = [[count, address, index] for index in range(count)] if count > 1 else [[]]
        # As many devices in all wherever they are: a batch of long rows divides over them or stays whole alike.
        outputs = together([[*command, *each] for each in more], root, 8 // count, here)
        batches = [json.loads(output.splitlines()[-1]) for output in outputs]
        assert all(each == batches[0] for each in batches)
        found[count] = batches[0]
    assert found[1] == found[2] == found[8]
    assert len(found[1]) >= 12 and len(set(found[1])) == len(found[1])  # a step may hold short and long rows
