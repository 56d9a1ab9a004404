"""The command `mossa`, the names of published configs, --help, and what a wheel puts where."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest


def run(root, *words, module="launch.mossa", **environment):
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=root, env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_it_lists_its_commands_and_the_published_configs(root):
    listed = run(root)
    assert listed.returncode == 0 and run(root, module="launch").stdout == listed.stdout
    names = (
        "run", "tasks", "tune", "compare", "report", "runs", "export", "plan", "bench_cka", "bench_load",
        "bench_device", "bench_token",
    )  # fmt: skip
    for name in (*names, "configs"):
        (line,) = [line for line in listed.stdout.splitlines() if line.startswith(f"  {name} ")]
        assert len(line.split()) > 4, line
    configs = run(root, "configs")
    assert {line.split()[0] for line in configs.stdout.splitlines()} == {
        path.stem for path in (root / "configs").glob("*.py")
    }


def test_help_names_every_flag_and_every_field(root):
    from mossa_jax.config import describe_fields

    said = run(root, "run", "--help")
    assert said.returncode == 0 and said.stdout.startswith("Runs the whole experiment")
    words = ["--config ", "--workdir ", "--profile ", "--step_timeout ", "--processes ", "--compile_cache "]
    words += [f"--config.{field.name} " for field in describe_fields()]
    assert all(f"  {word}" in said.stdout for word in words)
    assert said.stdout == run(root, "--help", module="launch.run").stdout
    export = run(root, "export", "--help").stdout
    assert "--adapter " in export and "--config" not in export and "(float32 | bfloat16; default float32)" in export


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "error: mossa nothing: no such command; there are run, "),
        (
            ["run", "--config=nothing", "--workdir=w"],
            "error: --config=nothing: no such file; published configs are demo",
        ),
        (["run", "--config", "demo", "--workdir=w", "--config.seed=-1"], "error: config.seed=-1: must be at least 0"),
        (["run", "--config=demo", "--workdir=w", "--config.dtype=int8"], "config.dtype='int8': must be one of float32"),
        (["tasks", "--config=configs/demo.py", "--nonsense"], "error: Unknown command line flag 'nonsense'"),
        (["run", "--config=demo"], "error: --workdir is not given"),
        (
            ["run", "--config=demo", "--config.tuning.rnak=4"],
            "error: --config.tuning.rnak: no such field; there is tuning.rank",
        ),
    ],
)
def test_a_refusal_is_one_line_and_exit_code_2(root, words, message):
    done = run(root, *words)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and message in done.stderr
    assert not (root / "w").exists()


def test_a_command_that_plots_nothing_runs_with_a_broken_plotting_backend(root, tmp_path):
    import numpy as np

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "1.npy", np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32))
    flags = [f"--states_{name}={tmp_path / name}" for name in ("a", "b")]
    done = run(root, "compare", *flags, f"--out={tmp_path / 'out.csv'}", MPLBACKEND="module://nothing.of.the.kind")
    assert done.returncode == 0 and (tmp_path / "out.csv").exists(), done.stderr


def test_the_package_and_a_config_import_nothing_heavy(root):
    code = (
        "import sys, mossa_jax, mossa_jax.config, launch.flags\n"
        "heavy = {'jax', 'numpy', 'pandas', 'matplotlib', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "try:\n    mossa_jax.nothing\nexcept AttributeError:\n    print(callable(mossa_jax.cka))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n", done.stderr


def test_a_wheel_puts_the_package_alone_among_the_installed_packages(root, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("mossa_jax", "launch", "configs"):
        shutil.copytree(root / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    done = subprocess.run([*build, str(tmp_path), str(source)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
        (entry_points,) = [name for name in files if name.endswith("entry_points.txt")]
        assert "mossa = mossa_jax.launch.mossa:main" in archive.read(entry_points).decode()
    assert {name.split("/")[0] for name in files} == {"mossa_jax", "mossa_jax-0.1.0.dist-info"}
    package = [path for path in (root / "mossa_jax").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    commands = [*(root / "launch").glob("*.py"), *(root / "configs").glob("*.py")]
    assert {str(path.relative_to(root)) for path in package} <= files
    assert {f"mossa_jax/{path.relative_to(root)}" for path in commands} <= files
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    listed = run(elsewhere, "configs", module="mossa_jax.launch.mossa", PYTHONPATH=str(installed))
    assert listed.returncode == 0 and "demo " in listed.stdout, listed.stderr
