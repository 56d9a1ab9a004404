"""A prompt has the same states alone, padded, packed beside others, on any mesh, and in two processes."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import mossa_jax as mossa
from mossa_jax.devices.mesh import AXES
from mossa_jax.errors import Refusal
from mossa_jax.llama.files.load import load_model
from mossa_jax.llama.placement import check_mesh
from tests.support.paths import ROOT
from tests.support.processes import free_address, together
from tests.support.tiny_llama import import_torch, random_texts, write_family

PROGRAM = ROOT / "tests/support/states_on_meshes.py"
TEXTS = random_texts(21)  # neither rows nor prompts divide by the devices
SHAPE = {"hidden_size": 64, "num_attention_heads": 8, "intermediate_size": 96}


FAMILIES = [
    "mistral",
    pytest.param("llama2_grouped", marks=pytest.mark.slow),
    pytest.param("qwen3", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, tmp_path_factory):
    """A model with 8 query and 2 key/value heads, and its states of each prompt alone."""
    import_torch()
    folder = tmp_path_factory.mktemp("meshes")
    model = write_family(folder / "model", request.param, **SHAPE)
    ours = load_model(str(model.folder))
    alone = {
        f"{pool} {name}": state
        for pool in ("last", "mean")
        for name, state in stacked([mossa.layer_states(ours, [text], pool=pool) for text in TEXTS]).items()
    }
    np.savez(folder / "alone.npz", **alone)
    (folder / "texts.json").write_text(json.dumps(TEXTS))
    return folder, alone


def stacked(states: list[dict]) -> dict:
    return {name: np.concatenate([one[name] for one in states]) for name in states[0]}


def command(folder: Path, meshes: str, *processes) -> list[str]:
    given = [folder / "model", folder / "texts.json", folder / "alone.npz", meshes, *processes]
    return [sys.executable, str(PROGRAM), *map(str, given)]


def test_states_packed_beside_others_on_one_device_are_those_of_prompts_alone(case):
    folder, alone = case
    model = load_model(str(folder / "model"))
    for pool in ("last", "mean"):
        for name, states in mossa.layer_states(model, TEXTS, pool=pool).items():
            expected = alone[f"{pool} {name}"]
            assert np.all(np.linalg.norm(states - expected, axis=1) < 1e-5 * np.linalg.norm(expected, axis=1)), name


@pytest.mark.slow
def test_states_on_meshes_of_eight_devices_are_those_of_prompts_alone(root, case, tmp_path):
    (out,) = together([command(case[0], "1,8 2,4 8,1")], root, 8, tmp_path)
    assert float(out.split()[-1]) < 1e-5


@pytest.mark.slow
def test_states_in_two_processes_are_those_of_prompts_alone(root, case, tmp_path):
    address = free_address()
    commands = [command(case[0], "4,1 1,4 2,2", 2, address, index) for index in range(2)]
    for out in together(commands, root, 2, tmp_path):
        assert float(out.split()[-1]) < 1e-5


def test_meshes_that_do_not_fit_the_heads_are_refused(case):
    model = load_model(str(case[0] / "model"))

    def mesh(tensor):
        return jax.sharding.AbstractMesh((1, 1, tensor), AXES)

    check_mesh(model.architecture, mesh(4), "here")  # 2 key/value heads on 4 devices: two copies each
    for tensor in (3, 5, 16):
        with pytest.raises(Refusal) as caught:
            check_mesh(model.architecture, mesh(tensor), "here")
        assert caught.value.code == 2
        assert f"config.mesh.tensor={tensor}" in str(caught.value) and "use one of 1, 2, 4, 8" in str(caught.value)


def test_attention_through_cudnns_door_is_the_same_on_any_mesh(tmp_path):
    """Models, rows and heads over eight devices; in the last two cases the rows do not divide over theirs."""
    program = [sys.executable, str(ROOT / "tests/support/attention_on_meshes.py")]
    (printed,) = together([program], ROOT, 8, tmp_path)
    cases = json.loads(printed.splitlines()[-1])
    assert len(cases) == 3
    for case, (outputs, *gradients) in cases.items():
        assert outputs < 1e-6 and max(gradients) < 1e-5, case
