"""What --config may name: Python, JSON and TOML files, run folders, published names, runs of a sweep."""

import hashlib
import os

import pytest

from mossa_jax.config import Config, Tuning, load_config, load_runs
from mossa_jax.errors import Refusal

HEAD = "from mossa_jax.config import Config, sweep, with_fields\n"


def refused(call):
    with pytest.raises(Refusal) as caught:
        call()
    assert caught.value.code == 2
    return str(caught.value)


def file(tmp_path, name, content):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", '{"seed": 3, "tuning": {"rank": 4}}'),
        ("a.json", b'\xef\xbb\xbf{"seed": 3, "tuning": {"rank": 4}}'),
        ("a.toml", "seed = 3\ntuning.rank = 4\n"),
        ("a.toml", "seed = 3\n[tuning]\nrank = 4\n"),
        ("a.py", HEAD + "def get_config():\n    return with_fields(Config(seed=3), {'tuning.rank': 4})\n"),
    ],
)
def test_a_file_of_fields_gives_a_configuration(tmp_path, name, content):
    assert load_config(file(tmp_path, name, content)) == Config(seed=3, tuning=Tuning(rank=4))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", '{"seed": 1', "is not valid JSON (Expecting ',' delimiter: line 1"),
        ("a.json", b'{"name": "\xff"}', "is not UTF-8 text (byte 10)"),
        ("a.json", '{"seed": 1, "seed": 2}', "'seed' is given twice"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.toml", "[tuning\n", "is not valid TOML"),
        ("a.yaml", "seed: 1\n", "must be a local Python file, a JSON or TOML file"),
        ("a.py", "def get_config():\n    return false\n", "line 2: NameError: name 'false' is not defined"),
        ("a.py", "def get_config(:\n", "line 1: SyntaxError"),
        ("a.py", "import sys\nsys.exit(0)\n", "line 2: SystemExit"),
        ("a.py", "x = 1\n", "has no get_config()"),
        ("a.py", "def get_config():\n    return 1\n", "its get_config() returns no mossa_jax Config"),
        ("empty/x", "", "a folder without config.json, so no run folder"),
        ("s/sweep.json", "{}", "the folder of a sweep; name one of its runs: none yet"),
        ("gone/x", "", "no such file; published configs are demo"),
    ],
)
def test_a_source_that_gives_no_configuration_is_refused_in_one_line(tmp_path, name, content, words):
    path = file(tmp_path, name, content)
    source = {"empty/x": path.parent, "s/sweep.json": path.parent, "gone/x": tmp_path / "nothing"}.get(name, path)
    said = refused(lambda: load_config(source))
    assert words in said and said.startswith(f"config {source}: ")


def test_a_slip_in_a_published_name_is_met_with_the_name():
    assert refused(lambda: load_config("demmo")) == "config demmo: no such file; did you mean demo?"


def test_a_word_behind_a_colon_reaches_get_config_or_names_a_run_of_the_sweep(tmp_path):
    path = file(tmp_path, "a.py", HEAD + "def get_config(word):\n    return Config(name=word)\n")
    assert load_config(f"{path}:hello").name == "hello"
    path = file(tmp_path, "b.py", HEAD + "def get_sweep():\n    return sweep(Config(name='n'), seed=(0, 1))\n")
    assert load_config(f"{path}:seed=1") == Config(name="n seed=1", seed=1)
    assert "no such run in its sweep; did you mean seed=1?" in refused(lambda: load_config(f"{path}:seed=3"))
    assert f"a sweep of 2 runs; name one of them, as {path}:seed=0" in refused(lambda: load_config(path))


def test_a_file_may_have_one_configuration_and_a_sweep(tmp_path):
    text = HEAD + "get_config = Config\ndef get_sweep():\n    return sweep(get_config, seed=(0, 1))\n"
    path = file(tmp_path, "a.py", text)
    assert load_config(path) == Config()
    assert list(load_runs(path)) == ["seed=0", "seed=1"]
    assert load_config(f"{path}:seed=1").seed == 1


def test_a_sweep_may_stand_in_json(tmp_path):
    path = file(tmp_path, "a.json", '{"sweep": {"a": {"seed": 1}, "b": {"seed": 2}}}')
    assert {name: config.seed for name, config in load_runs(path).items()} == {"a": 1, "b": 2}
    assert load_config(f"{path}:b").seed == 2


def test_a_run_folder_in_a_store_is_read():
    import fsspec

    with fsspec.open("memory://bucket/run/config.json", "w") as stored:
        stored.write('{"seed": 7}')
    assert load_config("memory://bucket/run").seed == 7
    assert "no such file; a run folder has a config.json" in refused(lambda: load_config("memory://bucket/other"))
    assert "Protocol not known" in refused(lambda: load_config("s3x://bucket/run"))


def test_the_record_of_a_run_that_was_changed_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"seed": 3}')
    assert load_config(tmp_path).seed == 3  # nobody says what it was
    (tmp_path / "SHA256SUMS").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  config.json\n")
    assert load_config(path).seed == 3
    path.write_text('{"seed": 2}')
    for name in (tmp_path, path):
        with pytest.raises(Refusal, match="not as its run wrote it") as caught:
            load_config(name)
        assert caught.value.code == 2


def test_a_file_that_is_none_is_named_as_what_it_is_and_never_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.json")
    os.mkfifo(tmp_path / "pipe.py")
    for name in ("pipe.json", "pipe.py"):
        assert "is a named pipe; name another file" in refused(lambda name=name: load_config(tmp_path / name))
    for name in ("a.json", "a.toml", "a.py"):
        file(tmp_path, name, "version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
        assert "is a Git LFS pointer" in refused(lambda name=name: load_config(tmp_path / name))
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    assert "cannot be read (Too many levels" in refused(lambda: load_config(tmp_path / "loop.json"))
    assert "cannot be read (File name too long)" in refused(lambda: load_config("x" * 300 + ".json"))
    monkeypatch.setenv("HOME", str(tmp_path))
    file(tmp_path, "home.json", '{"seed": 5}'.encode("utf-16"))
    assert load_config("~/home.json").seed == 5
    assert "the variable NOT_SET_HERE is not set" in refused(lambda: load_config("$NOT_SET_HERE/a.json"))
