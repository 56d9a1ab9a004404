"""The published configs: every resolved field, and the commands in their docstrings."""

import ast
import importlib.util
import json
import os
import re
import runpy
import shlex
import subprocess
from dataclasses import asdict

import pytest

from mossa_jax.config import check
from mossa_jax.devices.mesh import axis_sizes
from mossa_jax.planning.hardware import find_hardware
from mossa_jax.tasks import count_training_rows

NAMES = ("llama2_7b_flan2021", "llama2_7b_unseen", "llama2_13b_flan2021", "llama2_70b_flan2021", "llama3_8b_flan2021")
# Cores per chip, where an accelerator type counts cores.
CORES = {"v5p": 2, "v4": 2}
SBATCH = {"--nodes", "--time"}


def resolved(root, name):
    return runpy.run_path(str(root / f"configs/{name}.py"))["get_config"]()


def flat(fields, above=""):
    """Returns dotted name -> value, as a command line would override it."""
    found = {}
    for name, value in fields.items():
        found |= flat(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
    return found


def commands(root, name):
    """Returns the indented commands of a config's docstring, as lists of words."""
    text = ast.get_docstring(ast.parse((root / f"configs/{name}.py").read_text()))
    joined = re.sub(r"\\\n\s*", "", text)
    return [shlex.split(line) for line in joined.splitlines() if line.startswith("    ")]


@pytest.mark.parametrize("name", NAMES)
def test_every_field_is_the_one_that_was_checked_in(root, name):
    """To accept a change: MOSSA_WRITE_GOLDEN=1 pytest tests/integration/launch/test_configs.py, then read the diff."""
    config = resolved(root, name)
    check(config)
    assert config.name == name
    found = json.loads(json.dumps(flat(asdict(config))))
    file = root / f"tests/golden/{name}.json"
    if os.environ.get("MOSSA_WRITE_GOLDEN"):
        file.write_text(json.dumps(found, indent=1) + "\n")
    wanted = json.loads(file.read_text())
    lines = [
        f"config.{field}: {wanted.get(field, 'absent')!r} was checked in, {found.get(field, 'absent')!r} is resolved"
        for field in sorted(wanted.keys() | found.keys())
        if wanted.get(field, "absent") != found.get(field, "absent")
    ]
    assert not lines, "\n".join(lines)


def test_e_learns_from_60_tasks_and_only_one_config_holds_out_misc(root):
    """E learns from the same 60 tasks in all configs; only the one on unseen tasks has the seven of Misc."""
    for name in NAMES:
        suite, rows = count_training_rows(resolved(root, name).tasks)
        unseen = name == "llama2_7b_unseen"
        assert len(rows) == (67 if unseen else 60) and len(suite.held_out) == (7 if unseen else 0), name
        assert {task.cluster for task in suite.tasks if task.name in suite.held_out} == ({"misc"} if unseen else set())
        assert len({task.cluster for task in suite.tasks if task.name not in suite.held_out}) == 11


def flags_of(root, module):
    """Returns the names of the flags of a command, from its source."""
    texts = [(root / f"launch/{file}.py").read_text() for file in (module, "flags")]
    return set(re.findall(r"(?:DEFINE_\w+|flags\.DEFINE\w*|define_paths?)\(\s*\"(\w+)\"", "\n".join(texts)))


def check_python(root, words, name):
    assert words[:2] == ["python", "-m"], words
    package, module = words[2].split(".")
    assert package == "launch" and (root / f"launch/{module}.py").is_file(), words[2]
    for word in words[3:]:
        flag, _, value = word.removeprefix("--").partition("=")
        assert word.startswith("--") and flag in flags_of(root, module), f"{module} has no flag {word}"
        if flag == "config":
            assert value == f"configs/{name}.py" and (root / value).is_file()


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_of_a_config_can_be_typed(root, name, tmp_path):
    token = tmp_path / ".cache/huggingface/token"
    token.parent.mkdir(parents=True)
    token.write_text("hf_nothing")
    tpu, gpu, plan, look = commands(root, name)
    for command, script in ((tpu, "launch/tpu_pod.sh"), (gpu, "launch/slurm.sbatch")):
        words, run = command[: command.index("--")], command[command.index("--") + 1 :]
        check_python(root, run, name)
        assert run[2] == "launch.run" and "--processes=0" in run
        at = words.index(script)
        if script == "launch/slurm.sbatch":
            assert words[0] == "sbatch" and {word.split("=")[0] for word in words[1:at]} <= SBATCH, words
        # The script parses its own flags, and would run the command unchanged.
        dry = ["bash", *words[at:], "--dry_run", "--", *run]
        dry = [word.replace("$HOME", str(tmp_path)) for word in dry]
        done = subprocess.run(dry, cwd=root, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert shlex.join(run) in done.stdout.replace("\\ ", " ").replace("\\=", "="), done.stdout
    for command, module in ((plan, "launch.plan"), (look, "launch.tasks")):
        assert command[2] == module
        check_python(root, command, name)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_names_machines_that_its_mesh_fits(root, name):
    """The topologies of its planning command are the TPU type and the GPU nodes of its other commands."""
    tpu, gpu, plan, _ = commands(root, name)
    (topologies,) = [word.removeprefix("--topology=") for word in plan if word.startswith("--topology=")]
    slice_, cluster = topologies.split(",")
    kind, _, shape = slice_.partition(":")
    chips = 1
    for side in shape.split("x"):
        chips *= int(side)
    type_, _, number = tpu[3].rpartition("-")
    assert type_.replace("litepod", "e") == kind and int(number) == chips * CORES.get(kind, 1)
    nodes = next(int(word.split("=")[1]) for word in gpu if word.startswith("--nodes="))
    hardware = find_hardware(cluster)
    assert hardware.node == 8 and hardware.chips == 8 * nodes  # launch/slurm.sbatch asks for eight GPUs a node
    mesh = resolved(root, name).mesh
    for count in (chips, hardware.chips):
        assert axis_sizes(mesh, count)
    if importlib.util.find_spec("libtpu"):
        assert find_hardware(slice_).chips == chips
