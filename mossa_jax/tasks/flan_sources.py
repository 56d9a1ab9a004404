"""Where rows of FLAN 2021 come from: folders and hub data sets in one of two layouts.

A *mirror* has a JSONL file a task and split, `<split>/<task>_10templates_<split>.jsonl`. A *submix* has Parquet files
of all tasks, few-shot and zero-shot prompts mixed, in one split; its zero-shot rows are sorted into a file a task and
split in the cache, once. The list of files tells which of the two a source is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from mossa_jax.config import Columns, Tasks
from mossa_jax.errors import BAD_INPUT, DISK, Refusal
from mossa_jax.files.cache import build_once
from mossa_jax.files.hub import disk_full, is_offline, list_files
from mossa_jax.files.hub_download import download
from mossa_jax.files.names import digest
from mossa_jax.log import log
from mossa_jax.tasks.flan_names import FlanTask
from mossa_jax.tasks.rows import file_digest, file_task, split_of
from mossa_jax.tasks.suite import Task

if TYPE_CHECKING:
    import pyarrow

MIRROR = "Muennighoff/flan"
NOT_IN_MIRROR = ("newsroom", "winogrande", "xsum")
SUBMIX = "DataProvenanceInitiative/flan2021_submix_original"

_MIRROR_FILE = re.compile(r"[^/]+/[^/]+_10templates_[^/]+\.jsonl")
_COLUMNS = ("inputs", "targets", "task_name", "template_type")
# Zero-shot with the options spelled out where a task has some: the prompts of FLAN 2021. Its few-shot rows are not.
_ZERO_SHOT = "zs_opt"
_BATCH_ROWS = 1024
_GROUP_ROWS = 512
_LAYOUT = 1  # of the sorted files in the cache


@dataclass(frozen=True)
class Files:
    """The files of one source.

    Attributes:
      label: the folder, or the hub id with its commit.
      contents: path in the source -> digest of the content, empty where it is not known without reading.
      fetch: path in the source -> the file on this machine.
    """

    label: str
    contents: Mapping[str, str]
    fetch: Callable[[str], Path]


def find_tasks(entries: Sequence[FlanTask], config: Tasks) -> tuple[dict[str, Task], list[str]]:
    """Each entry's task from the first source that has it, by name, and the sources that were searched.

    Raises:
      Refusal: 3 for a source that cannot be had or is of neither layout; 4 for one that is closed to us.
    """
    found: dict[str, Task] = {}
    searched = []
    for source in config.sources or (MIRROR,):
        left = [entry for entry in entries if entry.name not in found]
        if left:
            files = open_source(source)
            searched.append(files.label)
            found |= _tasks_of(files, left, config)
    return found, searched


def open_source(source: str) -> Files:
    """A local folder, or a hub data set `org/name[@revision]`, whose files are listed now and fetched when needed."""
    folder = Path(source).expanduser()
    if source and folder.is_dir():
        paths = [*folder.glob("*/*.jsonl"), *folder.rglob("*.parquet")]
        return Files(str(folder), {path.relative_to(folder).as_posix(): "" for path in paths}, folder.joinpath)
    name, _, revision = source.partition("@")
    if not re.fullmatch(r"[^/.~][^/]*/[^/]+", name):
        raise Refusal(
            BAD_INPUT, f"config.tasks.sources: {source!r} is neither a folder here nor a hub data set org/name"
        )
    commit, contents = list_files(name, revision or None)
    return Files(f"{name}@{commit}", contents, lambda path: download(name, path, commit, contents[path]))


def missing_refusal(entries: Sequence[FlanTask], searched: Sequence[str], config: Tasks) -> Refusal:
    """What to say of tasks that no source has."""
    names = [entry.name for entry in entries]
    listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    what = f"task {names[0]}" if len(names) == 1 else f"{len(names)} tasks ({listed})"
    where = f"no source has {what}; searched: {', '.join(searched)}"
    if is_offline():
        where += ", as far as the cache holds them (HF_HUB_OFFLINE is set)"
    sources = list(config.sources or (MIRROR,))
    known = next((name for name in (MIRROR, SUBMIX) if name not in sources and _is_known_in(entries[0], name)), None)
    more = ""
    if known:
        tuple_text = ",".join(f"'{name}'" for name in [*sources, known])
        more = f'{known} has {names[0]}: add it (--config.tasks.sources="({tuple_text})"), or '
    return Refusal(BAD_INPUT, f"{where}; {more}go on without (--config.tasks.allow_missing=true)")


def _is_known_in(entry: FlanTask, source: str) -> bool:
    return entry.name not in NOT_IN_MIRROR if source == MIRROR else bool(entry.submix)


def _tasks_of(files: Files, entries: Sequence[FlanTask], config: Tasks) -> dict[str, Task]:
    """The tasks of those entries that a source has."""

    def task(entry: FlanTask, locate: Callable[[str], Path | None]) -> Task:
        return file_task(entry.name, entry.cluster, locate, Columns(), config.allow_bad_rows, files.label)

    if any(_MIRROR_FILE.fullmatch(path) for path in files.contents):
        there = [entry for entry in entries if _in_mirror(entry.name, files)]
        return {entry.name: task(entry, partial(_mirror_file, files, entry.name)) for entry in there}
    if any(path.endswith(".parquet") for path in files.contents):
        there = [entry for entry in entries if entry.submix]
        submix = Submix(files, {entry.submix: entry.name for entry in there}, config.test_share)
        return {entry.name: task(entry, partial(submix.file, entry.name)) for entry in there}
    raise Refusal(
        BAD_INPUT,
        f"source {files.label} holds neither <split>/<task>_10templates_<split>.jsonl files nor Parquet files; "
        f"name one that does, as {MIRROR} (--config.tasks.sources)",
    )


def _mirror_path(name: str, split: str) -> str:
    return f"{split}/{name}_10templates_{split}.jsonl"


def _in_mirror(name: str, files: Files) -> bool:
    return all(_mirror_path(name, split) in files.contents for split in ("train", "test"))


def _mirror_file(files: Files, name: str, split: str) -> Path | None:
    path = _mirror_path(name, split)
    return files.fetch(path) if path in files.contents else None


@dataclass
class Submix:
    """Parquet files of many tasks, of which some are wanted.

    Attributes:
      files: the source.
      names: the tasks that are wanted, by what they are called there.
      test_share: share of their rows that are test prompts.
    """

    files: Files
    names: Mapping[str, str]
    test_share: float

    def file(self, name: str, split: str) -> Path | None:
        """The Parquet file of a task's split, with columns inputs and targets."""
        if split == "validation":
            return None
        path = self.folder / split / f"{name}.parquet"
        if not path.exists():
            there = next(there for there, task in self.names.items() if task == name)
            raise Refusal(
                BAD_INPUT,
                f"source {self.files.label} has no {split} rows of task {name} (task_name {there}, template_type "
                f"{_ZERO_SHOT}, config.tasks.test_share={self.test_share:g}); name another source before it "
                "(--config.tasks.sources) or leave the task out (--config.tasks.only)",
            )
        return path

    @cached_property
    def folder(self) -> Path:
        """The cache's folder of `<split>/<task>.parquet` files, made at the first call on this machine."""
        paths = sorted(path for path in self.files.contents if path.endswith(".parquet"))
        contents = [self.files.contents[path] or file_digest(self.files.fetch(path)) for path in paths]
        key = digest([_LAYOUT, contents, sorted(self.names.items()), self.test_share])
        return build_once(f"flan/{key}", partial(self._sort, paths))

    def _sort(self, paths: Sequence[str], folder: Path) -> None:
        log.info("sorting %d tasks out of %d Parquet files of %s, once", len(self.names), len(paths), self.files.label)
        outputs: dict[tuple[str, str], _Output] = {}
        try:
            with ExitStack() as stack:
                for path in paths:
                    for (name, split), rows in self._rows(path):
                        if (name, split) not in outputs:
                            (folder / split).mkdir(exist_ok=True)
                            output = _Output(folder / split / f"{name}.parquet")
                            outputs[name, split] = stack.enter_context(output)
                        outputs[name, split].add(rows)
        except OSError as error:
            if disk_full(error):
                raise Refusal(
                    DISK, f"no space left in {folder.parent} for {self.files.label}; free some or set MOSSA_CACHE"
                ) from None
            raise

    def _rows(self, path: str) -> Iterator[tuple[tuple[str, str], pyarrow.RecordBatch]]:
        """Rows of the wanted tasks in a file: (task, split) and a few of its rows at a time."""
        import pyarrow
        import pyarrow.parquet

        local = self.files.fetch(path)
        place = f"{self.files.label}, {path}"
        try:
            table = pyarrow.parquet.ParquetFile(local, memory_map=True)
            lacking = [name for name in _COLUMNS if name not in table.schema_arrow.names]
            if lacking:
                raise Refusal(
                    BAD_INPUT,
                    f"{place}: no column {lacking[0]!r}; there are {', '.join(table.schema_arrow.names)}: name a "
                    f"source in the layout of {SUBMIX} (--config.tasks.sources)",
                )
            for batch in table.iter_batches(_BATCH_ROWS, columns=list(_COLUMNS)):
                yield from self._sorted(batch)
        except (pyarrow.ArrowException, OSError) as error:
            raise Refusal(
                BAD_INPUT, f"{place} is no whole Parquet file ({str(error).splitlines()[0]}); write or fetch it again"
            ) from None

    def _sorted(self, batch: pyarrow.RecordBatch) -> Iterator[tuple[tuple[str, str], pyarrow.RecordBatch]]:
        import pyarrow

        texts = [batch.column(name).cast(pyarrow.large_string()) for name in ("inputs", "targets")]
        prompts = texts[0].cast(pyarrow.large_binary())  # whether it is UTF-8 is for the reader of the task to say
        kinds, names = (batch.column(name).to_pylist() for name in ("template_type", "task_name"))
        chosen: dict[tuple[str, str], list[int]] = {}
        for row, (kind, name) in enumerate(zip(kinds, names, strict=True)):
            task = self.names.get(_without_version(name or "")) if kind == _ZERO_SHOT else None
            if task:
                prompt = (prompts[row].as_py() or b"").decode(errors="replace")
                chosen.setdefault((task, split_of(prompt, self.test_share)), []).append(row)
        rows = pyarrow.RecordBatch.from_arrays(texts, names=["inputs", "targets"])
        for place, indices in chosen.items():
            yield place, rows.take(pyarrow.array(indices))


@cache
def _without_version(name: str) -> str:
    return re.sub(r":[\d.]+$", "", name)


class _Output:
    """A Parquet file that is written a group of rows at a time."""

    def __init__(self, path: Path):
        self._path = path
        self._waiting: list[pyarrow.RecordBatch] = []

    def __enter__(self) -> _Output:
        import pyarrow
        import pyarrow.parquet

        schema = pyarrow.schema([("inputs", pyarrow.large_string()), ("targets", pyarrow.large_string())])
        self._writer = pyarrow.parquet.ParquetWriter(self._path, schema, compression="zstd")
        return self

    def add(self, rows: pyarrow.RecordBatch) -> None:
        """Writes these rows, or keeps them until there are enough for a group."""
        self._waiting.append(rows)
        if sum(len(batch) for batch in self._waiting) >= _GROUP_ROWS:
            self._flush()

    def __exit__(self, *_) -> None:
        if self._waiting:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        import pyarrow

        self._writer.write_table(pyarrow.Table.from_batches(self._waiting))
        self._waiting = []
