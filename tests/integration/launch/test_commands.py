"""Commands: every refusal is one line with one exit code; each command runs in its own process."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import filelock
import pandas as pd
import pytest

from mossa_jax.files.run_folder import RESULTS
from tests.conftest import load_config
from tests.support.tiny_llama import random_texts, write_config, write_tasks

# Imports once, then runs every command in a forked child with its own streams; prints the exit code of each.
HARNESS = """
import json, os, runpy, sys
import launch.flags, mossa_jax.existing.compare, mossa_jax.run.pipeline
from transformers import AutoTokenizer

for number, (module, *arguments) in enumerate(json.loads(sys.argv[1])):
    child = os.fork()
    if not child:
        for stream in (1, 2):
            os.dup2(os.open(f"{sys.argv[2]}/{number}.{stream}", os.O_WRONLY | os.O_CREAT), stream)
        sys.argv = [module, *arguments]
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code or 0)  # without the slow take-down of a large process
        os._exit(99)  # no command returns
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def environment(root):
    return {**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(root)}


@pytest.fixture(scope="module")
def results(root, tiny, tiny_adapters, tiny_config, tasks_folder, tmp_path_factory):
    """Returns name -> (exit code, standard error) of every command below."""
    here = tmp_path_factory.mktemp("commands")
    pickled = shutil.copytree(tiny.folder, here / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    broken, empty = write_tasks(here / "broken"), write_tasks(here / "empty")
    lines = (broken / "train/copy_first.jsonl").read_text().splitlines()
    lines[6] = lines[6][:-5]
    (broken / "train/copy_first.jsonl").write_text("\n".join(lines))
    (empty / "test/last_word.jsonl").write_text("\n")
    (here / "prompts.jsonl").write_text("".join(json.dumps({"inputs": t}) + "\n" for t in random_texts(6)))
    items = [{"inputs": text, "item": number // 2} for number, text in enumerate(random_texts(8, seed=1))]
    (here / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in items))
    (here / "item.jsonl").write_text('{"inputs": "a", "item": [1]}\n')
    (here / "torn.jsonl").write_text('{"inputs": "a"}\n{"input": "b"}\n')
    (here / "syntax.py").write_text("def get_config(:\n")
    (here / "held").mkdir()
    lock = filelock.FileLock(str(here / "held/.lock"))
    lock.acquire(timeout=0)

    def run(config, workdir, *more):
        return ["launch.run", f"--config={config}", f"--workdir={here / workdir}", *more]

    def compare(**changes):
        given = {"base": tiny.folder, "experimental": "pretrained", "control": tiny.folder, "out": here / "x.csv"}
        given = given | {"prompts": here / "prompts.jsonl"} | changes
        return ["launch.compare", *[f"--{name}={value}" for name, value in given.items()]]

    missing = write_config(here / "missing.py", here / "nowhere", tasks_folder)
    other = dataclasses.asdict(load_config(tiny_config)) | {"results_format": RESULTS}
    (here / "other").mkdir()
    (here / "other/config.json").write_text(json.dumps(other))
    commands = {
        "unknown field": run(tiny_config, "w", "--config.tuning.nonsense=1"),
        "wrong type": run(tiny_config, "w", "--config.tuning.rank=many"),
        "bad value": run(tiny_config, "w", "--config.compare.pool=first"),
        "unknown flag": run(tiny_config, "w", "--nonsense=1"),
        "stray word": run(tiny_config, "w", "extra"),
        "bad profile": run(tiny_config, "w", "--profile=5:"),
        **{
            f"hours {hours}": run(tiny_config, "w", f"--max_hours={hours}")
            for hours in ("0", "-1", "nan", "inf", "1e9", "two", "", "1h", "1,5")
        },
        "hours of a comparison": compare(max_hours=1),
        "no config file": run(here / "none.py", "w"),
        "config with a slip": run(here / "syntax.py", "w"),
        "no workdir": ["launch.run", f"--config={tiny_config}"],
        "no such platform": run(tiny_config, "w", "--platform=gpu"),
        "unknown platform": run(tiny_config, "w", "--platform=npu"),
        "no cluster": run(tiny_config, "w", "--processes=0"),
        "too many devices": run(tiny_config, "v", "--config.mesh.fsdp=3"),
        "missing model": run(missing, "missing"),
        "another config": run(tiny_config, "other", "--config.seed=7"),
        "in use": run(tiny_config, "held"),
        "pickled model": run(write_config(here / "pickled.py", pickled, tasks_folder), "pickled-run"),
        "broken line": run(write_config(here / "broken.py", tiny.folder, broken), "broken-run"),
        "no rows": run(write_config(here / "empty.py", tiny.folder, empty), "empty-run"),
        "unknown task": run(tiny_config, "u", "--config.tasks.held_out=('nope',)"),
        "report of nothing": ["launch.report", *run(tiny_config, "fresh")[1:]],
        "compare: pool": compare(pool="first"),
        "compare: pickled": compare(base=pickled),
        "compare: no prompts file": compare(prompts=here / "none.jsonl"),
        "compare: prompts line": compare(prompts=here / "torn.jsonl"),
        "compare: stray permutations": compare(pool="all", permutations=9),
        "compare: stray items": compare(pool="all", items=here / "items.txt"),
        "compare: one file twice": compare(prompts=f"{here / 'prompts.jsonl'},{here / 'prompts.jsonl'}"),
        "compare: items of several": compare(
            prompts=f"{here / 'prompts.jsonl'},{here / 'more.jsonl'}", items=here / "items.txt"
        ),
        "compare: no control": compare(control=""),
        "compare: options of models": [
            "launch.compare",
            "--states_a=a",
            "--states_b=b",
            "--truncation=paper",
            f"--out={here / 'x.csv'}",
        ],
        "compare: guess without texts": [
            "launch.compare",
            "--states_a=a",
            "--states_b=b",
            "--items=guess",
            f"--out={here / 'x.csv'}",
        ],
        "compare: item": compare(prompts=here / "item.jsonl"),
        "compare: several": compare(
            control=tiny_adapters[0][0],
            out=here / "out/several.csv",
            permutations=19,
            max_tokens=12,
            prompts=f"{here / 'prompts.jsonl'},{here / 'more.jsonl'}",
        ),
        "compare": compare(control=tiny_adapters[0][0], out=here / "out/table.csv", max_tokens=12, pool="mean"),
    }
    done = subprocess.run(
        [sys.executable, "-c", HARNESS, json.dumps(list(commands.values())), str(here)],
        cwd=root, env=environment(root), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    lock.release()
    assert done.returncode == 0, done.stderr[-2000:]
    codes = [int(line) for line in done.stdout.split()]
    errors = [(here / f"{number}.2").read_text() for number in range(len(commands))]
    assert not (here / "w").exists()  # a refused command line leaves no folder
    found = {name: pair for name, *pair in zip(commands, codes, errors, strict=True)}
    return found | {"table": here / "out/table.csv", "several": here / "out/several.csv"}


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("unknown field", 2, ["nonsense"]),
        ("wrong type", 2, ["rank"]),
        ("bad value", 2, ["config.compare.pool='first'", "mean"]),
        ("unknown flag", 2, ["nonsense"]),
        ("stray word", 2, ["'extra'"]),
        ("bad profile", 2, ["--profile=5:", "20:5"]),
        *(
            (f"hours {hours}", 2, [f"--max_hours={hours}: give hours above 0"])
            for hours in ("0", "-1", "nan", "inf", "1e9", "two", "", "1h", "1,5")
        ),
        ("hours of a comparison", 2, ["max_hours"]),
        ("no config file", 2, ["none.py"]),
        ("config with a slip", 2, ["--config"]),
        ("no workdir", 2, ["--workdir"]),
        ("no such platform", 2, ["JAX cannot use 'gpu'", "--platform", "README"]),
        ("unknown platform", 2, ["--platform", "npu"]),
        ("no cluster", 2, ["--processes=0", "--coordinator and --process", "--processes=1"]),
        ("too many devices", 2, ["config.mesh", "1 device"]),
        ("missing model", 3, ["nowhere", "does not exist"]),
        ("another config", 2, ["--workdir", "seed was 0, now 7"]),
        ("in use", 2, ["--workdir", "in use"]),
        ("pickled model", 3, ["pytorch_model.bin", "safetensors"]),
        ("broken line", 3, ["copy_first.jsonl:7", "JSON"]),
        ("no rows", 3, ["last_word.jsonl:1:", "no usable row"]),
        ("unknown task", 2, ["'nope'", "copy_first"]),
        ("report of nothing", 3, ["data.json", "launch.run"]),
        ("compare: pool", 2, ["first"]),
        ("compare: pickled", 3, ["pytorch_model.bin"]),
        ("compare: no prompts file", 3, ["none.jsonl"]),
        ("compare: stray permutations", 2, ["--permutations=9", "--pool=all"]),
        ("compare: stray items", 2, ["--items", "--pool=all"]),
        ("compare: one file twice", 2, ["--prompts", "once"]),
        ("compare: items of several", 2, ["--items", "one file"]),
        ("compare: no control", 2, ["--control=", "not a path"]),
        ("compare: options of models", 2, ["--truncation", "--states_a"]),
        ("compare: guess without texts", 2, ["--items=guess"]),
        ("compare: item", 3, ["item.jsonl:1", "'item'"]),
        ("compare: prompts line", 3, ["torn.jsonl:2", "'inputs'"]),
    ],
)
def test_a_refusal_is_one_line_and_one_code(results, name, code, words):
    found, error = results[name]
    lines = [line for line in error.splitlines() if not re.match(r"\d\d:\d\d:\d\d ", line)]  # progress till then
    assert found == code, error
    assert len(lines) == 1 and lines[0].startswith("error: "), error
    assert all(word in lines[0] for word in words), lines[0]


def test_a_refusal_before_the_data_are_read_leaves_no_folder(root, tmp_path):
    words = ["launch.run", "--config=demo", f"--workdir={tmp_path / 'new'}", "--config.base=/nowhere"]
    done = subprocess.run([sys.executable, "-m", *words], cwd=root, capture_output=True, text=True)
    assert done.returncode == 3 and "/nowhere" in done.stderr and not list(tmp_path.iterdir())


def test_compare_reads_several_files_of_prompts(results):
    code, error = results["compare: several"]
    assert code == 0, error
    # One warning for both files, which names them.
    (warning,) = [line for line in error.splitlines() if "truncation" in line]
    assert "4 of 6 prompts of" in warning and "4 of 8 prompts of" in warning and "more.jsonl" in warning
    table = pd.read_csv(results["several"])
    assert list(table.columns) == [
        "prompts", "layer", "estimator", "cka", "low", "high", "n", "null_mean", "p", "q", "undefined",
    ]  # fmt: skip
    assert [name.rsplit("/")[-1] for name in table.prompts.unique()] == ["prompts.jsonl", "more.jsonl"]
    assert set(table[table.prompts.str.endswith("more.jsonl")].n) == {8}


def test_compare_writes_its_table(results):
    code, error = results["compare"]
    assert code == 0 and "error" not in error and "Traceback" not in error
    table = pd.read_csv(results["table"])
    assert list(table.columns) == ["layer", "estimator", "cka", "low", "high", "n", "undefined"]
    assert table.layer.tolist() == [name for name in ("embed", "1", "2", "3", "final_norm") for _ in range(2)]
    assert set(table.n) == {6} and table.cka.notna().all()
