"""What several rooms test with: tiny models, made once a session."""

import os
import pathlib
import runpy
import tempfile

import jax
import pytest

from mossa_jax.processes.stop import Stop
from mossa_jax.run import pipeline
from tests.support.paths import ROOT, SHARED
from tests.support.tiny_llama import Tiny, write_adapter, write_config, write_model, write_tasks


def pytest_configure(config):
    """Programs that several tests compile alike are compiled once a session; the user's own cache is left alone."""
    if not hasattr(config, "workerinput"):  # pytest-xdist's workers inherit the environment
        config.kept = tempfile.TemporaryDirectory(prefix="mossa-tests-")
        os.environ["MOSSA_TESTS"] = config.kept.name
    kept = os.environ["MOSSA_TESTS"]
    os.environ["MOSSA_CACHE"] = f"{kept}/cache-{os.getpid()}"
    jax.config.update("jax_compilation_cache_dir", f"{kept}/compiled")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def pytest_unconfigure(config):
    if hasattr(config, "kept"):
        config.kept.cleanup()


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
def tiny_config(tiny, tasks_folder, tmp_path_factory) -> pathlib.Path:
    """A config file of a whole run on `tiny` and `tasks_folder`."""
    return write_config(tmp_path_factory.mktemp("configs") / "tiny.py", tiny.folder, tasks_folder)


@pytest.fixture(scope="session")
def tiny_run(tiny_config, tmp_path_factory) -> tuple[object, pathlib.Path]:
    """The finished run of that config in this process: (config, run folder)."""
    config = runpy.run_path(str(tiny_config))["get_config"]()
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    run_folder = pipeline.open_run(config, str(workdir))
    try:
        pipeline.run_all(pipeline.Run(config, run_folder, Stop()))
    finally:
        run_folder.close()
    return config, workdir
