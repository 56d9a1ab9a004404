"""The cache: folders are built once, checked when they are read back, and nothing of a killed process stays."""

import hashlib
import logging
import os
import pathlib
import shutil
import threading

import filelock
import numpy as np
import pytest

from mossa_jax.files import leftovers
from mossa_jax.files.cache import SUMS, build_once, map_array
from mossa_jax.files.paths import scratch


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOSSA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Builder:
    """Writes two files, one in a folder of its own, and counts how often."""

    def __init__(self):
        self.calls = 0

    def __call__(self, folder):
        self.calls += 1
        (folder / "file").write_text("whole")
        (folder / "below").mkdir()
        (folder / "below/numbers").write_bytes(np.arange(5, dtype=np.int32).tobytes())


def test_a_folder_is_built_once_with_digests_that_others_can_check(cache):
    build = Builder()
    assert build_once("kind/name", build) == build_once("kind/name", build) == cache / "kind/name"
    assert build.calls == 1 and [path.name for path in (cache / "kind").iterdir()] == ["name"]
    # As `sha256sum` writes it: 64 hex digits, two spaces, the path.
    lines = [line.split("  ") for line in (cache / "kind/name" / SUMS).read_text().splitlines()]
    assert [path for _, path in lines] == ["below/numbers", "file"]
    assert all(
        hashlib.sha256((cache / "kind/name" / path).read_bytes()).hexdigest() == digest for digest, path in lines
    )


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def to_folder(path):
    path.unlink()
    path.mkdir()


def to_pipe(path):
    path.unlink()
    os.mkfifo(path)


DAMAGE = {
    "flipped": flip,
    "emptied": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "deleted": pathlib.Path.unlink,
    "a folder": to_folder,
    "a pipe": to_pipe,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["file", "below/numbers", SUMS])
def test_a_damaged_folder_is_built_again_with_one_line(cache, caplog, damage, name):
    caplog.set_level(logging.INFO, "mossa_jax")
    build = Builder()
    folder = build_once("kind/name", build)
    whole = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    DAMAGE[damage](folder / name)
    assert build_once("kind/name", build) == folder and build.calls == 2
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == whole
    assert len(caplog.messages) == 1 and str(folder) in caplog.messages[0]
    # A changed digest looks like a changed file.
    assert name in caplog.messages[0] or name == SUMS
    assert build_once("kind/name", build) == folder and build.calls == 2 and len(caplog.messages) == 1


def test_a_foreign_file_two_swapped_ones_and_a_file_in_the_folders_place_are_damage(cache):
    build = Builder()
    folder = build_once("kind/name", build)
    (folder / "foreign").write_text("x")
    assert not (build_once("kind/name", build) / "foreign").exists()
    (folder / "file").rename(folder / "aside")
    (folder / "below/numbers").rename(folder / "file")
    (folder / "aside").rename(folder / "below/numbers")
    assert (build_once("kind/name", build) / "file").read_text() == "whole"
    shutil.rmtree(folder)
    folder.write_text("no folder")
    assert (build_once("kind/name", build) / "file").read_text() == "whole" and build.calls == 4


def test_a_check_of_ones_own_decides_instead(cache):
    build, faults = Builder(), ["is too old", ""]
    build_once("kind/name", build, lambda folder: "")
    (cache / "kind/name/file").write_text("changed")
    build_once("kind/name", build, lambda folder: "")
    assert build.calls == 1
    # It is asked a second time once the lock is held.
    build_once("kind/name", build, lambda folder: faults[0])
    assert build.calls == 2
    build_once("kind/name", build, lambda folder: faults.pop(0))
    assert build.calls == 2


def test_threads_that_ask_together_get_one_folder(cache):
    build, folders = Builder(), []
    threads = [threading.Thread(target=lambda: folders.append(build_once("kind/name", build))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders == [cache / "kind/name"] * 8 and build.calls == 1


def test_what_killed_builders_left_is_removed_and_what_live_ones_hold_is_not(cache, monkeypatch):
    monkeypatch.setattr(leftovers, "_swept", set())
    kind = cache / "kind"
    for name in (".dead.77.tmp", ".a.b.12.tmp", ".alive.99.tmp"):
        (kind / name / "part").mkdir(parents=True)
    (kind / ".dead.lock").touch()
    (kind / ".old.lock").touch()
    with filelock.FileLock(str(kind / ".alive.lock")):
        build_once("kind/name", Builder())
        assert sorted(path.name for path in kind.iterdir()) == [".alive.99.tmp", ".alive.lock", "name"]


def test_a_scratch_folder_ends_with_its_block_and_after_a_kill_with_the_next_process(cache, monkeypatch):
    killed = cache / "scratch/.0123.77.tmp/part"
    killed.mkdir(parents=True)
    monkeypatch.setattr(leftovers, "_swept", set())
    with scratch() as folder, scratch() as other:
        (folder / "file").write_text("x")
        monkeypatch.setattr(leftovers, "_swept", set())
        leftovers.sweep(cache / "scratch")
        assert folder.exists() and other.exists() and folder != other and not killed.exists()
    assert not list((cache / "scratch").iterdir())


def test_a_builder_that_fails_leaves_no_folder(cache):
    def fail(folder):
        (folder / "file").write_text("half")
        raise ValueError("no rows")

    with pytest.raises(ValueError, match="no rows"):
        build_once("kind/name", fail)
    assert not list((cache / "kind").iterdir())
    assert (build_once("kind/name", Builder()) / "file").read_text() == "whole"


def test_a_mapped_file_outlives_its_name_without_a_descriptor(tmp_path):
    numbers = np.arange(100_000, dtype=np.int32)
    numbers.tofile(tmp_path / "numbers")
    before = len(os.listdir("/dev/fd"))
    mapped = [map_array(tmp_path / "numbers", np.int32) for _ in range(20)]
    assert len(os.listdir("/dev/fd")) == before
    (tmp_path / "numbers").unlink()
    assert all(np.array_equal(array, numbers) and not array.flags.writeable for array in mapped)
    (tmp_path / "empty").touch()
    assert map_array(tmp_path / "empty", np.int32).shape == (0,)
