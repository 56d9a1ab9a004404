"""A whole run writes into its folder and the cache, and nowhere else: by strace where it is there, else by Python."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

# Written in the process, for machines without strace: what Python itself opens, creates, renames and deletes.
WATCH = """
import json, os, runpy, sys
written = set()
def place(path, folder):
    return os.path.abspath(path if folder == -1 else os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path))
def note(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        written.add(os.path.abspath(arguments[0]))
    elif event in ("os.mkdir", "os.remove"):
        # A tree is deleted by names within an open folder.
        written.add(place(arguments[0], arguments[-1]))
    elif event in ("os.rename", "os.link", "os.symlink", "os.truncate"):
        written.update(os.path.abspath(path) for path in arguments[:2] if isinstance(path, (str, os.PathLike)))
sys.addaudithook(note)
sys.argv[0] = "launch.run"
try:
    runpy.run_module("launch.run", run_name="__main__", alter_sys=True)
finally:
    json.dump(sorted(map(str, written)), os.fdopen(int(os.environ["REPORT"]), "w"))
"""
CALLS = "open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,truncate,mknod,mknodat"
DEVICES = ("/dev/", "/proc/", "/sys/", "pipe:", "anon_inode:")


def by_strace(command, here, environment):
    """Returns the paths that a command and its threads write, according to the kernel."""
    trace = here / "trace"
    strace = ["strace", "-f", "-qq", "-y", "-s", "4096", "-o", str(trace), "-e", f"trace={CALLS}"]
    subprocess.run(
        [*strace, *command], cwd=here / "cwd", env=environment, check=True, capture_output=True, timeout=1500
    )
    paths = set()
    for line in trace.read_text(errors="replace").splitlines():
        call = re.match(r"\d+ +(\w+)\((.*)\) += (-?\d+)", line)
        if not call or call[3].startswith("-"):
            continue
        if call[1].startswith("open") and not re.search(r"O_WRONLY|O_RDWR|O_CREAT", call[2]):
            continue
        folders = re.findall(r"(?:AT_FDCWD|\d+)<([^>]*)>", call[2]) or [str(here / "cwd")]
        paths |= {
            os.path.normpath(os.path.join(folders[0], path)) for path in re.findall(r'"((?:[^"\\]|\\.)*)"', call[2])
        }
    return paths


def by_python(command, here, environment):
    """Returns the paths that a command writes, according to Python."""
    reading, writing = os.pipe()
    command = [sys.executable, "-c", WATCH, *command[3:]]
    environment = environment | {"REPORT": str(writing)}
    with open(reading) as report:
        subprocess.run(
            command,
            cwd=here / "cwd",
            env=environment,
            check=True,
            capture_output=True,
            timeout=1500,
            pass_fds=[writing],
        )
        os.close(writing)
        return set(json.load(report))


WAYS = {"strace": by_strace, "python": by_python}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_writes_nothing_outside_its_folder_and_the_cache(root, tiny_config, tmp_path, way):
    if way == "strace" and not shutil.which("strace"):
        pytest.skip("strace is not installed")
    for name in ("home", "cwd", "tmp", "cache"):
        (tmp_path / name).mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "tmp"),
        "MOSSA_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": str(root),
        "PYTHONDONTWRITEBYTECODE": "1",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-m", "launch.run", f"--config={tiny_config}", f"--workdir={tmp_path / 'run'}"]
    written = WAYS[way](command, tmp_path, environment)
    # In TMPDIR Python tries whether it can write, and deletes that file at once.
    allowed = tuple(f"{tmp_path / name}{end}" for name in ("run", "cache", "tmp") for end in ("", "/"))
    foreign = {path for path in written if not path.startswith(DEVICES) and not path.startswith(allowed)}
    # Python makes the parents of a path by trying from its end.
    assert not foreign - {str(tmp_path)}, sorted(foreign)
    assert any(path.startswith(str(tmp_path / "run")) for path in written)
    assert any(path.startswith(str(tmp_path / "cache")) for path in written)
    for name in ("home", "cwd", "tmp"):
        assert not list(pathlib.Path(tmp_path / name).rglob("*")), name
    leftovers = [path for path in tmp_path.rglob(".*") if path.suffix in (".tmp", ".lock") and path.name != ".lock"]
    assert not leftovers
