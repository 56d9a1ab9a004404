"""The run folder: files whole or not at all, safe names, the lock, and whose folder it is."""

import dataclasses
import errno
import json
import resource
import unicodedata

import numpy as np
import pandas as pd
import pytest

from mossa_jax.errors import Refusal
from mossa_jax.files import run_folder as run_folder
from mossa_jax.files.checked import write_json as write_checked
from mossa_jax.files.checked import write_table
from mossa_jax.files.names import slug
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.files.write import new_folder, write_bytes, write_json

HOSTILE = (
    "", ".", "..", "../..", "/etc/passwd", "a/b", "a\\b", "a b", "A:b", "-rf", ".hidden", "nul\0", "line\nfeed",
    "Aufgabe ü", "任务", "任務", "x" * 300, "x" * 301, "~", "$HOME", "\ud800", "name?", "name*", "CON/",
)  # fmt: skip


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_slugs_stay_inside_and_apart(tmp_path):
    found = [slug(name) for name in HOSTILE]
    assert len(set(found)) == len(HOSTILE)
    for name in found:
        path = tmp_path / name
        assert path.resolve().parent == tmp_path.resolve() and path.name == name
        assert not name.startswith((".", "-")) and len(name.encode()) < 120
        path.mkdir()
    assert len(files(tmp_path)) == len(HOSTILE)
    for plain in ("boolq", "anli_r1", "wmt14_en-fr", "v1.1"):
        assert slug(plain) == plain
    assert slug("a/b") == slug("a/b")


def test_no_two_names_share_a_slug_on_any_file_system():
    names = (
        "boolq BoolQ BOOLQ e\u0301 \u00e9 \ufb01 fi a.b con CON aux.json com1.x nul dot. dot tuned Tuned \uff54uned"
    ).split()
    names += ["a b", "dot ", "x" * 100, "x" * 101]
    names += [slug(name) for name in names if slug(name) != name]  # called like another's slug
    found = [slug(name) for name in names]
    assert len({unicodedata.normalize("NFKC", name).lower() for name in found}) == len(names)
    for name in found:
        assert name.split(".")[0].lower() not in ("con", "aux", "nul", "com1") and not name.endswith((".", " "))


@pytest.fixture
def no_large_files():
    """The system refuses to let a file grow beyond 4 KiB, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_leaves_what_was_there(tmp_path, no_large_files):
    path = tmp_path / "results/table.bin"
    write_bytes(path, b"old")
    with pytest.raises(OSError, match="arge"):
        write_bytes(path, bytes(100_000))
    assert path.read_bytes() == b"old"
    assert files(tmp_path) == ["results", "results/table.bin"]


def test_a_full_disk_has_its_own_exit_code(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    write_bytes(tmp_path / "a", b"old")
    monkeypatch.setattr(type(run_folder.epath.Path(tmp_path)), "replace", full)
    with pytest.raises(Refusal, match="no space") as caught:
        write_bytes(tmp_path / "a", b"new")
    assert caught.value.code == 6 and files(tmp_path) == ["a"]


def test_json_has_no_nan_and_tables_come_as_a_pair(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert files(tmp_path) == []
    table = pd.DataFrame({"layer": ["embed", "1"], "cka": [0.25, np.nan]})
    write_table(tmp_path / "t.parquet", table)
    assert pd.read_parquet(tmp_path / "t.parquet").equals(table)
    assert pd.read_csv(tmp_path / "t.csv").equals(table)


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "adapters/x"
    with pytest.raises(KeyboardInterrupt), new_folder(target) as new:
        (new / "half").write_text("half")
        raise KeyboardInterrupt
    assert files(tmp_path) == ["adapters"]
    for text in ("first", "second"):
        with new_folder(target) as new:
            assert not target.exists() or (target / "a").read_text() == "first"
            (new / "a").write_text(text)
    assert files(tmp_path) == ["adapters", "adapters/x", "adapters/x/a"] and (target / "a").read_text() == "second"


@dataclasses.dataclass
class Inner:
    rank: int = 8
    targets: tuple = ("q_proj",)


@dataclasses.dataclass
class Outer:
    seed: int = 0
    tuning: Inner = dataclasses.field(default_factory=Inner)
    mesh: dict = dataclasses.field(default_factory=lambda: {"fsdp": 1})


def test_a_report_elsewhere_does_not_hide_the_machine_of_the_run(tmp_path):
    machine, here = ({"commit": "abc", "device": name, "devices": 1, "processes": 1} for name in ("TPU v5", "cpu"))
    for environment in (machine, machine, here):
        run = RunFolder(tmp_path)
        run.open(Outer(), environment | {"python": "3"})
        run.close()
    record = json.loads((tmp_path / "environment.json").read_text())
    assert record["device"] == "cpu" and record["starts"] == [machine, here]
    # A record that is damaged is no reason to refuse.
    (tmp_path / "environment.json").write_text("{")
    run = RunFolder(tmp_path)
    run.open(Outer(), machine)
    run.close()
    assert json.loads((tmp_path / "environment.json").read_text())["starts"] == [machine]


def test_a_folder_belongs_to_one_config(tmp_path):
    first = RunFolder(tmp_path / "run")
    first.open(Outer(), {"python": "3"})
    first.close()
    assert {"config.json", "environment.json"} <= set(files(tmp_path / "run"))
    again = RunFolder(tmp_path / "run")
    again.open(Outer(mesh={"fsdp": 8}), {})  # where it runs is not what it computes
    again.close()
    with pytest.raises(Refusal, match=r"tuning\.rank was 8, now 16") as caught:
        RunFolder(tmp_path / "run").open(Outer(tuning=Inner(rank=16)), {})
    assert caught.value.code == 2
    record = json.loads((tmp_path / "run/config.json").read_text())
    older = {**record, "tuning": {"rank": 8}}  # from before there was a choice of targets
    write_checked(tmp_path / "run/config.json", older)
    again.open(Outer(), {})
    again.close()
    with pytest.raises(Refusal, match=r"tuning\.targets was \['q_proj'\], now \['v_proj'\]"):
        RunFolder(tmp_path / "run").open(Outer(tuning=Inner(targets=("v_proj",))), {})
    write_checked(tmp_path / "run/config.json", record | {"results_format": 1})  # by older code
    with pytest.raises(Refusal, match="results_format was 1, now"):
        RunFolder(tmp_path / "run").open(Outer(), {})
    (tmp_path / "file").write_text("")
    with pytest.raises(Refusal, match="is a file"):
        RunFolder(tmp_path / "file").open(Outer(), {})


@pytest.mark.parametrize("harm", ["flip", "empty", "gone"])
def test_a_folder_that_lost_its_config_is_not_taken_for_a_new_one(tmp_path, harm):
    folder = RunFolder(tmp_path / "run")
    folder.open(Outer(), {})
    folder.close()
    path = tmp_path / "run/config.json"
    if harm == "gone":
        path.unlink()
    else:
        path.write_text("" if harm == "empty" else path.read_text().replace("8", "9"))
    for config in (Outer(), Outer(seed=1)):
        with pytest.raises(Refusal, match=r"config\.json is .*; restore it") as caught:
            RunFolder(tmp_path / "run").open(config, {})
        assert caught.value.code == 2
    assert path.exists() == (harm != "gone")


def test_a_folder_without_digests_gets_them_as_it_is(tmp_path, caplog):
    caplog.set_level("INFO")
    folder = RunFolder(tmp_path / "run")
    folder.open(Outer(), {})
    folder.close()
    (tmp_path / "run/SHA256SUMS").unlink()
    (tmp_path / "run/rounds.json").write_text("{}")
    folder.open(Outer(), {})
    folder.close()
    assert "written before digests" in caplog.text
    sealed = {line.split()[1] for line in (tmp_path / "run/SHA256SUMS").read_text().splitlines()}
    assert sealed == {"config.json", "environment.json", "rounds.json"}


def test_what_a_kill_left_goes_at_any_depth(tmp_path):
    folder = tmp_path / "run"
    for name in (".a.1.tmp", "variants/parts/x/.b.23.tmp", "a/b/c/d/e/.f.4.tmp/g"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    (folder / "a/own.1.tmp").write_text("")  # a user's
    RunFolder(folder).open(Outer(), {})
    assert [name for name in files(folder) if "tmp" in name] == ["a/own.1.tmp"]


def test_metrics_pass_over_a_line_that_was_cut(tmp_path):
    writer, reader = RunFolder(tmp_path), RunFolder(tmp_path, writer=False)
    assert writer.metrics() == []
    for step in range(3):
        writer.append_metrics({"model": "ü", "step": step})
    reader.append_metrics({"step": 99})
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    assert [record["step"] for record in writer.metrics()] == [0, 1]
    # The run that is started again writes its line in the place of the cut one.
    writer = RunFolder(tmp_path)
    for step in (2, 3):
        writer.append_metrics({"model": "ü", "step": step})
    assert writer.recorded_metrics() == ([{"model": "ü", "step": step} for step in range(4)], [])
    assert len(path.read_text().splitlines()) == 4


def test_a_refusal_is_one_line():
    error = Refusal(3, "two\nlines   here")
    assert str(error) == "two lines here" and error.code == 3
