"""Two real processes that differ in a field, a flag, a file or a version: both end, and the difference is named."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mossa_jax.files.write import write_json
from tests.support.disagreeing import Change, last_line, two_ends
from tests.support.tiny_llama import write_tasks

FIELDS = {
    "seed": 1, "dtype": "bfloat16", "revision": "main", "name": "another", "tasks.max_train": 8, "tasks.max_test": 8,
    "tasks.mixture": "equal", "tasks.held_out": "('last_word',)", "tasks.allow_bad_rows": True,
    "tokens.max_tokens": 40, "tokens.row_length": 64, "tokens.truncation": "paper", "tuning.rank": 7,
    "tuning.alpha": 3.5, "tuning.targets": "('q_proj',)", "tuning.control.learning_rate": 0.25,
    "tuning.experimental.batch_rows": 3, "tuning.control.epochs": 5.0, "tuning.slots": 1, "tuning.checkpoint_every": 7,
    "tuning.snapshots": 2, "tuning.reproducible": True, "compare.pool": "mean", "compare.permutations": 9,
    "analyse.weights": True, "mesh.fsdp": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def worlds(tiny, tmp_path_factory):
    """Two folders, with the same model and tasks under the same relative names."""
    here = tmp_path_factory.mktemp("worlds")
    folders = [here / "first", here / "second"]
    for folder in folders:
        shutil.copytree(tiny.folder, folder / "model")
        write_tasks(folder / "tasks")
    return folders


def flags(workdir, config):
    return [f"--config={config}", f"--workdir={workdir}", "--config.base=./model", "--config.tasks.folder=./tasks"]


def check(ends, code, name):
    codes, said, seconds = ends
    assert codes == [code, code], said
    for text in said:
        assert name in last_line(text) and "process 1 on " in last_line(text), text
        assert "Traceback" not in text and "stack trace" not in text and "SIGABRT" not in text
    print(f"{name}: {codes}, {seconds:.1f} s: {last_line(said[0])}")


@pytest.mark.slow
@pytest.mark.parametrize("field", FIELDS)
def test_another_value_of_a_field_is_named(worlds, tiny_config, tmp_path, field):
    change = Change((f"--config.{field}={FIELDS[field]}",), folder=worlds[0])
    shutil.copytree(worlds[0], tmp_path, dirs_exist_ok=True)
    check(two_ends(flags(tmp_path / "run", tiny_config), change, tmp_path), 2, f"config.{field}=")


COMMANDS = {
    "--workdir": Change(("--workdir=another",)),
    "--stale": Change(("--stale=retrain",)),
    "--profile": Change(("--profile=3",)),
    "--compile_cache": Change(("--compile_cache=none",)),
    "command": Change(command="launch.run"),
    "mossa_jax": Change(fake="mossa_jax=0.0.9"),
    "jaxlib": Change(fake="jaxlib=0.1"),
    "the source of mossa_jax": Change(fake="source=0123456789ab"),
    "jax_enable_x64": Change(variables={"JAX_ENABLE_X64": "1"}),
    "XLA_FLAGS": Change(variables={"XLA_FLAGS": "--xla_cpu_enable_fast_math=true"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_another_flag_version_or_option_is_named(worlds, tiny_config, tmp_path, name):
    shutil.copytree(worlds[0], tmp_path, dirs_exist_ok=True)
    check(two_ends(flags(tmp_path / "run", tiny_config), COMMANDS[name], tmp_path), 2, f"{name}=")


def other_weights(folder):
    tensors = load_file(folder / "model/model.safetensors")
    name = sorted(tensors)[3]
    tensors[name] = (tensors[name] + np.float32(2**-9)).astype(tensors[name].dtype)
    save_file(tensors, folder / "model/model.safetensors", {"format": "pt"})


def other_config(folder):
    path = folder / "model/config.json"
    write_json(path, json.loads(path.read_text()) | {"rms_norm_eps": 2e-5})


def other_tokenizer(folder):
    path = folder / "model/tokenizer.json"
    path.write_text(path.read_text() + " ")


def other_task(folder):
    with (folder / "tasks/test/last_word.jsonl").open("a") as rows:
        rows.write('{"inputs": "one more", "targets": "one"}\n')


FILES = {
    "config.base/model.safetensors": other_weights,
    "config.base/config.json": other_config,
    "config.base/tokenizer.json": other_tokenizer,
    "config.tasks.folder/test/last_word.jsonl": other_task,
    "config.tasks.folder/tasks.json": lambda folder: (folder / "tasks/tasks.json").unlink(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_another_file_is_named(worlds, tiny_config, tmp_path, name):
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(worlds[0], first)
    shutil.copytree(worlds[1], second)
    FILES[name](second)
    check(two_ends(flags(tmp_path / "run", tiny_config), Change(folder=second), first), 3, f"{name}=")
