"""Two real processes that differ in a field, a flag, a file or a version: both end, and the difference is named."""

import json
import shutil
import socket

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mossa_jax.files.write import write_json
from tests.support.disagreeing import Trial, ends_of
from tests.support.tiny_llama import write_tasks

FIELDS = {
    "seed": 1, "dtype": "bfloat16", "revision": "main", "name": "another", "tasks.max_train": 8, "tasks.max_test": 8,
    "tasks.mixture": "equal", "tasks.held_out": "('last_word',)", "tasks.allow_bad_rows": True,
    "tokens.max_tokens": 40, "tokens.row_length": 56, "tokens.truncation": "paper", "tuning.rank": 7,
    "tuning.alpha": 3.5, "tuning.targets": "('q_proj',)", "tuning.control.learning_rate": 0.25,
    "tuning.experimental.batch_rows": 3, "tuning.control.epochs": 5.0, "tuning.slots": 1, "tuning.checkpoint_every": 7,
    "tuning.snapshots": 2, "tuning.reproducible": True, "compare.pool": "mean", "compare.permutations": 9,
    "analyse.weights": True, "mesh.fsdp": 2,
}  # fmt: skip


COMMANDS = {
    "--workdir": {"more": ["--workdir=another"]},
    "--stale": {"more": ["--stale=retrain"]},
    "--profile": {"more": ["--profile=3"]},
    "--compile_cache": {"more": ["--compile_cache=none"]},
    "command": {"command": "launch.run"},
    "mossa_jax": {"fake": "mossa_jax=0.0.9"},
    "jaxlib": {"fake": "jaxlib=0.1"},
    "the source of mossa_jax": {"fake": "source=0123456789ab"},
    "jax_enable_x64": {"options": {"jax_enable_x64": True}},
    "XLA_FLAGS": {"variables": {"XLA_FLAGS": "--xla_cpu_enable_fast_math=true"}},
}


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


@pytest.fixture(scope="module")
def worlds(tiny, tmp_path_factory):
    """A folder with a model and tasks, and the same once more for each difference of a file."""
    here = tmp_path_factory.mktemp("worlds")
    for number in range(len(FILES) + 1):
        shutil.copytree(tiny.folder, here / f"{number}/model")
        write_tasks(here / f"{number}/tasks")
    for number, change in enumerate(FILES.values(), 1):
        change(here / str(number))
    return here


@pytest.fixture(scope="module")
def ends(worlds, tiny_config, tmp_path_factory):
    """Name -> how both processes ended."""
    here = tmp_path_factory.mktemp("ends")
    differences = {
        **{f"config.{field}": {"more": [f"--config.{field}={value}"]} for field, value in FIELDS.items()},
        **COMMANDS,
        **{name: {"other_folder": str(worlds / str(number))} for number, name in enumerate(FILES, 1)},
    }
    flags = [f"--config={tiny_config}", f"--workdir={here}/run", "--config.base=./model"]
    flags.append("--config.tasks.folder=./tasks")
    trials = [Trial(flags, str(worlds / "0"), **difference) for difference in differences.values()]
    found = dict(zip(differences, ends_of(trials, here), strict=True))
    assert not (here / "run").exists()
    for name, each in found.items():
        print(f"{name}: {each.codes}, {each.seconds:.1f} s: {each.last[0]}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(f"config.{field}" for field in FIELDS), *COMMANDS, *FILES])
def test_both_end_and_name_the_difference(ends, name):
    end = ends[name]
    assert end.codes == [3 if name in FILES else 2] * 2, end.said
    for text, last in zip(end.said, end.last, strict=True):
        assert f"process 1 on {socket.gethostname()} has {name}=" in last and ", process 0 has " in last
        assert "Traceback" not in text and "stack trace" not in text and "SIGABRT" not in text
