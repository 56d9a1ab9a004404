"""Entries of a folder that several processes share: complete, checked, within a limit, and never in the way."""

import errno
import os
import pathlib
import threading
import time

import pytest
from etils import epath

from mossa_jax.files.entries import Entries


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path / "all/one")


@pytest.fixture
def entries(folder):
    entries = Entries("things", folder)
    entries.create()
    return entries


def files(folder):
    return sorted(path.name for path in pathlib.Path(folder).iterdir())


def test_an_entry_is_read_as_it_was_written_also_by_another_process(entries, folder):
    assert entries.read("a") is None
    entries.write("a", b"content")
    assert entries.read("a") == b"content" == Entries("things", folder).read("a")
    assert files(folder) == ["a.kept"]
    entries.delete("a")
    assert entries.read("a") is None and files(folder) == []


def test_a_long_name_keeps_its_end_which_tells_entries_apart(entries):
    entries.write("x" * 300 + "1", b"one")
    entries.write("x" * 300 + "2", b"two")
    assert entries.read("x" * 300 + "1") == b"one" and entries.read("x" * 300 + "2") == b"two"


@pytest.mark.parametrize("damage", [b"", b"short", b"another program's file, long enough for a digest of its content"])
def test_a_damaged_entry_counts_as_none_and_is_replaced(entries, folder, caplog, damage):
    caplog.set_level("INFO", "mossa_jax")
    entries.write("a", b"content")
    (folder / "a.kept").write_bytes(damage)
    assert entries.read("a") is None and "a.kept is damaged" in caplog.text
    entries.write("a", b"again")
    assert entries.read("a") == b"again"


def test_a_bit_that_flipped_and_a_tail_that_is_missing_are_noticed(entries, folder):
    entries.write("a", bytes(1000))
    entries.write("b", bytes(1000))
    content = (folder / "a.kept").read_bytes()
    (folder / "a.kept").write_bytes(content[:500] + b"\x01" + content[501:])
    (folder / "b.kept").write_bytes(content[:-1])
    assert entries.read("a") is None and entries.read("b") is None


def test_the_longest_unused_make_room_also_in_folders_of_other_versions(tmp_path):
    old = Entries("things", epath.Path(tmp_path / "all/old"))
    new = Entries("things", epath.Path(tmp_path / "all/new"), limit=1000)
    for each in (old, new):
        each.create()
    (tmp_path / "all/old/notes.txt").write_text("the user's own")
    for age, name in enumerate("abcd"):
        old.write(name, bytes(200))
        past = time.time() - 100 + age
        os.utime(tmp_path / f"all/old/{name}.kept", (past, past))
    assert old.read("a")  # used now, so that b is the oldest
    new.write("e", bytes(200))
    assert files(tmp_path / "all/old") == ["a.kept", "d.kept", "notes.txt"]  # at most 1000, and room for some more
    assert files(tmp_path / "all/new") == ["e.kept"]


def test_files_that_were_never_finished_are_deleted_when_they_are_old(entries, folder):
    entries = Entries("things", folder, limit=1 << 20)
    for name, age in (("mine.tmp", 10), ("killed.tmp", 7200)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age,) * 2)
    entries.write("a", b"")
    assert files(folder) == ["a.kept", "mine.tmp"]


def test_many_threads_write_and_read_the_same_entries_and_none_is_ever_half(folder):
    """Each has its own object, as processes have; the limit lets half of the entries stay."""
    wrong: list[object] = []

    def work():
        entries = Entries("things", folder, limit=100_000)
        for number in range(40):
            name = str(number % 10)
            value = entries.read(name)
            if value not in (None, name.encode() * 20_000):
                wrong.append(value)
            entries.write(name, name.encode() * 20_000)

    Entries("things", folder).create()
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and 0 < len(files(folder)) <= 10


def test_a_full_disk_is_reported_once_and_leaves_no_file(entries, folder, caplog, monkeypatch):
    def full(path, content):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    entries.write("a", b"content")
    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    entries.write("b", b"content")
    entries.write("c", b"content")
    assert files(folder) == ["a.kept"] and entries.read("a") == b"content"
    assert caplog.text.count("cannot be written") == 1 == caplog.text.count("No space left")


def test_a_folder_that_cannot_exist_is_reported_once(tmp_path, caplog):
    (tmp_path / "file").touch()
    entries = Entries("things", epath.Path(tmp_path / "file/all/one"))
    entries.create()
    entries.write("a", b"content")
    assert entries.read("a") is None and entries.read("b") is None
    assert caplog.text.count("cannot be written") == 1 and caplog.text.count("cannot be read") <= 1


def test_a_folder_that_may_only_be_read_is_read(entries, folder, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    entries.write("a", b"content")
    monkeypatch.setattr(os, "utime", refuse)
    assert entries.read("a") == b"content"
