"""Ways to a configuration on the command line: run folders, files, overrides, sweeps; and every slip in one line."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from mossa_jax.config import Config, config_from_data, config_to_data, load_config
from tests.conftest import load_config as config_of

SWEEP = "from mossa_jax.config import Config, sweep\ndef get_sweep():\n    return sweep(Config(), seed=(0, 1))\n"

# Imports once, then parses each command line in a child of its own, as the command does; prints what it says.
HARNESS = """
import json, os, runpy, sys
import launch.flags

for module, *words in json.loads(sys.argv[1]):
    out, write = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(write, 1)
        os.dup2(write, 2)
        sys.argv = [module, *words]
        code = 99
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code or 0
        sys.stdout.flush()
        heavy = {"jax", "pandas", "numpy"} & set(sys.modules)
        os.write(write, f"\\n{code} {sorted(heavy)}".encode())
        os._exit(0)
    os.close(write)
    said = b""
    while part := os.read(out, 65536):
        said += part
    os.close(out)
    os.waitpid(child, 0)
    text, _, last = said.decode().rpartition("\\n")
    print(json.dumps([int(last.split()[0]), text, last.split(" ", 1)[1]]))
"""


def told(root, commands):
    """(exit code, what was said, heavy libraries that were imported) of each command."""
    done = subprocess.run(
        [sys.executable, "-c", HARNESS, json.dumps([[f"launch.{name}", *words] for name, *words in commands])],
        cwd=root, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def here(tmp_path):
    """A run folder with a variant, a sweep, its folder, files of overrides, and things that are none of these."""
    files = {
        "run/config.json": json.dumps(config_to_data(Config(name="r", seed=5)) | {"results_format": 3}),
        "run/variants/compare.pool=mean/config.json": '{"name": "r", "seed": 5, "compare": {"pool": "mean"}}',
        "torn/config.json": '{"se',
        "sweep/sweep.json": "{}",
        "sweep.py": SWEEP,
        "good.toml": "seed = 7\n[tuning]\nrank = 16\n",
        "field.toml": "tuning.rnak = 3\n",
        "low.toml": "tuning.rank = 0\n",
        "list.json": "[1]",
        "empty/x": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_print_config_shows_what_would_run_as_json_that_config_takes(root, here):
    run = f"--workdir={here / 'run'}"
    commands = [
        ["run", "--config=demo", "--print_config"],
        ["tasks", "--config=demo", "--print_config", "--config.seed=3"],
        ["report", run, "--print_config"],
        ["tune", run, "--print_config", "--config.tuning.rank=3"],
        ["run", f"--config={here / 'run'}", "--print_config", f"--overrides={here / 'good.toml'}"],
        ["run", "--config=demo", "--print_config", f"--overrides={here / 'good.toml'}", "--config.seed=9"],
        ["report", f"--workdir={here / 'run/variants/compare.pool=mean'}", "--print_config"],
        ["run", f"--config={here / 'sweep.py'}:seed=1", "--print_config"],
    ]
    answers = told(root, commands)
    assert [(code, heavy) for code, _, heavy in answers] == [(0, "[]")] * len(commands)
    configs = [config_from_data(json.loads(text), "printed") for _, text, _ in answers]
    assert configs[0] == load_config("demo")
    assert (configs[1].seed, configs[1].name) == (3, "demo")
    assert configs[2] == Config(name="r", seed=5)
    assert (configs[3].tuning.rank, configs[3].seed) == (3, 5)
    assert (configs[4].tuning.rank, configs[4].seed, configs[4].name) == (16, 7, "r")
    assert (configs[5].tuning.rank, configs[5].seed) == (16, 9)
    assert (configs[6].compare.pool, configs[6].seed) == ("mean", 5)
    assert configs[7] == Config(name="run seed=1", seed=1)


def test_the_folder_of_a_variant_stands_for_its_run_folder_however_it_is_written(here, monkeypatch):
    from launch.config_source import check_takeover

    variant = here / "run/variants/compare.pool=mean"
    for place, name in (
        (here, str(variant)),
        (here, f"{variant}/"),
        (variant, "."),
        (here / "run/variants", variant.name),
    ):
        monkeypatch.chdir(place)
        assert check_takeover(name, "elsewhere") == str(here / "run")
    assert check_takeover(f"file://{variant}", None) == f"file://{here / 'run'}"


def test_overrides_reach_every_run_of_a_sweep_and_its_json_is_a_sweep_again(root, here):
    words = ["--print_config", "--config.compare.pool=mean", f"--overrides={here / 'rank.toml'}"]
    (here / "rank.toml").write_text("tuning.rank = 16\n")
    ((code, text, _),) = told(root, [["run", f"--config={here / 'sweep.py'}", *words]])
    assert code == 0
    runs = json.loads(text)["sweep"]
    assert [(run["seed"], run["compare"]["pool"], run["tuning"]["rank"]) for run in runs.values()] == [
        (0, "mean", 16),
        (1, "mean", 16),
    ]
    (here / "again.json").write_text(text)
    ((code, again, _),) = told(root, [["run", "--print_config", f"--config={here / 'again.json'}"]])
    assert code == 0 and again == text


def test_every_slip_is_one_line_and_exit_code_2_before_anything_heavy_is_imported(root, here):
    new, demo = f"--workdir={here / 'new'}", "--config=demo"
    slips = [
        (["run", f"--config={here / 'list.json'}", new], "list.json: holds a list"),
        (["run", f"--config={here / 'empty'}", new], "a folder without config.json"),
        (["run", f"--config={here / 'sweep'}", new], "the folder of a sweep"),
        (["run", "--config=", new], "--config=: names nothing"),
        (["report", f"--workdir={here / 'nowhere'}"], "nowhere: no such folder; give --config=FILE"),
        (["tune", f"--workdir={here / 'empty'}"], "empty: has no config.json, so it is no run folder; give --config"),
        (["report", f"--workdir={here / 'torn'}"], f"error: {here / 'torn/config.json'}: is not valid JSON"),
        (["report", f"--workdir={here / 'sweep'}"], "is the folder of a sweep; name one of its runs"),
        (["report", f"--workdir={here / 'list.json'}"], "is a file, and no run folder"),
        (
            ["run", demo, f"--workdir={here / 'run/variants/compare.pool=mean'}"],
            "leave out --config",
        ),
        (["run"], "--workdir is not given"),
        (["run", "--print_config"], "--config is not given"),
        (["tasks", "--print_config"], "--config is not given"),
        (["plan", "--print_config"], "--config is not given"),
        (["run", "--print_config=maybe", demo], "--print_config=maybe: must be true or false"),
        (
            ["run", demo, new, f"--overrides={here / 'field.toml'}"],
            "field.toml: tuning.rnak: no such field; did you mean",
        ),
        (["run", demo, new, f"--overrides={here / 'low.toml'}"], "low.toml: config.tuning.rank=0: must be at least 1"),
        (["run", demo, new, f"--overrides={here / 'list.json'}"], "must hold an object of fields"),
        (["run", demo, new, f"--overrides={here / 'sweep.py'}"], "must be a TOML or JSON file"),
        (["plan", "--shape=llama2-7b", f"--overrides={here / 'good.toml'}"], "there is no --config"),
        (["run", demo, new, f"--from={here / 'nowhere'}"], "--from="),
        (["run", demo, f"--workdir={here / 'run'}", f"--from={here / 'run'}/"], "is --workdir itself"),
        (["run", demo, new, "--from="], "--from='' is not a path"),
        (["report", demo, new, f"--from={here / 'run'}"], "Unknown command line flag 'from'"),
        (["tune", demo, new, "--stale=no"], "--stale=no: value should be one of <refuse|retrain|keep>"),
        (["run", f"--config={here / 'sweep.py'}", new, "--config.seed=4"], "config.seed: the sweep varies it"),
        (
            ["run", f"--config={here / 'sweep.py'}", new, "--config.tuning.rank=0"],
            "the run seed=0 of the sweep",
        ),
        (["tasks", f"--config={here / 'sweep.py'}"], "a sweep of 2 runs; name one of them"),
    ]
    for (words, expected), (code, said, heavy) in zip(slips, told(root, [words for words, _ in slips]), strict=True):
        assert code == 2 and heavy == "[]" and said.count("\n") == 1, (words, said)
        assert said.startswith("error: ") and expected in said, (words, said)
    assert not (here / "new").exists()


def test_a_report_needs_nothing_but_the_run_folder(root, tiny_run, tmp_path):
    """The page is written again, and all tables are those that the run's own configuration gave."""
    folder = shutil.copytree(tiny_run[1], tmp_path / "run", ignore=shutil.ignore_patterns(".*"))
    for name in ("results/findings.json", "results/scores.csv", "report.html"):
        (folder / name).unlink()
    done = subprocess.run(
        [sys.executable, "-m", "launch.report", f"--workdir={folder}"],
        cwd=root, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"Report: {folder / 'report.html'}" in done.stdout
    assert (folder / "report.html").stat().st_size > 100_000
    tables = [path for path in tiny_run[1].glob("results/*") if path.is_file()]
    assert len(tables) > 6
    for path in tables:
        assert (folder / "results" / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_config_of_a_run_folder_is_the_one_that_the_run_had(tiny_config, tiny_run):
    assert load_config(tiny_run[1]) == config_of(tiny_config)
