"""The digest of a model's weights is the same on any mesh and on any number of processes."""

import json
import sys

import pytest

from mossa_jax.llama.files.load import load_model
from mossa_jax.llama.fingerprint import weights_digest
from tests.support.paths import ROOT
from tests.support.processes import free_address, together

SCRIPT = ROOT / "tests/support/digests_on_meshes.py"
MESHES = "8,1,1 1,8,1 1,4,2 2,2,2"


@pytest.mark.parametrize("processes", [1, 2])
def test_meshes_and_processes_agree_and_gather_nothing(tiny, tmp_path, processes):
    address = free_address()
    rest = [[processes, address, index] if processes > 1 else [] for index in range(processes)]
    commands = [[sys.executable, SCRIPT, tiny.folder, "float32", MESHES, *each] for each in rest]
    expected = weights_digest(load_model(str(tiny.folder)).state)
    for said in together(commands, ROOT, 8 // processes, tmp_path):
        assert json.loads(said.splitlines()[-1]) == {"digests": [expected] * 4, "gathers": False}
