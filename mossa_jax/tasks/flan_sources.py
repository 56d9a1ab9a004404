"""Sources of FLAN 2021's rows: folders and hub data sets in one of two layouts.

A *mirror* has one JSONL file per task and split, `<split>/<task>_10templates_<split>.jsonl`. A *submix* has Parquet
files of all tasks in one split, few-shot and zero-shot prompts mixed; its zero-shot rows are sorted once into one file
per task and split, in the cache. The list of files tells which of the two a source is.
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
from mossa_jax.files.listing import is_nobodys
from mossa_jax.files.names import digest
from mossa_jax.foreign import user_path
from mossa_jax.log import log
from mossa_jax.tasks.flan_names import FlanTask
from mossa_jax.tasks.row_files import file_digest, file_task
from mossa_jax.tasks.suite import Task, split_of

if TYPE_CHECKING:
    import pyarrow

MIRROR = "Muennighoff/flan"
NOT_IN_MIRROR = ("newsroom", "winogrande", "xsum")
SUBMIX = "DataProvenanceInitiative/flan2021_submix_original"

_MIRROR_FILE = re.compile(r"[^/]+/[^/]+_10templates_[^/]+\.jsonl")
_COLUMNS = ("inputs", "targets", "task_name", "template_type")
# Zero-shot with the options spelled out for tasks that have some: the prompts of FLAN 2021. Few-shot rows are not.
_ZERO_SHOT = "zs_opt"
# Rows that are read at once, and rows that are written as one group of a Parquet file.
_BATCH_ROWS = 1024
_GROUP_ROWS = 512
# Version of the sorted files in the cache; another number makes them anew.
_LAYOUT = 1


@dataclass(frozen=True)
class Files:
    """The files of one source.

    Attributes:
      label: the folder, or the hub id with its commit.
      contents: path in the source -> digest of the content, empty if it is not known without reading.
      fetch: path in the source -> the file on this machine.
    """

    label: str
    contents: Mapping[str, str]
    fetch: Callable[[str], Path]


def find_tasks(entries: Sequence[FlanTask], config: Tasks) -> tuple[dict[str, Task], list[str]]:
    """Takes each entry's task from the first source that has it.

    Returns:
      The tasks by name, and the labels of the sources that were searched.

    Raises:
      Refusal: 3 for a source that cannot be read or is of neither layout; 4 for one to which access is denied.
    """
    task_of: dict[str, Task] = {}
    searched: list[str] = []
    for source in config.sources or (MIRROR,):
        wanted = [entry for entry in entries if entry.name not in task_of]
        if wanted:
            files = open_source(source)
            searched.append(files.label)
            task_of |= _tasks_of(files, wanted, config)
    return task_of, searched


def open_source(source: str) -> Files:
    """Lists the files of a source; they are fetched when needed.

    Args:
      source: a local folder, or a hub data set `org/name[@revision]`.

    Raises:
      Refusal: 3 for a name that is neither, or a data set that cannot be listed; 4 if access is denied.
    """
    folder = Path(user_path(source, "config.tasks.sources"))
    if folder.is_dir():
        paths = [*folder.glob("*/*.jsonl"), *folder.rglob("*.parquet")]
        paths = [path for path in paths if not is_nobodys(path.name)]
        return Files(str(folder), {path.relative_to(folder).as_posix(): "" for path in paths}, folder.joinpath)
    name, _, revision = source.partition("@")
    if not re.fullmatch(r"[^/.~][^/]*/[^/]+", name):
        raise Refusal(
            BAD_INPUT, f"config.tasks.sources: {source!r} is neither a folder nor a hub data set org/name; name one"
        )
    commit, contents = list_files(name, revision or None)
    return Files(f"{name}@{commit}", contents, lambda path: download(name, path, commit, contents[path]))


def missing_refusal(entries: Sequence[FlanTask], searched: Sequence[str], config: Tasks) -> Refusal:
    """Makes the refusal for tasks that no source has, with a source that is known to have the first of them."""
    names = [entry.name for entry in entries]
    listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    lost = f"task {names[0]}" if len(names) == 1 else f"{len(names)} tasks ({listed})"
    message = f"no source has {lost}; searched: {', '.join(searched)}"
    if is_offline():
        message += ", as far as the cache holds them (HF_HUB_OFFLINE is set)"
    sources = list(config.sources or (MIRROR,))
    known = next((name for name in (MIRROR, SUBMIX) if name not in sources and _is_known_in(entries[0], name)), None)
    remedy = ""
    if known:
        tuple_text = ",".join(f"'{name}'" for name in [*sources, known])
        remedy = f'{known} has {names[0]}: add it (--config.tasks.sources="({tuple_text})"), or '
    return Refusal(BAD_INPUT, f"{message}; {remedy}continue without (--config.tasks.allow_missing=true)")


def _is_known_in(entry: FlanTask, source: str) -> bool:
    return entry.name not in NOT_IN_MIRROR if source == MIRROR else bool(entry.submix)


def _tasks_of(files: Files, entries: Sequence[FlanTask], config: Tasks) -> dict[str, Task]:
    """Returns the tasks of those entries that a source has, by name."""

    def task(entry: FlanTask, locate: Callable[[str], Path | None]) -> Task:
        return file_task(entry.name, entry.cluster, locate, Columns(), config.allow_bad_rows, files.label)

    if any(_MIRROR_FILE.fullmatch(path) for path in files.contents):
        in_mirror = [entry for entry in entries if _in_mirror(entry.name, files)]
        return {entry.name: task(entry, partial(_mirror_file, files, entry.name)) for entry in in_mirror}
    if any(path.endswith(".parquet") for path in files.contents):
        in_submix = [entry for entry in entries if entry.submix]
        submix = Submix(files, {entry.submix: entry.name for entry in in_submix}, config.test_share)
        return {entry.name: task(entry, partial(submix.file, entry.name)) for entry in in_submix}
    raise Refusal(
        BAD_INPUT,
        f"source {files.label} holds neither <split>/<task>_10templates_<split>.jsonl files nor Parquet files; "
        f"name one that does, such as {MIRROR} (--config.tasks.sources)",
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
      names: name in the source -> name of the task, for the wanted tasks.
      test_share: share of their rows that are test prompts.
    """

    files: Files
    names: Mapping[str, str]
    test_share: float

    def file(self, name: str, split: str) -> Path | None:
        """Returns the Parquet file of a task's split, with columns inputs and targets; None for `validation`.

        Raises:
          Refusal: 3 if the source has no rows for it.
        """
        if split == "validation":
            return None
        path = self.folder / split / f"{name}.parquet"
        if not path.exists():
            name_there = next(submix_name for submix_name, task in self.names.items() if task == name)
            raise Refusal(
                BAD_INPUT,
                f"source {self.files.label} has no {split} rows of task {name} (task_name {name_there}, template_type "
                f"{_ZERO_SHOT}, config.tasks.test_share={self.test_share:g}); name another source before it "
                "(--config.tasks.sources) or leave the task out (--config.tasks.only)",
            )
        return path

    @cached_property
    def folder(self) -> Path:
        """The cache's folder of `<split>/<task>.parquet` files, made on first use on this machine."""
        paths = sorted(path for path in self.files.contents if path.endswith(".parquet"))
        contents = [self.files.contents[path] or file_digest(self.files.fetch(path)) for path in paths]
        key = digest([_LAYOUT, contents, sorted(self.names.items()), self.test_share])
        return build_once(f"flan/{key}", partial(self._sort, paths))

    def _sort(self, paths: Sequence[str], folder: Path) -> None:
        """Sorts the rows of the wanted tasks into one file per task and split."""
        log.info(
            "sorting the rows of %d tasks out of %d Parquet files of %s; this is done once",
            len(self.names),
            len(paths),
            self.files.label,
        )
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
        """Yields the wanted tasks' rows in a file: (task, split) and a few of its rows at a time."""
        import pyarrow
        import pyarrow.parquet

        local = self.files.fetch(path)
        place = f"{self.files.label}, {path}"
        try:
            parquet = pyarrow.parquet.ParquetFile(local, memory_map=True)
            missing = [name for name in _COLUMNS if name not in parquet.schema_arrow.names]
            if missing:
                raise Refusal(
                    BAD_INPUT,
                    f"{place}: no column {missing[0]!r}; there are {', '.join(parquet.schema_arrow.names)}: name a "
                    f"source in the layout of {SUBMIX} (--config.tasks.sources)",
                )
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=list(_COLUMNS)):
                yield from self._sorted(batch)
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise Refusal(
                BAD_INPUT, f"{place} is not a complete Parquet file ({reason}); write or fetch it again"
            ) from None

    def _sorted(self, batch: pyarrow.RecordBatch) -> Iterator[tuple[tuple[str, str], pyarrow.RecordBatch]]:
        """Splits a batch by task and split, and leaves out rows of other tasks and few-shot prompts."""
        import pyarrow

        texts = [batch.column(name).cast(pyarrow.large_string()) for name in ("inputs", "targets")]
        # Text that is not UTF-8 is refused or counted when the task is read, not here.
        prompts = texts[0].cast(pyarrow.large_binary())
        template_types, names = (batch.column(name).to_pylist() for name in ("template_type", "task_name"))
        rows_of: dict[tuple[str, str], list[int]] = {}
        for row, (template_type, name) in enumerate(zip(template_types, names, strict=True)):
            task = self.names.get(_without_version(name or "")) if template_type == _ZERO_SHOT else None
            if task:
                prompt = (prompts[row].as_py() or b"").decode(errors="replace")
                rows_of.setdefault((task, split_of(prompt, self.test_share)), []).append(row)
        examples = pyarrow.RecordBatch.from_arrays(texts, names=["inputs", "targets"])
        for task_and_split, rows in rows_of.items():
            yield task_and_split, examples.take(pyarrow.array(rows))


@cache
def _without_version(name: str) -> str:
    """Returns a task's name in the submix without its version, as in `glue/rte:2.0.0`."""
    return re.sub(r":[\d.]+$", "", name)


class _Output:
    """A Parquet file that is written one group of rows at a time."""

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
        """Writes these rows as soon as there are enough for a group."""
        self._waiting.append(rows)
        if sum(len(batch) for batch in self._waiting) >= _GROUP_ROWS:
            self._flush()

    def __exit__(self, *_: object) -> None:
        if self._waiting:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        import pyarrow

        self._writer.write_table(pyarrow.Table.from_batches(self._waiting))
        self._waiting = []
