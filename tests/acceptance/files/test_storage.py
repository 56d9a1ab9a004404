"""Run folders in object stores: paths, texts that grow, folders that are whole, whose they are, checkpoints."""

import dataclasses
import json
import logging
import tempfile
import time

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from mossa_jax.errors import Refusal
from mossa_jax.files import growing, lease, paths
from mossa_jax.files.compiled import keep_compiled
from mossa_jax.files.growing import GrowingText, LogFile
from mossa_jax.files.lease import Lease
from mossa_jax.files.paths import as_path, copy_folder, file_names, on_disk
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.files.write import is_whole, new_folder, write_bytes
from mossa_jax.monitoring.trackers import Trackers
from mossa_jax.tuning import checkpoints as checkpoints_lib
from mossa_jax.tuning.checkpoints import Checkpoints
from tests.support import object_server

Config = dataclasses.make_dataclass("Config", [("seed", int, 0)])


@pytest.fixture
def server(monkeypatch):
    """The store of a server that is there for one test."""
    with object_server.serving() as (store, address):
        for name, value in object_server.environment(address).items():
            monkeypatch.setenv(name, value)
        yield store


@pytest.fixture(params=["objects", "memory", "gs"])
def folder(request, server, monkeypatch, tmp_path):
    """An empty folder of each kind of object store."""
    if request.param == "gs":
        pytest.importorskip("gcsfs")
    monkeypatch.setenv("MOSSA_CACHE", str(tmp_path / "cache"))
    fsspec.filesystem("memory").store.clear()
    type(fsspec.filesystem("memory")).pseudo_dirs[:] = [""]
    return as_path(f"{request.param}://bucket/run")


@pytest.fixture
def hasty(monkeypatch):
    """Runs that say quickly that they are alive."""
    monkeypatch.setattr(lease, "BEAT", 0.05)
    monkeypatch.setattr(lease, "PATIENCE", 0.4)
    monkeypatch.setattr(lease, "SETTLE", 0.05)


def test_paths_are_paths(folder):
    assert not folder.exists() and list(file_names(folder)) == []
    write_bytes(folder / "a/b.json", b"12345")
    write_bytes(folder / "a/c.txt", "ü".encode())
    assert str(folder / "a") == str(folder) + "/a" and (folder / "a/b.json").parent == folder / "a"
    assert (folder / "a/b.json").with_suffix(".csv").name == "b.csv" and (folder / "a/b.json").stem == "b"
    assert folder.is_dir() and (folder / "a").is_dir() and not (folder / "a/b.json").is_dir()
    assert (folder / "a/b.json").stat().length == 5 and (folder / "a/c.txt").read_text() == "ü"
    assert [path.name for path in folder.iterdir()] == ["a"]
    assert sorted(map(str, folder.glob("a/*.json"))) == [f"{folder}/a/b.json"]
    assert sorted(file_names(folder)) == ["a/b.json", "a/c.txt"]
    write_bytes(folder / "a/b.json", b"new")
    assert (folder / "a/b.json").read_bytes() == b"new"
    (folder / "a/c.txt").unlink()
    (folder / "a/c.txt").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        (folder / "a/c.txt").unlink()
    (folder / "a").rmtree()
    (folder / "a").rmtree(missing_ok=True)
    assert not (folder / "a").exists()


def test_files_come_to_this_machine_and_go_again(folder, tmp_path):
    for name in ("x/one", "x/deep/two"):
        write_bytes(folder / name, name.encode())
    with on_disk(folder / "x") as here, on_disk(folder / "x/one") as one:
        assert sorted(file_names(here)) == ["deep/two", "one"] and one.read_bytes() == b"x/one"
        assert not paths.is_remote(here)
    assert not here.exists() and not one.exists() and not list((tmp_path / "cache/scratch").iterdir())
    with on_disk(tmp_path) as here:
        assert str(here) == str(tmp_path)


def test_a_folder_is_whole_when_its_last_file_is_there(folder, server):
    with pytest.raises(KeyboardInterrupt), new_folder(folder / "m") as new:
        (new / "mossa.json").write_text("{}")
        raise KeyboardInterrupt
    assert not (folder / "m").exists()
    for text in ("old", "new"):
        with new_folder(folder / "m") as new:
            (new / "mossa.json").write_text("{}")
            (new / "z").write_text(text)
            (new / "a").write_text(text)
            if text == "new":
                assert (folder / "m/a").read_text() == "old"
        assert is_whole(folder / "m") and (folder / "m/z").read_text() == text
    names = [name for name in server.writes if "/m/" in name]
    assert not names or names[2::3] == ["run/m/mossa.json"] * 2  # memory:// has no server
    (folder / "m/mossa.json").unlink()
    assert (folder / "m").exists() and not is_whole(folder / "m")


def test_a_text_grows_and_a_kill_loses_one_interval(folder, monkeypatch):
    monkeypatch.setattr(growing, "RHYTHM", 0.2)
    text = GrowingText(folder / "metrics.jsonl")
    text.append("1")
    text.append("2")
    assert not text.path.exists()
    deadline = time.monotonic() + 30
    while not text.path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert text.path.read_text() == "1\n2\n"  # without another line
    monkeypatch.setattr(growing, "RHYTHM", 3600)
    text.append("3")
    text.flush()
    text.append("lost with its process")
    write_bytes(text.path, b"1\n2\n3\nha")  # another process' torn line is kept apart
    again = GrowingText(text.path)
    again.append("4")
    again.flush()
    assert text.path.read_text() == "1\n2\n3\nha\n4\n"


def test_a_log_that_cannot_be_written_is_silent_and_one_that_can_is_whole(folder, monkeypatch, capsys):
    handler = LogFile(folder / "log.txt")
    record = logging.LogRecord("mossa_jax", logging.INFO, "", 0, "a line %d", (1,), None)
    handler.emit(record)
    with monkeypatch.context() as full:
        full.setattr(growing, "write_text", lambda *_: (_ for _ in ()).throw(Refusal(6, "no")))
        handler.close()
    assert not (folder / "log.txt").exists()
    handler.close()
    assert (folder / "log.txt").read_text().endswith("INFO a line 1\n") and not capsys.readouterr().err


def test_metrics_wait_for_nobody_and_are_there_when_a_step_is_sealed(folder, hasty, monkeypatch, tmp_path):
    run = RunFolder(str(folder))
    run.open(Config(), {})
    seen = []
    monkeypatch.setattr(
        checkpoints_lib, "write_json", lambda path, value: seen.append((folder / "metrics.jsonl").read_text())
    )
    run.append_metrics({"step": 1})
    assert not (folder / "metrics.jsonl").exists()
    saved = Checkpoints(run / "checkpoints/E", before_sealing=run.flush)
    saved.save(1, {"x": jnp.ones(2)})
    saved.close()
    assert len(seen) == 1 and seen[0].startswith('{"step": 1, "crc": "')
    run.append_metrics({"step": 2})
    assert run.metrics() == [{"step": 1}, {"step": 2}]
    run.append_metrics({"step": 3})
    run.close()
    assert RunFolder(str(folder)).metrics() == [{"step": number} for number in (1, 2, 3)]


def test_a_folder_is_held_while_its_run_lives(folder, hasty):
    first, second = RunFolder(str(folder)), RunFolder(str(folder))
    first.open(Config(), {})
    with pytest.raises(Refusal, match=r"in use by process \d+ on ") as caught:
        second.open(Config(), {})
    assert caught.value.code == 2
    first.append_metrics({"step": 1})
    first.close()
    assert not (folder / ".holder").exists()
    second.open(Config(), {})
    second.close()
    with pytest.raises(Refusal, match="seed was 0, now 1"):
        RunFolder(str(folder)).open(Config(seed=1), {})


def test_a_dead_runs_claim_is_taken_over_and_it_learns_so_if_it_was_not_dead(folder, hasty, monkeypatch):
    still = Lease(folder / ".holder")
    monkeypatch.setattr(still, "_renew", lambda: still._has_ended.wait())  # its process stands still
    assert still.claim() is None
    run = RunFolder(str(folder))
    start = time.monotonic()
    run.open(Config(), {})
    assert time.monotonic() - start >= lease.PATIENCE
    still._is_ours()
    assert still.taken_by() is not None
    still.release()
    assert (folder / ".holder").exists()  # the other one's
    # The other way round, as the run sees it.
    (folder / ".holder").write_text(json.dumps({"host": "elsewhere", "pid": 7, "run": "other"}))
    deadline = time.monotonic() + 30
    while run._lease.taken_by() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(Refusal, match="in use by process 7 on elsewhere") as caught:
        run.flush()
    assert caught.value.code == 2
    with pytest.raises(Refusal):
        run.close()
    assert json.loads((folder / ".holder").read_text())["pid"] == 7


def state_at(step):
    return {"a": jnp.arange(600.0).reshape(3, -1) + step, "b": jnp.full(4, step, jnp.bfloat16)}


def restored(folder):
    saved = Checkpoints(folder, config="c")
    try:
        state, step = saved.restore(jax.tree.map(jnp.zeros_like, state_at(0)))
    finally:
        saved.close()
    if step:
        for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(state_at(step)), strict=True):
            assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
    return step


def test_checkpoints_are_sealed_there_and_nothing_stays_here(folder, tmp_path, caplog):
    group = folder / "checkpoints/E"
    saved = Checkpoints(group, config="c")
    for step in (1, 2, 3):
        saved.save(step, state_at(step))
    saved.close()
    assert {path.name for path in group.iterdir()} == {"2", "3", "manifests"}
    cached = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert cached == []
    assert restored(group) == 3
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    # A kill before the manifest leaves a step that does not count, a cut file one that is passed over.
    copy_folder(group / "3", group / "4")
    assert restored(group) == 3 and not (group / "4").exists() and not caplog.records
    name = max(file_names(group / "3"), key=lambda name: (group / "3" / name).stat().length)
    write_bytes(group / "3" / name, (group / "3" / name).read_bytes()[:-3])
    assert restored(group) == 2
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "step 3" in warning.getMessage() and str(group) in warning.getMessage()
    assert restored(folder / "checkpoints/none") == 0


@pytest.mark.parametrize("where", ["group", "manifests"])
def test_a_store_that_is_full_is_one_line_and_the_last_step_loads(server, monkeypatch, tmp_path, where):
    monkeypatch.setenv("MOSSA_CACHE", str(tmp_path / "cache"))
    group = as_path("objects://bucket/run/group")
    saved = Checkpoints(group, config="c")
    saved.save(1, state_at(1))
    saved.save(2, state_at(2))
    saved.close()
    size = sum(len(data) for name, data in server.files("bucket").items() if "/2/" in name)
    server.room = size // 2 if where == "group" else size + 10
    saved = Checkpoints(group, config="c")
    saved.save(3, state_at(3))
    with pytest.raises(Refusal, match=r"cannot be written .*quota") as caught:
        saved.close()
    assert caught.value.code == 6 and "\n" not in str(caught.value)
    assert restored(group) == 2
    server.room = None
    saved = Checkpoints(group, config="c")
    saved.save(3, state_at(3))
    saved.close()
    assert restored(group) == 3


def test_tensorboard_files_get_there(folder, hasty, tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run = RunFolder(str(folder))
    run.open(Config(), {})
    run.trackers = Trackers(["tensorboard"], run.path, "title", {})
    run.append_metrics({"model": "tuned", "step": 1, "loss": 0.5})
    run.close()
    (name,) = file_names(folder / "tensorboard")
    assert b"loss/tuned" in (folder / "tensorboard" / name).read_bytes()
    assert not [path for path in tmp_path.rglob("*") if "events" in path.name]


def test_compiled_programs_are_kept_there(folder):
    names = [name for name in dir(jax.config) if "compilation_cache" in name or "persistent_cache" in name]
    before = {name: getattr(jax.config, name) for name in names}
    try:
        keep_compiled(str(folder / "compiled"))
        jax.jit(lambda x: x * 3 + len(str(folder)))(jnp.ones(7)).block_until_ready()
        assert any(name.endswith("-cache.kept") for name in file_names(folder / "compiled"))
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def test_a_store_that_is_away_for_a_while_is_not_taken_for_an_empty_one(server, monkeypatch, tmp_path):
    monkeypatch.setenv("MOSSA_CACHE", str(tmp_path / "cache"))
    folder = as_path("objects://bucket/run")
    saved = Checkpoints(folder / "E", config="c")
    saved.save(1, state_at(1))
    saved.close()
    before = server.files("bucket")
    with monkeypatch.context() as away:
        away.setenv(object_server.ADDRESS, "http://127.0.0.1:9")
        text = GrowingText(folder / "metrics.jsonl")
        for ask in (folder.exists, folder.is_dir, lambda: is_whole(folder), lambda: text.append("1")):
            with pytest.raises(OSError, match="refused"):
                ask()
        with pytest.raises(OSError, match="refused"):
            restored(folder / "E")
    assert server.files("bucket") == before and restored(folder / "E") == 1


def test_what_cannot_be_a_workdir_is_refused():
    with pytest.raises(Refusal, match=r"--workdir=nowhere://x: .*nowhere") as caught:
        RunFolder("nowhere://x")
    assert caught.value.code == 2
    assert str(RunFolder("file:///tmp/x").path) == "/tmp/x"


def test_a_store_that_cannot_be_reached_is_refused(server, monkeypatch):
    monkeypatch.setenv(object_server.ADDRESS, "http://127.0.0.1:9")
    with pytest.raises(Refusal, match=r"--workdir=objects://bucket/run cannot be reached .*refused") as caught:
        RunFolder("objects://bucket/run").open(Config(), {})
    assert caught.value.code == 4


def test_processes_on_several_machines_need_a_store_that_orbax_writes(monkeypatch):
    as_path("memory://x")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(Refusal, match=r"memory://x/c: checkpoints of several processes") as caught:
        Checkpoints("memory://x/c")
    assert caught.value.code == 2
