"""A disk that is full at different moments of a run: exit code 6 in one line, nothing half, and on from there."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

SIZE = 64 << 20


@pytest.fixture(scope="module")
def command(root, tiny_config, tmp_path_factory):
    """Runs one of the commands on a run folder; returns exit code and standard error."""
    here = tmp_path_factory.mktemp("machine")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root), "MOSSA_CACHE": str(here / "cache")}

    def run(name: str, workdir, *more: str) -> tuple[int, str]:
        flags = [f"--config={tiny_config}", f"--workdir={workdir}", f"--compile_cache={here / 'compiled'}", *more]
        flags = [sys.executable, "-m", f"launch.{name}", *flags]
        done = subprocess.run(flags, cwd=root, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    return run


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    """The folder of a run that always had room."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    code, said = command("run", folder)
    assert code == 0, said
    return folder


@pytest.fixture
def disk(tmp_path):
    """A disk of 64 MiB, empty."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def leave(disk: pathlib.Path, room: int) -> pathlib.Path:
    """Fills the disk up to so many bytes; returns the file that does."""
    state = os.statvfs(disk)
    with (disk / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_frsize - room)
    return disk / "ballast"


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


KIB = 1 << 10
# What of a finished run is there before, the command, the room that it finds, and what it then cannot write.
MOMENTS = {
    "checkpoint": (None, "run", 48 * KIB, "checkpoints/"),
    "export": (("adapters", "checkpoints"), "run", 8 * KIB, "adapters/"),
    "table": (("results/cka.parquet", "results/cka.csv"), "run", 8 * KIB, "results/cka.parquet"),
    "page": ((), "report", 1024 * KIB, "report.html"),
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(command, whole, disk, moment):
    gone, name, room, what = MOMENTS[moment]
    run = disk / "run"
    more = ("--config.tuning.checkpoint_every=2",) if gone is None else ()
    if gone is not None:
        shutil.copytree(whole, run)
        for part in gone:
            shutil.rmtree(run / part) if (run / part).is_dir() else (run / part).unlink()
    before = contents(run)
    ballast = leave(disk, room)
    code, said = command(name, run, *more)
    *_, last = said.splitlines()
    assert code == 6 and "Traceback" not in said and last.startswith("error: no space left"), said
    assert what in last and sum(line.startswith("error: ") for line in said.splitlines()) == 1
    after = contents(run)
    growing = ("environment.json", "metrics.jsonl", "log.txt", ".holder", "SHA256SUMS", "results/SHA256SUMS")
    rewritten = ("figures/", "results/") if name == "report" else ()  # by what came before, with the same content
    for file in before.keys() - set(growing):
        assert after[file] == before[file], file
    new = {file for file in after.keys() - before.keys() if not file.startswith(rewritten or "config.json")}
    assert not [file for file in new if file.endswith((".tmp", ".part"))], new
    assert not [file for file in new if what in file and "checkpoint" not in what], new
    ballast.unlink()
    code, said = command("run", run, *more)
    assert code == 0, said
    curves = [] if more else ["results/curves.csv"]  # a loss is logged whenever a step is saved
    for file in ("results/cka.csv", "results/scores.csv", *curves):
        assert (run / file).read_bytes() == (whole / file).read_bytes(), file
    assert not list(run.rglob("*.tmp"))
