"""Every flag that is a path fills in `~` and variables, and every output is checked before the work."""

import ast
import os
from pathlib import Path

import pytest

import launch
from launch.path_flags import PathParser, _PathsParser
from mossa_jax.errors import BAD_CONFIG, Refusal

FILES = sorted(Path(launch.__file__).parent.glob("*.py"))
# Flags with texts that are no paths.
WORDS = {
    "coordinator", "revision", "profile", "shape", "preset", "remat", "parts", "pools", "devices", "topology",
    "targets",
}  # fmt: skip
PATHS = {
    "base", "experimental", "control", "prompts", "states_a", "states_b", "ids_a", "ids_b", "items", "out", "export",
    "adapter", "measured", "tasks", "workdir", "from", "overrides", "compile_cache",
}  # fmt: skip
WRITTEN = {"out", "export", "workdir"}


def flag_calls(*functions):
    """Yields the calls of functions that define flags: (name of the flag, the call)."""
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            called = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
            if called in functions and isinstance(node.args[0], ast.Constant):
                yield node.args[0].value, node


def test_a_flag_with_a_text_is_a_path_or_known_to_be_none():
    texts = {name for name, _ in flag_calls("DEFINE_string", "DEFINE_list", "DEFINE_multi_string")}
    paths = {name for name, _ in flag_calls("define_path", "define_paths")}
    assert texts == WORDS and paths == PATHS
    calls = list(flag_calls("define_path"))
    written = {name for name, call in calls if any(word.arg == "output" for word in call.keywords)}
    assert written == WRITTEN
    assert all(any(word.arg == "output" for word in call.keywords) for name, call in calls if name in WRITTEN)


@pytest.mark.parametrize("name", sorted(PATHS - {"prompts"}))
def test_home_and_variables_are_filled_in_once(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PLACE", "$HOME")
    parse = PathParser(name).parse
    assert parse("~/x") == f"{tmp_path}/home/x"
    # What a variable holds is not filled in again.
    assert parse("${PLACE}/x") == "$HOME/x"
    assert parse("org/name") == "org/name" and parse("gs://bucket/~x") == "gs://bucket/~x"
    for wrong in ("", "a\0b", "$NOT_SET_ANYWHERE/x", "~nobody-of-that-name/x"):
        with pytest.raises(Refusal, match=rf"^--{name}=") as caught:
            parse(wrong)
        assert caught.value.code == BAD_CONFIG


def test_paths_in_a_list_are_each_filled_in_and_a_name_may_hold_a_comma(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    parse = _PathsParser("prompts").parse
    assert parse("~/a.jsonl,~/b.jsonl") == [f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl"]
    (tmp_path / "a,b.jsonl").write_text("")
    assert parse("~/a,b.jsonl") == [f"{tmp_path}/a,b.jsonl"]
    with pytest.raises(Refusal, match=r"^--prompts='' is not a path"):
        parse("a.jsonl,")


def refused(path, kind):
    with pytest.raises(Refusal) as caught:
        PathParser("out", kind).parse(str(path))
    assert caught.value.code == BAD_CONFIG and str(caught.value).startswith("--out=")
    return str(caught.value)


def test_an_output_is_refused_before_the_work_where_it_cannot_be_written(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dead").symlink_to(tmp_path / "gone" / "x")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "new/deep/x", file):
        assert PathParser("out", "file").parse(str(path)) == str(path)
    for path in (tmp_path / "new/deep/x", tmp_path):
        assert PathParser("out", "folder").parse(str(path)) == str(path)
    assert not (tmp_path / "new").exists()
    assert "is a folder" in refused(tmp_path, "file") and "names a folder" in refused(f"{tmp_path}/x/", "file")
    assert "is no regular file" in refused(tmp_path / "pipe", "file") and "is a file" in refused(file, "folder")
    assert "cannot be used" in refused(tmp_path / "loop", "file") and "link to nothing" in refused(
        tmp_path / "dead", "folder"
    )
    for kind in ("file", "folder"):
        assert f"{file} is a file, not a folder" in refused(file / "x", kind)
        assert "cannot be used (File name too long)" in refused(tmp_path / ("x" * 300), kind)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert f"{tmp_path} cannot be written to" in refused(tmp_path / "a/b", "file")
    assert PathParser("out", "file").parse("gs://bucket/x") == "gs://bucket/x"
