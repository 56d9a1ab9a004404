"""Whole runs in an object store, on a machine whose own disk is wiped whenever a run ends."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from mossa_jax.files.paths import as_path
from mossa_jax.files.write import read_parquet
from tests.support import object_server
from tests.support.demo import SMALL
from tests.support.paths import ROOT
from tests.support.processes import free_address, together

# A run that is killed leaves its claim; waiting for it is shortened here.
START = """
import runpy, sys
from tests.support import object_server
from mossa_jax.files import lease
lease.BEAT, lease.PATIENCE, lease.SETTLE = 0.5, 3.0, 0.2
runpy.run_module("launch.run", run_name="__main__", alter_sys=True)
"""
KILLS = 4


def command(workdir, *more) -> list[str]:
    return [sys.executable, "-c", START, "--config=configs/demo.py", f"--workdir={workdir}", *SMALL, *more]


@pytest.fixture(scope="module")
def store():
    """(store, environment of a process that finds it)."""
    with object_server.serving() as (store, address):
        paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])}
        yield store, os.environ | object_server.environment(address) | paths


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    """(folder of a run on a disk that was left alone, seconds that it took)."""
    folder, start = tmp_path_factory.mktemp("whole"), time.monotonic()
    environment = store[1] | {"MOSSA_CACHE": str(folder / "cache")}
    subprocess.run(command(folder / "run"), cwd=ROOT, env=environment, check=True)
    return folder / "run", time.monotonic() - start


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["objects", "gs"])
def test_killed_runs_end_in_the_table_of_a_run_on_a_disk(store, whole, tmp_path, scheme):
    if scheme == "gs":
        pytest.importorskip("gcsfs")
    (store, environment), (folder, seconds) = store, whole
    cache = tmp_path / "cache"
    environment = environment | {"MOSSA_CACHE": str(cache)}
    rng, codes = random.Random(scheme), []
    for _ in range(KILLS):
        process = subprocess.Popen(command(f"{scheme}://bucket/{scheme}"), cwd=ROOT, env=environment)
        try:
            process.wait(timeout=rng.uniform(0.3, 0.6) * seconds)  # the later ones have less left to do
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        codes.append(process.wait())
        shutil.rmtree(cache, ignore_errors=True)
    assert set(codes) <= {0, -signal.SIGKILL} and any(codes)
    subprocess.run(command(f"{scheme}://bucket/{scheme}"), cwd=ROOT, env=environment, check=True)
    found = store.files("bucket", f"{scheme}/")
    for name in ("results/cka.csv", "results/scores.csv", "results/curves.csv"):
        assert found[name] == (folder / name).read_bytes(), name
    here = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    unlike = {name for name in here ^ set(found) if not name.startswith("checkpoints/")}
    assert unlike == {".holder", ".lock"}
    page, other = found["report.html"].decode(), (folder / "report.html").read_text()
    figures = [part for part in other.split('"') if part.startswith("data:image/png")]
    assert len(figures) > 5 and all(figure in page for figure in figures)
    log = found["log.txt"].decode()
    assert "compare 4/4" in log and "report: " in log
    assert not [path for path in (cache / "steps").rglob("*") if path.is_file()]


@pytest.mark.slow
def test_two_processes_in_one_bucket(store, tiny_config, tiny_run, tmp_path, monkeypatch):
    """Orbax writes each process's part; process 0 writes all else; stopped once and gone on with."""
    pytest.importorskip("gcsfs")
    for name, value in store[1].items():
        monkeypatch.setenv(name, value)

    def commands():
        run, address = [sys.executable, "-m", "launch.run", f"--config={tiny_config}"], free_address()
        flags = ["--workdir=gs://bucket/two", "--compile_cache=gs://bucket/compiled", "--processes=2"]
        return [[*run, *flags, f"--coordinator={address}", f"--process={index}"] for index in range(2)]

    together(commands(), ROOT, 1, tmp_path)
    path = as_path("gs://bucket/two")
    written = {name for name in store[0].files("bucket", "two/") if "ocdbt.process_1" in name}
    assert written  # the other process wrote, too
    part = next(iter(path.glob("results/parts/cka/copy_first.*")))
    for lost in (path / "adapters/tuned/mossa.json", part, path / "results/cka.parquet"):
        lost.unlink()
    together(commands(), ROOT, 1, tmp_path)
    wanted, found = pd.read_parquet(tiny_run[1] / "results/cka.parquet"), read_parquet(path / "results/cka.parquet")
    pd.testing.assert_frame_equal(found, wanted, rtol=0, atol=1e-3)
    assert any(name.endswith("-cache.kept") for name in store[0].files("bucket", "compiled/"))
