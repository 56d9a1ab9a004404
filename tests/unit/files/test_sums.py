"""Digests beside files: what sha256sum makes of them, and what a kill, a flip and a swap leave."""

import hashlib

import fsspec
import pytest
from etils import epath

from mossa_jax.errors import Refusal
from mossa_jax.files import checked, sums
from mossa_jax.files.paths import as_path


@pytest.fixture(params=["disk", "store"])
def folder(request, tmp_path):
    """An empty folder on a disk, and in an object store."""
    if request.param == "disk":
        return epath.Path(tmp_path)
    fsspec.filesystem("memory").store.clear()
    return as_path("memory://sums/run")


def lines(folder):
    return (folder / sums.SUMS).read_text().splitlines()


def line(name, data):
    return f"{hashlib.sha256(data).hexdigest()}  {name}"


def test_the_file_is_that_of_sha256sum_with_one_line_per_file(folder):
    for name, data in (("b", b"1"), ("a", b"2"), ("b", b"3"), ("b", b"3")):
        sums.write_summed(folder / name, data)
    assert sorted(lines(folder)) == sorted([line("a", b"2"), line("b", b"3")])
    assert sums.is_intact(folder / "a") and sums.is_intact(folder / "b")
    sums.remove_summed(folder / "a")
    assert lines(folder) == [line("b", b"3")] and not (folder / "a").exists()
    assert sums.is_intact(folder / "a") is None


def test_a_file_is_intact_whenever_the_write_is_killed(folder, monkeypatch):
    sums.write_summed(folder / "a", b"old")
    write, writes = sums.write_bytes, []

    def killed_at(number):
        def write_or_die(path, data):
            writes.append(path.name)
            if len(writes) > number:
                raise KeyboardInterrupt
            write(path, data)

        return write_or_die

    # However many of its writes a replacement has done, old or new content agrees with the lines.
    for number in range(4):
        writes.clear()
        monkeypatch.setattr(sums, "write_bytes", killed_at(number))
        try:
            sums.write_summed(folder / "a", f"new {number}".encode())
        except KeyboardInterrupt:
            assert sums.is_intact(folder / "a")
    assert len(writes) <= 3 and (folder / "a").read_bytes() == b"new 3" and lines(folder) == [line("a", b"new 3")]


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "zero", "append", "delete", "swap"])
def test_damage_is_known_and_said(folder, harm):
    sums.write_summed(folder / "a", b"content of a")
    sums.write_summed(folder / "b", b"content of b")
    data = (folder / "a").read_bytes()
    if harm == "delete":
        (folder / "a").unlink()
    else:
        changed = {
            "flip": bytes([data[0] ^ 1]) + data[1:], "cut": data[:-1], "empty": b"", "zero": bytes(len(data)),
            "append": data + b" ", "swap": (folder / "b").read_bytes(),
        }  # fmt: skip
        (folder / "a").write_bytes(changed[harm])
    assert sums.is_intact(folder / "a") is False and sums.is_intact(folder / "b")
    assert checked.damage(folder / "a").startswith(f"{folder / 'a'} is ") and checked.damage(folder / "b") is None
    with pytest.raises(Refusal, match="do that") as caught:
        checked.read_intact(folder / "a", "do that")
    assert caught.value.code == 3


def test_a_damaged_line_costs_its_file_alone(folder):
    for name in "abc":
        sums.write_summed(folder / name, name.encode())
    first, *rest = lines(folder)
    (folder / sums.SUMS).write_bytes(b"\xff" + first.encode()[1:] + b"\n" + "\n".join(rest).encode())
    states = [sums.is_intact(folder / name) for name in "abc"]
    assert sorted(states, key=str) == [None, True, True]
    # The line that lost its line break stays a line.
    sums.write_summed(folder / "d", b"d")
    assert sums.is_intact(folder / "c") and sums.is_intact(folder / "d")


def test_files_of_older_versions_are_sealed_as_they_are(folder):
    (folder / "old").write_bytes(b"old")
    assert sums.is_intact(folder / "old") is None and checked.read_intact(folder / "old") == b"old"
    sums.seal([folder / "old", folder / "absent"])
    assert lines(folder) == [line("old", b"old")]
    (folder / "old").write_bytes(b"new")
    sums.seal([folder / "old"])  # what has a digest keeps it
    assert sums.is_intact(folder / "old") is False
