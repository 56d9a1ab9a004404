"""Damage to every kind of file that a run writes: nothing wrong, no traceback; a table of what came of it.

`MOSSA_DAMAGE_FLIPS` sets how many bits of each kind of file are flipped, one after another (50). The run
that is damaged is of a tiny trained model on four real tasks where these lie beside the repository, and else of a
random one on three.
"""

import os
import pathlib
import random
import shutil
import time

import numpy as np
import pytest

import mossa_jax as mossa
from mossa_jax.config import Compare, Config, Schedule, Tasks, Tokens, Tuning, load_config
from mossa_jax.files import checked, sums
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.llama.files.about import read_about
from mossa_jax.processes.stop import Stop
from mossa_jax.run import pipeline, rounds, warnings
from mossa_jax.run.analyse import ANALYSES
from mossa_jax.run.analyse.stages import wanted
from mossa_jax.run.compare import SIMILARITIES
from mossa_jax.run.exported import tuned_adapter
from mossa_jax.run.prepare import prepare
from mossa_jax.run.report import training_curves
from mossa_jax.run.score import SCORES
from mossa_jax.tokens.encoded import encode_rows
from tests.support.damage import OTHERS, TRACEBACK, WRONG, Anew, Said, Tally, copy_run, harm, try_file
from tests.support.paths import SHARED

FLIPS = int(os.environ.get("MOSSA_DAMAGE_FLIPS", "50"))
TASKS = (
    "task1147_country_currency", "task1317_country_calling_code", "task1364_hans_answer_generation",
    "task080_piqa_answer_generation",
)  # fmt: skip
# Files that tell of one attempt, or of the time.
OF_AN_ATTEMPT = ("environment.json", "metrics.jsonl", "log.txt", "report.html", "SHA256SUMS", "README.md")

pytestmark = pytest.mark.slow
tally = Tally()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, request):
    """A finished run with all analyses, and its configuration; or the one that MOSSA_DAMAGE_RUN names."""
    if given := os.environ.get("MOSSA_DAMAGE_RUN"):
        return load_config(given), pathlib.Path(given)
    stories, data = SHARED / "models/stories260K", SHARED / "data/instructions"
    if stories.is_dir() and data.is_dir():
        tasks = Tasks(suite="folder", folder=str(data), only=TASKS, held_out=(), max_train=40, max_test=24)
        base, tokens = str(stories), Tokens(max_tokens=128, row_length=128)
    else:
        tasks = Tasks(suite="folder", folder=str(request.getfixturevalue("tasks_folder")), held_out=())
        base, tokens = str(request.getfixturevalue("tiny").folder), Tokens(max_tokens=48, row_length=64)
    config = Config(
        name="damage", base=base, tasks=tasks, tokens=tokens,
        tuning=Tuning(
            rank=4, reproducible=True, score_prompts=8, score_tokens=4, log_every=2, snapshots=2,
            control=Schedule(epochs=2, batch_rows=4, learning_rate=5e-3),
            experimental=Schedule(epochs=1, batch_rows=4, learning_rate=5e-3),
        ),
        compare=Compare(permutations=20, batch_rows=8, draws=50),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("damage") / "run"
    run_again(config, folder)
    return config, folder


def run_again(config, folder):
    """Runs all stages in a folder."""
    opened = pipeline.open_run(config, str(folder))
    try:
        pipeline.run_all(pipeline.Run(config, opened, Stop()))
    finally:
        opened.close()


@pytest.fixture
def copy(finished, tmp_path):
    return copy_run(finished[1], tmp_path / "run")


@pytest.fixture
def run(finished, copy):
    """A run that has read its rows, on a copy of the folder."""
    opened = pipeline.open_run(finished[0], str(copy))
    run = pipeline.Run(finished[0], opened, Stop())
    prepare(run)
    yield run
    opened.close()


def text(table):
    return table.to_csv(index=False)


def held():
    """Fails where something went wrong since the last call."""
    new, tally.new = tally.new, []
    assert not new, new[:5]


def try_files(name, paths, reader, flips=FLIPS):
    """Damages some files of a kind; `reader` makes the function that reads one."""
    for number, path in enumerate(paths):
        read = reader(path)
        try_file(tally, name, path, paths[number - 1], read, read(), -(-flips // len(paths)), number)
    held()


def test_the_configuration(finished, copy):
    other = copy / "other.json"
    other.write_text((copy / "config.json").read_text().replace("damage", "others"))

    def opened():
        folder = RunFolder(copy)
        try:
            folder.open(finished[0], {})
            return folder.variant
        finally:
            folder.close()

    try_file(tally, "config.json, launch.run", copy / "config.json", other, opened, opened(), FLIPS)
    read = lambda: mossa.Run(copy).config  # noqa: E731
    try_file(tally, "config.json, mossa.Run", copy / "config.json", other, read, read(), FLIPS)
    held()


def test_json_files(copy):
    for name, ask in (
        ("data.json", lambda: mossa.Run(copy).data),
        ("environment.json", lambda: mossa.Run(copy).environment),
        ("results/findings.json", lambda: mossa.Run(copy).analysis),
    ):
        try_file(tally, f"{name}, mossa.Run", copy / name, copy / "rounds.json", ask, ask(), FLIPS)
    held()


def test_records_that_are_made_anew(run, copy):
    for name, ask in (("rounds.json", lambda: rounds._read(run)), ("warnings.json", lambda: warnings._kept(run))):
        right = ask()

        def read(ask=ask, right=right):
            value = ask()
            if value == {} != right:
                raise Anew
            return value

        try_file(tally, f"{name}, launch.run", copy / name, copy / "data.json", read, right, FLIPS)
    held()


def test_tables(copy):
    paths = sorted((copy / "results").glob("*.parquet"))
    try_files("results/*.parquet, mossa.Run", paths, lambda path: lambda: text(mossa.Run(copy).raw_table(path.stem)))

    def known(path):
        def read():
            # launch.run writes it again, and says so where it was damaged.
            if checked.damage(path):
                raise Anew
            return path.read_bytes()

        return read

    try_files("results/*.csv, launch.run", sorted((copy / "results").glob("*.csv")), known)


def test_parts(run):
    kinds = [SIMILARITIES, SCORES, *(analysis.parts for analysis in wanted(run, ANALYSES))]
    for kind in kinds:
        tasks = {run.part(kind, task).path: task for task in run.suite.tasks if run.part(kind, task).path.exists()}

        def reader(path, kind=kind, tasks=tasks):
            def read():
                run._whole.clear()
                run._damaged.clear()
                if not run.has_part(kind, tasks[path]):
                    raise Anew
                return text(run.read_part(kind, tasks[path]))

            return read

        try_files(f"results/parts/{kind.stage}", [pathlib.Path(path) for path in tasks], reader)


def test_lines_of_metrics(run, copy):
    def read():
        curves = text(training_curves(run.folder))
        if warnings.lost_records(run):
            raise Said
        return curves

    try_files("metrics.jsonl, launch.report", [copy / "metrics.jsonl"], lambda path: read)


def test_the_digests_themselves(run, copy):
    def everything():
        run._whole.clear()
        shown = mossa.Run(copy)
        tables = [text(shown.raw_table(name)) for name in shown.tables]
        for task in run.suite.tasks:
            if not run.has_part(SIMILARITIES, task):
                raise Anew
        return [shown.config, shown.data, tables]

    paths = [copy / "SHA256SUMS", copy / "results/SHA256SUMS", copy / "results/parts/cka/SHA256SUMS"]
    try_files("SHA256SUMS", paths, lambda path: everything)


def test_adapters(run, copy):
    names = {read_about(run.tuned_folder(name))["model"]: name for name in (*run.experimental_names, *run.controls)}
    for pattern in ("adapter_model.safetensors", "adapter_config.json", "mossa.json"):
        paths = sorted(pathlib.Path(copy).glob(f"adapters/*/{pattern}"))
        of_path = {path: names[read_about(path.parent)["model"]] for path in paths}

        def reader(path, of_path=of_path):
            def read():
                # As a command does: is it there, and then its adapter.
                if not run.is_tuned(of_path[path]):
                    raise Anew
                adapter = tuned_adapter(run, of_path[path])
                return [[name, *(np.asarray(a).tobytes() for a in each.values())] for name, each in adapter.items()]

            return read

        try_files(f"adapters/*/{pattern}", paths, reader)


def test_cached_rows(run, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("MOSSA_CACHE", str(cache))
    task = run.suite.tasks[0]

    def files():
        return sorted(path for path in (cache / "tokens").rglob("*") if path.is_file() and path.name[0] != ".")

    encode_rows(task, "test", run.tokenizer, run.config)
    right = {path: path.read_bytes() for path in files()}

    def read():
        before = {path: path.read_bytes() for path in files()}
        split = encode_rows(task, "test", run.tokenizer, run.config)
        # What was made anew equals what was there, to the byte.
        if before != right:
            assert {path: path.read_bytes() for path in files()} == right
            raise Anew
        return split.digest

    assert right
    for suffix in sorted({path.suffix for path in right}):
        own = [path for path in right if path.suffix == suffix]
        try_files(f"cache: tokens/*/*{suffix or '/SHA256SUMS'}", own, lambda path: read)


def test_a_run_mends_what_is_damaged(finished, tmp_path):
    """The whole command again, with every part, table and record damaged at once, each in its own way."""
    config, pristine = finished
    for number in range(int(os.environ.get("MOSSA_DAMAGE_RUNS", "2"))):
        copy, draw = copy_run(pristine, tmp_path / f"run{number}"), random.Random(number)
        paths = sorted(copy.glob("results/parts/*/*.parquet")) + sorted(copy.glob("results/*.*"))
        paths += [copy / name for name in ("data.json", "rounds.json", "warnings.json")]
        paths = [path for path in paths if path.name != sums.SUMS]
        damaged = {}
        for at, path in enumerate(paths):
            kind = ["flipped", *OTHERS][(at + number) % 7]
            same = [other for other in path.parent.iterdir() if other.suffix == path.suffix and other != path]
            # A file that was swapped away is damaged, too.
            if path not in damaged and not (kind == "swapped" and not same):
                other = draw.choice(same) if kind == "swapped" else path
                harm(path, kind, draw, other)
                damaged |= dict.fromkeys((path, other), kind)
        run_again(config, copy)
        for path, kind in damaged.items():
            name = path.relative_to(copy)
            is_equal = path.exists() and path.read_bytes() == (pristine / name).read_bytes()
            # The record of rounds that are over is begun anew.
            is_right = is_equal or name.name == "rounds.json"
            tally.add(f"whole run: {name.parent}", kind, "remade" if is_right else WRONG, str(name))
        leftovers = [path for path in copy.rglob("*") if path.name.endswith(".tmp")]
        assert not leftovers
        for path in copy.rglob("*"):
            name = path.relative_to(copy)
            if path.suffix in (".parquet", ".csv", ".safetensors") and not (pristine / name).exists():
                tally.add("whole run: new files", "", TRACEBACK, str(name))
        for folder in {path.parent for path in copy.rglob(sums.SUMS)}:
            for name in [line.split()[1] for line in (folder / sums.SUMS).read_text().splitlines()]:
                assert sums.is_intact(folder / name), (folder, name)
        shutil.rmtree(copy)
    held()


def test_the_table(finished, capsys):
    """Prints what came of it all, and what the digests of a run cost here."""
    files = [path for path in finished[1].rglob("*") if path.is_file() and sums.recorded(path)]
    assert files
    start = time.perf_counter()
    size = sum(len(path.read_bytes()) for path in files if sums.is_intact(path))
    seconds = time.perf_counter() - start
    with capsys.disabled():
        print(f"\n{tally.table()}\n{len(files)} files with a digest, {size:,} bytes, {seconds:.3f} s to read and hash")
        print("\n".join(tally.worst[:40]))
    assert not tally.worst
