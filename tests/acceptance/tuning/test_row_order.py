"""The rows of every step are the same on 1, 2 and 8 processes, and after a stop."""

import json
import sys

import pytest

from tests.support.paths import ROOT
from tests.support.processes import free_address, together


@pytest.mark.slow
def test_every_step_has_the_same_rows_on_any_number_of_processes(root, tiny, tasks_folder, tmp_path):
    script = ROOT / "tests/support/rows_on_processes.py"
    batches_by_count = {}
    for count in (1, 2, 8):
        here = tmp_path / str(count)
        here.mkdir()
        command = [sys.executable, script, tiny.folder, tasks_folder, here / "run"]
        address = free_address()
        more = [[count, address, index] for index in range(count)] if count > 1 else [[]]
        # Eight devices in all, so that a batch of long rows divides over them in every case or in none.
        outputs = together([[*command, *each] for each in more], root, 8 // count, here)
        batches = [json.loads(output.splitlines()[-1]) for output in outputs]
        assert all(each == batches[0] for each in batches)
        batches_by_count[count] = batches[0]
    assert batches_by_count[1] == batches_by_count[2] == batches_by_count[8]
    assert len(batches_by_count[1]) >= 12 and len(set(batches_by_count[1])) == len(
        batches_by_count[1]
    )  # a step may have a batch of short and one of long rows
