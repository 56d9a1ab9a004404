"""Rows of FLAN 2021 from hub data sets, folders and the submix: the rows that were written, or one line.

The reference are the rows as this test made them; huggingface_hub runs in processes of its own.
"""

import errno
import io
import json
import os
import types

import pyarrow
import pyarrow.parquet
import pytest

from mossa_jax.config import Tasks
from mossa_jax.errors import BAD_INPUT, DISK, NO_ACCESS, Refusal
from mossa_jax.files import hub as files_of_the_hub
from mossa_jax.files.hub_download import download
from mossa_jax.tasks.flan import flan_suite
from mossa_jax.tasks.flan_names import FLAN_TASKS
from mossa_jax.tasks.suite import split_of
from tests.support.hub_server import GOOD_TOKEN, Faults, HubServer, Process, commit_of

SPLITS = ("train", "validation", "test")
MIRROR, SUBMIX = "Muennighoff/flan", "DataProvenanceInitiative/flan2021_submix_original"
NOT_IN_MIRROR = ["newsroom", "winogrande", "xsum"]
NAMES = [entry.name for entry in FLAN_TASKS]
PAPER = [entry.name for entry in FLAN_TASKS if entry.cluster != "text_formatting"]
# What the submix calls tasks, with versions, as its rows have them.
IN_SUBMIX = {
    "winogrande": "winogrande:1.1.0", "newsroom": "newsroom:1.0.0", "xsum": "huggingface:xsum",
    "arc_challenge": "ai2_arc/ARC-Challenge:1.0.0", "squad_v2": "squad/v2.0:3.0.0", "true_case": "true_case",
}  # fmt: skip


def written_rows(name: str, split: str) -> list[list[str]]:
    """A task's rows: different texts, some of them long or not ASCII."""
    count = {"train": 5, "validation": 1, "test": 3}[split]
    return [[f"{split} {name} {n}: é\n" + "word " * (7 * n), f"answer {n}"] for n in range(count)]


def jsonl(name: str, split: str) -> bytes:
    rows = ({"inputs": i, "targets": t, "task": f"{name}_10templates"} for i, t in written_rows(name, split))
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def mirror_files(names) -> dict[str, bytes]:
    files = {f"{split}/{name}_10templates_{split}.jsonl": jsonl(name, split) for split in SPLITS for name in names}
    return {"README.md": b"# words", **files}


def submix_rows() -> list[tuple[str, str, str, str]]:
    """Rows of six tasks in turn, zero-shot among others, and of tasks that nobody wants."""
    return [
        (f"{kind} {name} {n}: é", f"answer {n}", there, kind)
        for n in range(40)
        for name, there in [*IN_SUBMIX.items(), ("lambada", "lambada:1.0.0"), ("xsum", "xsum:1.1.0")]
        for kind in ("zs_opt", "fs_opt", "zs_noopt")
    ]


def parquet(rows) -> bytes:
    inputs, targets, names, kinds = zip(*rows, strict=True)
    columns = {"inputs": inputs, "targets": targets, "task_source": ["Flan2021"] * len(rows), "task_name": names}
    buffer = io.BytesIO()
    table = pyarrow.table({**columns, "template_type": kinds})
    pyarrow.parquet.write_table(table, buffer, row_group_size=100)
    return buffer.getvalue()


SUBMIX_FILES = {
    "README.md": b"# words",
    "data/train-00000.parquet": parquet(submix_rows()[:500]),
    "data/train-00001.parquet": parquet(submix_rows()[500:]),
}
WITHOUT_THREE = mirror_files([name for name in NAMES if name not in NOT_IN_MIRROR])
FEW = ["rte", "wic", "sst2"]
SOME = [name for name in PAPER if name not in NOT_IN_MIRROR][::4]
DATASETS = {
    MIRROR: {"main": WITHOUT_THREE, "v0": mirror_files(["rte"])},
    SUBMIX: {"main": SUBMIX_FILES},
    "closed/flan": {"main": WITHOUT_THREE},
    "other/layout": {"main": {"data.csv": b"a,b"}},
    **{f"copies/{fault}": {"main": WITHOUT_THREE} for fault in ("half", "third", "refused", "shared")},
    **{f"few/{fault}": {"main": mirror_files(FEW)} for fault in ("cut", "spoilt", "endless", "damaged", "kept")},
    "few/incomplete": {"main": {**mirror_files(["wic"]), "train/rte_10templates_train.jsonl": jsonl("rte", "train")}},
}

# Reads the suite of each case of a line of JSON, and prints rows or refusals as a line. Waits are cut short, and the
# library's chunks of 10 MB, so that small files come in several.
ASKED = """
import dataclasses, json, logging, os, sys, time
nap = time.sleep
time.sleep = lambda seconds: nap(min(seconds, 0.001))
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 16
from mossa_jax.config import Tasks
from mossa_jax.errors import Refusal
from mossa_jax.tasks.flan import flan_suite
from mossa_jax.tasks.suite import SPLITS

warnings = []
handler = logging.Handler()
handler.setLevel(logging.WARNING)
handler.emit = lambda record: warnings.append(record.getMessage())
logging.getLogger("mossa_jax").addHandler(handler)

def rows(task):
    try:
        return {split: [[row.inputs, row.targets] for row in task.rows(split)] for split in SPLITS}
    except Refusal as refusal:
        return {"code": refusal.code, "message": str(refusal)}

for line in sys.stdin:
    answers = {}
    for key, case in json.loads(line).items():
        os.environ["HF_TOKEN"] = case.pop("token", "")
        read = case.pop("read", None)
        warnings.clear()
        try:
            suite = flan_suite(Tasks(suite="flan2021", **{k: tuple(v) if isinstance(v, list) else v for k, v in case.items()}))
            tasks = {task.name: task for task in suite.tasks}
            answers[key] = {
                "rows": {name: rows(tasks[name]) for name in (tasks if read is None else read)},
                "names": list(tasks), "missing": suite.missing, "held_out": suite.held_out,
                "sources": {name: task.source for name, task in tasks.items()},
            }
        except Refusal as refusal:
            answers[key] = {"code": refusal.code, "message": str(refusal)}
        answers[key]["warnings"] = list(warnings)
    print(json.dumps(answers), flush=True)
"""  # noqa: E501


def expected(name: str) -> dict[str, list[list[str]]]:
    return {split: written_rows(name, split) for split in SPLITS}


def expected_of_submix(name: str, test_share: float = 0.1) -> dict[str, list[list[str]]]:
    rows = [[i, t] for i, t, there, kind in submix_rows() if there == IN_SUBMIX[name] and kind == "zs_opt"]
    of = {split: [row for row in rows if split_of(row[0], test_share) == split] for split in ("train", "test")}
    return {"train": of["train"], "validation": [], "test": of["test"]}


def copy(files: dict[str, bytes], folder) -> str:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return str(folder)


def only_three(source: str) -> dict:
    return {"sources": [source], "only": FEW, "read": FEW}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """What came of all cases, phase by phase, and what the server was asked."""
    home = tmp_path_factory.mktemp("home")
    server = HubServer(datasets=DATASETS, gated=["closed/flan"], seed=5)
    online = Process(ASKED, home, server.endpoint)
    twin = Process(ASKED, home, server.endpoint)
    offline = Process(ASKED, home, server.endpoint, HF_HUB_OFFLINE="1")
    server.start()
    answers, requests = {}, {}

    def ask(phase, cases, faults=None):
        server.faults = faults or Faults()
        answers[phase] = online.ask(cases)

    try:
        ask("whole", {
            "listed": {"sources": [MIRROR, SUBMIX], "read": []},
            "both": {"sources": [MIRROR, SUBMIX]},
        })  # fmt: skip
        requests["listed"] = next(n for n, seen in enumerate(server.seen) if seen.sent)
        ask("refused", {
            "three missing": {},
            "allowed": {"allow_missing": True, "read": []},
            "one asked for": {"only": ["rte", "xsum"]},
            "none asked for is missing": {"only": ["rte", "sentiment"], "read": ["rte"]},
            "many missing": {"sources": ["few/kept"]},
            "one part missing": {"sources": [SUBMIX], "selection": "flan62", "only": ["mnli"]},
            "incomplete": {"sources": ["few/incomplete"], "only": ["rte"]},
            "nothing there": {"sources": ["few/incomplete"], "selection": "all69", "only": ["cb"]},
            "not in the submix's rows": {"sources": [SUBMIX], "only": ["winogrande"], "read": ["cb"],
                                         "allow_missing": True},
            "gated": {"sources": ["closed/flan"]},
            "granted": {"sources": ["closed/flan"], "only": ["rte"], "read": ["rte"], "token": GOOD_TOKEN},
            "revision": {"sources": [f"{MIRROR}@v9"]},
            "old revision": {"sources": [f"{MIRROR}@v0"], "only": ["rte"]},
            "nobody's": {"sources": ["nobody/nothing"]},
            "layout": {"sources": ["other/layout"]},
            "no id": {"sources": ["flan"]},
        })  # fmt: skip
        ask("half", {"half": {"sources": ["copies/half"], "allow_missing": True}},
            Faults(dropped=0.3, cut=0.3, ranges=False))  # fmt: skip
        ask("third", {"third": {"sources": ["copies/third"], "allow_missing": True, "read": SOME}},
            Faults(dropped=0.1, failed=0.1, limited=0.1, cut=0.2, spoilt=0.2))  # fmt: skip
        ask("cut", {"cut": only_three("few/cut")}, Faults(cut=1))
        ask("endless", {"endless": only_three("few/endless")}, Faults(cut=1, ranges=False))
        ask("spoilt", {"spoilt": only_three("few/spoilt")}, Faults(spoilt=1))
        ask("limited", {"limited": only_three("copies/refused")}, Faults(limited=1))
        ask("once more", {"cut": only_three("few/cut"), "spoilt": only_three("few/spoilt")})
        answers["before"] = online.ask({"damaged": only_three("few/damaged"), "kept": only_three("few/kept")})
        damage(home)
        answers["after"] = online.ask({"damaged": only_three("few/damaged"), "kept": only_three("few/kept")})
        shared = {"shared": {"sources": ["copies/shared", SUBMIX], "test_share": 0.2, "read": [*SOME, *NOT_IN_MIRROR]}}
        online.start(shared)
        twin.start(shared)
        answers["one"], answers["other"] = online.answer(), twin.answer()
        requests["seen"] = list(server.seen)
        requests["sent"] = {name: server.sent(name) for name in DATASETS}
        server.stop()
        down = {
            "both": {"sources": [MIRROR, SUBMIX]},
            "unknown": {"sources": ["never/seen"]},
            "partly": {"sources": ["few/incomplete"], "only": ["rte"]},
        }  # fmt: skip
        ask("down", down)
        answers["offline"] = offline.ask(down)
    finally:
        for process in (online, twin, offline):
            process.close()
    return types.SimpleNamespace(home=home, endpoint=server.endpoint, **answers, **requests)


def damage(home):
    """Changes one byte of one file in the hub library's cache."""
    folder = home / "hub" / "datasets--few--damaged" / "snapshots" / commit_of("few/damaged", "main")
    path = folder / "train/rte_10templates_train.jsonl"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.resolve().write_bytes(bytes(data))


def test_the_hub_gives_the_rows_that_were_written(hub):
    answer = hub.whole["both"]
    assert answer.names == PAPER and answer.missing == []
    for name in PAPER:
        assert answer.rows[name] == (expected_of_submix(name) if name in NOT_IN_MIRROR else expected(name)), name
        source = SUBMIX if name in NOT_IN_MIRROR else MIRROR
        assert answer.sources[name] == f"{source}@{commit_of(source, 'main')}"
    assert sum(bool(answer.rows[name]["test"]) for name in NOT_IN_MIRROR) == 3


def test_listing_takes_one_request_per_source_and_files_are_fetched_once_when_rows_are_read(hub):
    assert [(seen.name, seen.action) for seen in hub.seen[:2]] == [(MIRROR, "info"), (SUBMIX, "info")]
    assert hub.seen[2].name == MIRROR and hub.seen[2].action == "info"  # the next case's
    wanted = {path for path in WITHOUT_THREE if any(f"/{name}_10templates" in path for name in PAPER)}
    assert sorted(set(hub.sent[MIRROR])) == sorted(wanted)
    assert sorted(hub.sent[SUBMIX]) == ["data/train-00000.parquet", "data/train-00001.parquet"]


def test_a_folder_gives_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("MOSSA_CACHE", str(tmp_path / "cache"))
    mirror, submix = copy(WITHOUT_THREE, tmp_path / "mirror"), copy(SUBMIX_FILES, tmp_path / "submix")
    suite = flan_suite(Tasks(suite="flan2021", sources=(mirror, submix)))
    assert [task.name for task in suite.tasks] == PAPER
    for task in suite.tasks:
        rows = {split: [[row.inputs, row.targets] for row in task.rows(split)] for split in SPLITS}
        from_submix = task.name in NOT_IN_MIRROR
        assert rows == (expected_of_submix(task.name) if from_submix else expected(task.name)), task.name
        assert task.source == (submix if from_submix else mirror)


def test_a_task_comes_from_the_first_source_that_has_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MOSSA_CACHE", str(tmp_path / "cache"))
    mirror, submix = copy(WITHOUT_THREE, tmp_path / "mirror"), copy(SUBMIX_FILES, tmp_path / "submix")
    suite = flan_suite(Tasks(suite="flan2021", sources=(submix, mirror), selection="all69", test_share=0.5))
    sources = {task.name: task.source for task in suite.tasks}
    assert [name for name, source in sources.items() if source == mirror] == ["mnli_mismatched"]
    for task in suite.tasks:
        if task.name in IN_SUBMIX:
            rows = {split: [[row.inputs, row.targets] for row in task.rows(split)] for split in SPLITS}
            assert rows == expected_of_submix(task.name, 0.5)
            assert 10 < len(rows["test"]) < 30


def test_a_submix_is_sorted_once_and_again_when_its_content_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("MOSSA_CACHE", str(tmp_path / "cache"))
    config = Tasks(suite="flan2021", sources=(copy(SUBMIX_FILES, tmp_path / "submix"),), allow_missing=True)

    def winogrande():
        return next(task for task in flan_suite(config).tasks if task.name == "winogrande")

    def made():
        return {path.parents[1] for path in (tmp_path / "cache/flan").rglob("*.parquet")}

    first = winogrande().fingerprint("train")
    before = made()
    assert len(before) == 1
    assert winogrande().fingerprint("train") == first and made() == before
    (tmp_path / "submix/data/train-00001.parquet").unlink()
    assert winogrande().fingerprint("train") != first
    assert len(made()) == 2


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (b"no Parquet", ("not a complete Parquet file",)),
        (SUBMIX_FILES["data/train-00000.parquet"][:-100], ("not a complete Parquet file",)),
        ("columns", ("no column 'task_name'", "inputs, targets")),
    ],
)
def test_a_submix_that_cannot_be_read_is_refused_in_one_line(tmp_path, monkeypatch, data, parts):
    monkeypatch.setenv("MOSSA_CACHE", str(tmp_path / "cache"))
    if data == "columns":
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table({"inputs": ["a"], "targets": ["b"]}), buffer)
        data = buffer.getvalue()
    source = copy({"a.parquet": data}, tmp_path / "submix")
    suite = flan_suite(Tasks(suite="flan2021", sources=(source,), only=("xsum",), allow_missing=True))
    task = next(task for task in suite.tasks if task.name == "xsum")
    with pytest.raises(Refusal) as caught:
        list(task.rows("train"))
    assert caught.value.code == BAD_INPUT
    assert all(part in str(caught.value) for part in (f"{source}, a.parquet", *parts))
    assert not list((tmp_path / "cache").rglob("*.parquet"))


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("three missing", ("3 tasks (winogrande, newsroom, xsum)", f"{MIRROR}@", f"{SUBMIX} has winogrande",
                           f"--config.tasks.sources=\"('{MIRROR}','{SUBMIX}')\"", "--config.tasks.allow_missing=true")),
        ("one asked for", ("task xsum;", f"{SUBMIX} has xsum")),
        ("many missing", ("64 tasks (anli_r1, anli_r2, anli_r3, cb, mnli_matched, ...)", f"('few/kept','{MIRROR}')")),
        ("one part missing", ("task mnli_mismatched;", f"('{SUBMIX}','{MIRROR}')")),
        ("incomplete", ("task rte;", "few/incomplete@")),
        ("nothing there", ("task cb;",)),
        ("revision", (MIRROR, "no revision 'v9'", f"/datasets/{MIRROR} lists")),
        ("layout", ("other/layout@", "_10templates_", "Parquet")),
        ("no id", ("'flan'", "org/name")),
    ],
)  # fmt: skip
def test_an_unavailable_source_is_refused_in_one_line_with_the_way_out(hub, case, parts):
    answer = hub.refused[case]
    assert answer.code == BAD_INPUT
    assert all(part in answer.message for part in parts), answer.message


def test_missing_tasks_can_be_left_out(hub):
    answer = hub.refused["allowed"]
    assert sorted(answer.missing) == NOT_IN_MIRROR
    assert answer.names == [name for name in PAPER if name not in NOT_IN_MIRROR]
    assert len(answer.held_out) == 7


def test_tasks_outside_of_only_may_be_missing(hub):
    answer = hub.refused["none asked for is missing"]
    assert answer.missing == [] and answer.rows["rte"] == expected("rte")


def test_a_task_without_rows_in_the_submix_is_refused_when_it_is_read(hub):
    refused = hub.refused["not in the submix's rows"].rows["cb"]
    assert refused["code"] == BAD_INPUT
    assert all(part in refused["message"] for part in (SUBMIX, "train rows of task cb", "super_glue/cb", "zs_opt"))


def test_gated_and_unknown_data_sets_are_denied_before_anything_is_downloaded(hub):
    for case, name in (("gated", "closed/flan"), ("nobody's", "nobody/nothing")):
        answer = hub.refused[case]
        assert answer.code == NO_ACCESS
        assert all(part in answer.message for part in (f"{hub.endpoint}/datasets/{name}", "HF_TOKEN", "local folder"))
    assert hub.refused["granted"].rows["rte"] == expected("rte")


def test_a_revision_is_read_at_its_own_commit(hub):
    answer = hub.refused["old revision"]
    assert answer.rows["rte"] == expected("rte")
    assert answer.sources["rte"] == f"{MIRROR}@{commit_of(MIRROR, 'v0')}"


@pytest.mark.parametrize("phase", ["half", "third"])
def test_a_bad_network_gives_the_right_rows_or_one_line(hub, phase):
    answer = getattr(hub, phase)[phase]
    right = [name for name, rows in answer.rows.items() if rows == expected(name)]
    refused = {name: rows for name, rows in answer.rows.items() if "code" in rows}
    assert len(right) + len(refused) == len(answer.rows) == {"half": 64, "third": 16}[phase]  # never other rows
    assert len(right) >= 0.9 * len(answer.rows)
    for name, refusal in refused.items():
        assert refusal["code"] == BAD_INPUT and name in refusal["message"]
    repository = f"copies/{phase}"
    assert len(hub.sent[repository]) > len(set(hub.sent[repository]))  # some did come broken


@pytest.mark.parametrize(
    ("phase", "parts"),
    [
        ("endless", ("the connection broke 5 times", "few/endless", "_10templates_train.jsonl", "local folder")),
        ("spoilt", ("another content than the hub names", "few/spoilt", "_10templates_train.jsonl", "local folder")),
    ],
)
def test_a_network_that_never_delivers_a_complete_file_is_refused_in_one_line(hub, phase, parts):
    for name, rows in getattr(hub, phase)[phase].rows.items():
        assert rows["code"] == BAD_INPUT
        assert all(part in rows["message"] for part in (name, *parts)), rows["message"]


def test_a_file_whose_every_body_is_cut_is_resumed_or_refused(hub):
    for name, rows in hub.cut["cut"].rows.items():
        assert rows == expected(name) or (rows["code"] == BAD_INPUT and name in rows["message"])


def test_a_hub_that_always_answers_later_is_refused_in_one_line(hub):
    answer = hub.limited["limited"]
    assert answer.code == BAD_INPUT and "429" in answer.message and "copies/refused" in answer.message
    assert sum(seen.name == "copies/refused" for seen in hub.seen) == 6


def test_no_damaged_file_stays_in_the_cache(hub):
    for case in ("cut", "spoilt"):
        assert getattr(hub, "once more")[case].rows == {name: expected(name) for name in FEW}


def test_a_damaged_file_in_the_cache_is_fetched_again_and_others_are_not(hub):
    for phase in (hub.before, hub.after):
        for case in ("damaged", "kept"):
            assert phase[case].rows == {name: expected(name) for name in FEW}
    files = sorted(path for path in mirror_files(FEW) if path.endswith(".jsonl"))
    assert sorted(hub.sent["few/damaged"]) == sorted([*files, "train/rte_10templates_train.jsonl"])
    assert sorted(hub.sent["few/kept"]) == files


def test_two_processes_at_once_fetch_every_file_once(hub):
    assert hub.one["shared"].rows == hub.other["shared"].rows
    assert sorted(hub.sent["copies/shared"]) == sorted(path for path in mirror_files(SOME) if path.endswith(".jsonl"))
    assert sorted(hub.sent[SUBMIX]) == ["data/train-00000.parquet", "data/train-00001.parquet"]


def test_the_cache_stands_in_for_the_hub(hub):
    for phase, warnings in ((hub.down, 2), (hub.offline, 0)):
        assert phase["both"].rows == hub.whole["both"].rows
        assert phase["both"].sources == hub.whole["both"].sources
        assert len(phase["both"].warnings) == warnings
    assert "Connection refused" in hub.down["both"].warnings[0]


def test_files_outside_of_the_cache_are_refused_without_a_hub(hub):
    for phase, said in ((hub.down, "Connection refused"), (hub.offline, "HF_HUB_OFFLINE")):
        for case in ("unknown", "partly"):
            assert phase[case].code == BAD_INPUT
            assert "local folder" in phase[case].message
            assert said in phase[case].message


class Answered(Exception):
    """An error as the hub's library raises it for an answer of the hub."""

    def __init__(self, status: int, headers: dict[str, str]):
        super().__init__(f"{status} said the hub")
        self.response = types.SimpleNamespace(status_code=status, headers=headers)


@pytest.mark.parametrize(
    ("error", "attempts", "waits"),
    [
        (Answered(500, {}), 6, [(0.5, 1.5), (1, 3), (2, 6), (4, 12), (8, 24)]),
        (Answered(429, {"Retry-After": "7"}), 6, [(7, 7), (7, 7), (7, 7), (7, 12), (8, 24)]),
        (Answered(429, {"Retry-After": "9000"}), 6, [(30, 30)] * 5),
        (ConnectionResetError("peer went away"), 6, [(0.5, 1.5), (1, 3), (2, 6), (4, 12), (8, 24)]),
        (Answered(404, {}), 1, []),
        (Answered(403, {}), 1, []),
        (OSError(errno.ENOSPC, "full"), 1, []),
    ],
)
def test_passing_errors_are_retried_and_lasting_ones_are_not(monkeypatch, error, attempts, waits):
    waited, asked = [], []

    def request():
        asked.append(1)
        raise error

    monkeypatch.setattr(files_of_the_hub.time, "sleep", waited.append)
    with pytest.raises(type(error)):
        files_of_the_hub.retried(request)
    assert len(asked) == attempts and len(waited) == len(waits)
    assert all(least <= seconds <= most for seconds, (least, most) in zip(waited, waits, strict=True))


def test_a_full_disk_is_reported_as_full(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv("MOSSA_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    with pytest.raises(Refusal, match=r"no space left in .* for org/name; free some") as caught:
        download("org/name", "a.jsonl", "0" * 40)
    assert caught.value.code == DISK
