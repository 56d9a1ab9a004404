"""Fixtures that several rooms share: tiny models and a tiny run, made once per session."""

import copy
import hashlib
import json
import os
import pathlib
import platform
import runpy
import shutil
import tempfile
from dataclasses import asdict

import filelock
import jax
import jaxlib
import pytest

from mossa_jax.processes.stop import Stop
from mossa_jax.run import pipeline
from mossa_jax.run.analyse import factors, layers, merged, stages, weights
from tests.support.paths import ROOT, SHARED
from tests.support.run_folders import rewrite
from tests.support.tiny_llama import Tiny, write_adapter, write_config, write_model, write_tasks


def pytest_configure(config):
    """Shares compiled programs among tests, workers and sessions; the user's own cache is left alone.

    XLA's programs for CPUs depend on the processor, so each kind of processor has a folder of its own.
    """
    if not hasattr(config, "workerinput"):  # the workers of pytest-xdist inherit the environment
        config.session_folder = tempfile.TemporaryDirectory(prefix="mossa-tests-")
        os.environ["MOSSA_TESTS"] = config.session_folder.name
    os.environ["MOSSA_CACHE"] = f"{os.environ['MOSSA_TESTS']}/cache-{os.getpid()}"
    cache = {
        "jax_compilation_cache_dir": str(ROOT / ".cache/tests/compiled" / machine()),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in cache.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)  # for the processes that tests start


def pytest_unconfigure(config):
    if hasattr(config, "session_folder"):
        config.session_folder.cleanup()


def machine() -> str:
    """Names what a compiled program depends on: the version of jaxlib and the processor."""
    info = pathlib.Path("/proc/cpuinfo")
    kinds = ("model name", "flags", "Features", "CPU part")
    lines = sorted({line for line in info.read_text().splitlines() if line.startswith(kinds)}) if info.exists() else []
    processor = hashlib.sha256("\n".join([platform.machine(), *lines]).encode()).hexdigest()[:12]
    return f"jaxlib-{jaxlib.__version__}-{processor}"


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    """Three blocks, grouped queries, a head of its own."""
    return write_model(tmp_path_factory.mktemp("models") / "untied", seed=1)


@pytest.fixture(scope="session")
def tiny_tied(tmp_path_factory) -> Tiny:
    """The same shape with the embedding as its head."""
    return write_model(tmp_path_factory.mktemp("models") / "tied", seed=2, tied=True)


@pytest.fixture(scope="session")
def tiny_adapters(tiny, tmp_path_factory) -> list[tuple[pathlib.Path, object]]:
    """Two adapters by peft on `tiny`, of different targets and ranks: (folder, torch model)."""
    folder = tmp_path_factory.mktemp("adapters")
    every = write_adapter(tiny.folder, folder / "every", seed=3)
    some = write_adapter(tiny.folder, folder / "some", seed=4, targets=("q_proj", "down_proj"), rank=2)
    return [(folder / "every", every), (folder / "some", some)]


@pytest.fixture(scope="session")
def tasks_folder(tmp_path_factory) -> pathlib.Path:
    """Three tasks x 24 training rows x 12 test rows."""
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="session")
def stories() -> pathlib.Path:
    """A trained model of 260 thousand parameters, where somebody laid it beside the repository."""
    folder = SHARED / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


@pytest.fixture(scope="session")
def tiny_config(tiny, tasks_folder) -> pathlib.Path:
    """A config file of a whole run on `tiny` and `tasks_folder`, written by one worker for all."""
    folder = pathlib.Path(os.environ["MOSSA_TESTS"]) / "tiny_run"
    with filelock.FileLock(f"{folder}.lock"):
        if not (folder / "tiny.py").exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_config(folder / "writing.py", tiny.folder, tasks_folder).rename(folder / "tiny.py")
    return folder / "tiny.py"


@pytest.fixture(scope="session")
def tiny_run(tiny_config) -> tuple[object, pathlib.Path]:
    """The finished run of that config, made by one worker for all: (config, run folder)."""
    folder = tiny_config.parent
    with filelock.FileLock(f"{folder}.lock"):
        if not (folder / "tiny").exists():
            (folder / "making").mkdir(parents=True, exist_ok=True)
            config = load_config(tiny_config)
            run_folder = pipeline.open_run(config, str(folder / "making/tiny"))
            try:
                pipeline.run_all(pipeline.Run(config, run_folder, Stop()))
            finally:
                run_folder.close()
            (folder / "making/tiny").rename(folder / "tiny")
    return load_config(tiny_config), folder / "tiny"


@pytest.fixture(scope="session")
def analysed_run(tiny_run) -> tuple[object, pathlib.Path]:
    """A copy of that run with the parts of similarities, layers and updates, made by one worker for all."""
    config, finished = copy.deepcopy(tiny_run[0]), tiny_run[1]
    folder = finished.parent / "analysed"
    chosen = [factors.ANALYSIS, layers.ANALYSIS, weights.ANALYSIS, merged.ANALYSIS]
    for analysis in chosen:
        setattr(config.analyse, analysis.name, True)
    with filelock.FileLock(f"{folder}.lock"):
        if not folder.exists():
            making = finished.parent / "making/analysed"
            shutil.copytree(finished, making, ignore=shutil.ignore_patterns(".lock", ".holder"))
            # Else these analyses would be a variant beside the run's own results.
            rewrite(making / "config.json", lambda record: record.update(json.loads(json.dumps(asdict(config)))))
            run_folder = pipeline.open_run(config, str(making))
            try:
                stages.analyse(pipeline.Run(config, run_folder, Stop()), chosen)
            finally:
                run_folder.close()
            making.rename(folder)
    return config, folder


def load_config(path: pathlib.Path) -> object:
    """The configuration that a config file gives."""
    return runpy.run_path(str(path))["get_config"]()
