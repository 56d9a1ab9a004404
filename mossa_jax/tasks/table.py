"""A suite in one table: a data set of the hub, or a folder of the same layout, whose rows say which task they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
from etils import epath

from mossa_jax.config import Columns, Tasks
from mossa_jax.errors import BAD_INPUT, DISK, Refusal
from mossa_jax.files import hub
from mossa_jax.tasks.folder import NO_CLUSTER
from mossa_jax.tasks.row_files import (
    BATCH,
    BadRow,
    RawRow,
    check_text,
    check_text_column,
    decoded,
    example_columns,
    raw_rows,
    split_of,
    texts_of,
    usable_rows,
)
from mossa_jax.tasks.suite import SPLITS, Example, Suite, Task

if TYPE_CHECKING:
    from datasets import Dataset


def table_suite(config: Tasks) -> Suite:
    """The tasks of the data set `config.sources[0]`, in the order in which their rows first appear.

    Without a column of tasks all rows are one task, named after the data set. Without a test split, a prompt's text
    alone decides where its row belongs (`config.test_share`).

    Raises:
      Refusal: 3 when the data set cannot be read or has not the right columns; 4 when it is gated, private or
        missing on the hub; 6 when the disk is full.
    """
    table = _Table(config, *_load(config.sources[0], config.subset))
    for split, rows in table.splits.items():
        example_columns(f"data set {table.source}, split {split}", rows.data.schema, config.columns)
    clusters = table.clusters()
    tasks = []
    for name in dict.fromkeys(name for groups in table.rows.values() for name in groups):
        bad_rows: dict[str, int] = {}
        read = partial(table.read, name, bad_rows)
        tasks.append(Task(name, clusters.get(name, NO_CLUSTER), read, table.source, bad_rows=bad_rows))
    return Suite(table.name, tuple(tasks))


@dataclass(frozen=True)
class _Table:
    """A data set's splits, whose rows stay in Arrow's memory-mapped files."""

    config: Tasks
    name: str
    source: str
    splits: dict[str, Dataset]

    @cached_property
    def rows(self) -> dict[str, dict[str, np.ndarray]]:
        """Split -> task -> indices of its rows, in order."""
        column = self._optional("task")
        if not column:
            return {split: {self.name: np.arange(len(table))} for split, table in self.splits.items()}
        return {split: self._groups(split, column) for split in self.splits}

    def clusters(self) -> dict[str, str]:
        """Task -> cluster, which must be the same in all of its rows; empty where the table does not say."""
        column = self._optional("cluster")
        found: dict[str, str] = {}
        for split in self.splits if column else ():
            groups = self._groups(split, column)
            codes = np.empty(len(self.splits[split]), int)
            for code, indices in enumerate(groups.values()):
                codes[indices] = code
            for task, indices in self.rows[split].items():
                for cluster in np.asarray(list(groups), object)[np.unique(codes[indices])]:
                    if found.setdefault(task, cluster) != cluster:
                        raise Refusal(
                            BAD_INPUT,
                            f"data set {self.source} puts task {task!r} in clusters {found[task]!r} and {cluster!r}; "
                            "name another column (--config.tasks.columns.cluster)",
                        )
        return found

    def read(self, task: str, bad_rows: dict[str, int], split: str) -> Iterator[Example]:
        """Rows of a task, with those that are left out counted in `bad_rows`."""

        def count_bad() -> None:
            bad_rows[split] = bad_rows.get(split, 0) + 1

        shared = "test" not in self.splits and split != "validation"
        held_in = "train" if shared else split
        indices = self.rows.get(held_in, {}).get(task, np.arange(0))
        if split == "validation" and not len(indices):
            return
        raws = self._raws(held_in, indices)
        whole = f"data set {self.source}, {split} rows of task {task!r}"
        if shared:
            raws = ((number, row) for number, row in raws if self._split_of(row) == split)
            whole += f" by tasks.test_share={self.config.test_share}"
        yield from usable_rows(
            raws,
            partial(decoded, columns=self.config.columns),
            count_bad if self.config.allow_bad_rows else None,
            lambda n: f"data set {self.source}, {held_in} row {n}",
            whole,
        )

    def _raws(self, split: str, indices: np.ndarray) -> Iterator[tuple[int, RawRow]]:
        table = self.splits[split]
        names = example_columns(f"data set {self.source}", table.data.schema, self.config.columns)
        view = table.select_columns(names).with_format("arrow")
        for start in range(0, len(indices), BATCH):
            some = indices[start : start + BATCH]
            yield from zip((some + 1).tolist(), raw_rows(view[some.tolist()], names), strict=True)

    def _split_of(self, row: RawRow) -> str:
        """Where a row belongs; unusable ones are met in `train`."""
        try:
            return split_of(decoded(row, self.config.columns).inputs, self.config.test_share)
        except BadRow:
            return "train"

    def _optional(self, field: str) -> str:
        """A column's name; empty where there is none and none was asked for."""
        name, usual = getattr(self.config.columns, field), getattr(Columns(), field)
        return "" if name == usual and name not in self.splits["train"].column_names else name

    def _groups(self, split: str, column: str) -> dict[str, np.ndarray]:
        """The column's values in order of their first rows -> indices of these rows, in order."""
        import pyarrow.compute

        place = f"data set {self.source}, split {split}"
        data = self.splits[split].data
        check_text_column(place, data.schema, column)
        values = data.column(column)
        unique = values.unique()
        try:
            names = texts_of(unique)
            for name in names:
                check_text(name, column)
        except BadRow as problem:
            raise Refusal(
                BAD_INPUT,
                f"{place}: {problem} in some row; mend it or name another column (--config.tasks.columns)",
            ) from None
        codes = pyarrow.compute.index_in(values, value_set=unique).to_numpy()
        order = np.argsort(codes, kind="stable")
        starts = np.searchsorted(codes[order], np.arange(len(names)), side="left")
        ends = np.searchsorted(codes[order], np.arange(len(names)), side="right")
        return {name: order[start:end] for name, start, end in zip(names, starts, ends, strict=True)}


def _load(source: str, subset: str) -> tuple[str, str, dict[str, Dataset]]:
    """A data set's name, where it comes from with its commit, and its splits."""
    from datasets import load_dataset

    folder = epath.Path(source).expanduser()
    if folder.is_dir():
        name, place, commit = str(folder), str(folder), ""
    else:
        name, _, revision = source.partition("@")
        commit, _ = hub.list_files(name, revision or None)
        place = f"{name}@{commit}"
    try:
        found = load_dataset(name, subset or None, revision=commit or None)
    except Exception as error:  # each builder, transport and version of the library has errors of its own
        raise _refusal(place, error) from None
    # Without a network the library takes whatever commit it read last.
    if any(commit not in file["filename"] for table in found.values() for file in table.cache_files):
        raise Refusal(
            BAD_INPUT,
            f"data set {place} cannot be had from the hub, and the cache holds another commit; run online once",
        )
    if "train" not in found:
        raise Refusal(BAD_INPUT, f"data set {place} has no split 'train', only {', '.join(found)}; give one that has")
    return epath.Path(name).name, place, {split: found[split] for split in SPLITS if split in found}


def _refusal(place: str, error: Exception) -> Refusal:
    """Why a data set that is there cannot be read, and what to do about it."""
    from datasets.exceptions import DatasetGenerationError

    if isinstance(error, DatasetGenerationError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the library's own message says no more than that there was one
    if hub.disk_full(error):
        return Refusal(DISK, f"no space left for data set {place}; free some or set HF_HOME, and run again")
    return Refusal(
        BAD_INPUT,
        f"data set {place} cannot be read ({type(error).__name__}: {str(error)[:400]}); give one in Parquet or JSONL "
        "files, with --config.tasks.subset where it has several",
    )
