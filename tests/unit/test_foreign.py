"""The door for paths, files and JSON that others wrote."""

import os
import socket
from pathlib import Path

import pytest

from mossa_jax import foreign
from mossa_jax.errors import Refusal


@pytest.mark.parametrize(
    "written, meant",
    [("~/a", "/home/me/a"), ("$HOME/a", "/home/me/a"), ("${HOME}/a", "/home/me/a"), ("gs://b/$HOME", "gs://b/$HOME")],
)
def test_a_path_is_filled_in_as_a_shell_would(written, meant, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert foreign.user_path(written, "--out") == meant


def test_a_path_that_exists_as_written_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("$HOME").mkdir()
    assert foreign.user_path("$HOME", "--out") == "$HOME"


@pytest.mark.parametrize("written", ["", "a\0b", "$NOT_SET_HERE/a", "~no_such_user_here/a"])
def test_a_path_that_cannot_be_meant_is_refused_by_its_flag(written):
    with pytest.raises(Refusal, match="--out=") as caught:
        foreign.user_path(written, "--out")
    assert caught.value.code == 2


def test_what_never_ends_is_not_opened(tmp_path):
    pipe, listener = tmp_path / "pipe", socket.socket(socket.AF_UNIX)
    os.mkfifo(pipe)
    listener.bind(str(tmp_path / "socket"))
    for path, kind in [(pipe, "a named pipe"), (tmp_path / "socket", "a socket"), (tmp_path, "a folder")]:
        with pytest.raises(Refusal, match=kind) as caught:
            foreign.read_json(path)
        assert caught.value.code == 3
    with pytest.raises(Refusal, match="a device"):
        foreign.read_bytes(Path("/dev/zero"))
    listener.close()


@pytest.mark.parametrize("data", ["é\r\nb".encode(), b"\xef\xbb\xbf" + "é\nb".encode(), "é\rb".encode("utf-16")])
def test_a_text_is_the_same_however_it_was_saved(tmp_path, data):
    (tmp_path / "text").write_bytes(data)
    assert foreign.read_text(tmp_path / "text") == "é\nb"


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"[" * 5_000 + b"]" * 5_000, "nested deeper"),
        (b"[" * 101 + b"]" * 101, "nested deeper"),
        (b'{"a": ' * 200 + b"1" + b"}" * 200, "nested deeper"),
        (b"9" * 10_000, "not valid JSON"),
        (b"[NaN]", "NaN is no JSON number"),
        (b"[1,\n2", "line 2"),
        (b"\xff", "not UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b" " * 200, "more than 100 bytes"),
    ],
)
def test_json_is_bounded(tmp_path, data, reason):
    (tmp_path / "file.json").write_bytes(data)
    with pytest.raises(Refusal, match=reason) as caught:
        foreign.read_json(tmp_path / "file.json", most=100 if "bytes" in reason else foreign.LARGEST)
    assert caught.value.code == 3


def test_json_at_the_bound_is_read(tmp_path):
    (tmp_path / "file.json").write_bytes(b"[" * 100 + b"]" * 100)
    assert foreign.read_json(tmp_path / "file.json")
    with pytest.raises(Refusal, match="not a JSON object but a list"):
        foreign.read_object(tmp_path / "file.json")


def test_numbers_of_files_have_a_range():
    assert foreign.whole_number(4.0, "layers", 1, 9) == 4
    assert foreign.number(3, "eps", 0, 9) == 3.0
    for value in (True, 0, 10, 4.5, "4", None, float("inf"), float("nan"), 10**400, [4]):
        with pytest.raises(ValueError, match="layers="):
            foreign.whole_number(value, "layers", 1, 9)
    for value in (True, -1, 10**400, float("nan"), float("inf"), "1"):
        with pytest.raises(ValueError, match="eps="):
            foreign.number(value, "eps", 0, 9)
