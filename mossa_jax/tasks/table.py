"""A suite in one table: a data set of the hub, or a folder of the same layout, whose rows name their task."""

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
from mossa_jax.files.listing import is_folder
from mossa_jax.foreign import user_path
from mossa_jax.tasks.arrow import (
    BATCH,
    RawRow,
    check_text_column,
    decode_row,
    example_columns,
    label_names,
    raw_rows,
    texts_of,
)
from mossa_jax.tasks.folder import NO_CLUSTER
from mossa_jax.tasks.left_out import columns_beside
from mossa_jax.tasks.suite import SPLITS, Example, LeftOut, Suite, Task, split_of
from mossa_jax.tasks.usable import BadRow, bad_row_counter, check_text, usable_rows

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset


def table_suite(config: Tasks) -> Suite:
    """Reads the tasks of the data set `config.sources[0]`, in the order in which their rows first appear.

    Without a column of tasks, all rows are one task, named after the data set. Without a test split, a prompt's text
    alone decides which split its row belongs to (`config.test_share`).

    Raises:
      Refusal: 3 if the data set cannot be read or lacks the right columns; 4 if it is gated, private or missing on the
        hub; 6 if the disk is full.
    """
    table = _Table(config, *_load(config.sources[0], config.subset))
    for split, rows in table.splits.items():
        example_columns(f"data set {table.source}, split {split}", _schema(rows), config.columns)
    clusters = table.clusters()
    tasks = []
    for name in dict.fromkeys(name for rows_of in table.rows.values() for name in rows_of):
        bad_rows: dict[str, int] = {}
        read = partial(table.read, name, bad_rows)
        cluster = clusters.get(name, NO_CLUSTER)
        tasks.append(Task(name, cluster, read, table.source, bad_rows=bad_rows, licence=table.licence))
    return Suite(table.name, tuple(tasks), left_out=table.left_out())


@dataclass(frozen=True)
class _Table:
    """A data set's splits, whose rows stay in Arrow's memory-mapped files.

    Attributes:
      config: names of the columns, the share of test prompts, and whether bad rows are allowed.
      name: of the data set, without its organisation.
      source: where the data set comes from, with its commit.
      splits: split name -> its table.
      other_splits: names of the splits that are not read.
    """

    config: Tasks
    name: str
    source: str
    splits: dict[str, Dataset]
    other_splits: tuple[str, ...]

    @cached_property
    def rows(self) -> dict[str, dict[str, np.ndarray]]:
        """Split -> task -> [n] indices of its rows, in order."""
        column = self._optional("task")
        if not column:
            return {split: {self.name: np.arange(len(table))} for split, table in self.splits.items()}
        return {split: self._rows_by_value(split, column) for split in self.splits}

    @property
    def licence(self) -> str:
        """The licence that the data set's own description states; empty if it states none."""
        return self.splits["train"].info.license or ""

    def left_out(self) -> tuple[LeftOut, ...]:
        """Returns the splits and the columns that are not read."""
        names, columns = self.splits["train"].column_names, self.config.columns
        unread, misspelt = columns_beside(names, columns)
        unread_splits = [*self.other_splits, *(["validation"] if "validation" in self.splits else [])]
        found = {"other_splits": unread_splits, "misspelt_columns": misspelt, "unread_columns": unread}
        return tuple(LeftOut(kind, tuple(names)) for kind, names in found.items() if names)

    def clusters(self) -> dict[str, str]:
        """Returns task -> cluster; empty if the table has no column of clusters.

        Raises:
          Refusal: 3 if rows of one task name different clusters.
        """
        column = self._optional("cluster")
        cluster_of: dict[str, str] = {}
        for split in self.splits if column else ():
            rows_by_cluster = self._rows_by_value(split, column)
            names = np.asarray(list(rows_by_cluster), object)
            # [rows of the split], each row's index into `names`.
            codes = np.empty(len(self.splits[split]), int)
            for code, indices in enumerate(rows_by_cluster.values()):
                codes[indices] = code
            for task, indices in self.rows[split].items():
                for cluster in names[np.unique(codes[indices])]:
                    if cluster_of.setdefault(task, cluster) != cluster:
                        raise Refusal(
                            BAD_INPUT,
                            f"data set {self.source} puts task {task!r} in clusters {cluster_of[task]!r} and "
                            f"{cluster!r}; name another column (--config.tasks.columns.cluster)",
                        )
        return cluster_of

    def read(self, task: str, bad_rows: dict[str, int], split: str) -> Iterator[Example]:
        """Yields the rows of a task, and counts in `bad_rows` those that are left out."""
        # Without a test split, the rows of `train` are both.
        by_text = "test" not in self.splits and split != "validation"
        stored_in = "train" if by_text else split
        indices = self.rows.get(stored_in, {}).get(task, np.arange(0))
        if split == "validation" and not len(indices):
            return
        numbered = self._numbered_rows(stored_in, indices)
        source = f"data set {self.source}, {split} rows of task {task!r}"
        if by_text:
            numbered = ((number, row) for number, row in numbered if self._split_of(row) == split)
            source += f" by tasks.test_share={self.config.test_share}"
        yield from usable_rows(
            numbered,
            partial(decode_row, columns=self.config.columns),
            bad_row_counter(bad_rows, split, self.config.allow_bad_rows),
            lambda n: f"data set {self.source}, {stored_in} row {n}",
            source,
        )

    def _numbered_rows(self, split: str, indices: np.ndarray) -> Iterator[tuple[int, RawRow]]:
        """Yields rows of a split with their numbers, from 1."""
        table = self.splits[split]
        names = example_columns(f"data set {self.source}", _schema(table), self.config.columns)
        view = table.select_columns(names).with_format("arrow")
        for start in range(0, len(indices), BATCH):
            chunk = indices[start : start + BATCH]
            rows = raw_rows(view[chunk.tolist()], names, self.config.columns, _schema(table))
            yield from zip((chunk + 1).tolist(), rows, strict=True)

    def _split_of(self, row: RawRow) -> str:
        """Returns a row's split by its text; unusable rows belong to `train`, where they are reported."""
        try:
            return split_of(decode_row(row, self.config.columns).inputs, self.config.test_share)
        except BadRow:
            return "train"

    def _optional(self, field: str) -> str:
        """Returns a column's name; empty if the table has no such column and the configuration keeps the default."""
        name, default = getattr(self.config.columns, field), getattr(Columns(), field)
        return "" if name == default and name not in self.splits["train"].column_names else name

    def _rows_by_value(self, split: str, column: str) -> dict[str, np.ndarray]:
        """Returns the column's values, in the order of their first rows -> [n] indices of their rows, in order."""
        import pyarrow.compute

        source = f"data set {self.source}, split {split}"
        data = self.splits[split].data
        schema = _schema(self.splits[split])
        check_text_column(source, schema, column)
        values = data.column(column)
        unique = values.unique()
        try:
            names = [check_text(name, column) for name in texts_of(unique, label_names(schema, column))]
        except BadRow as problem:
            raise Refusal(
                BAD_INPUT,
                f"{source}: {problem} in some row; correct it or name another column (--config.tasks.columns)",
            ) from None
        codes = pyarrow.compute.index_in(values, value_set=unique).to_numpy()
        order = np.argsort(codes, kind="stable")
        starts = np.searchsorted(codes[order], np.arange(len(names)), side="left")
        ends = np.searchsorted(codes[order], np.arange(len(names)), side="right")
        return {name: order[start:end] for name, start, end in zip(names, starts, ends, strict=True)}


def _schema(table: Dataset) -> pyarrow.Schema:
    """Returns the schema of a split, with the names of its labels."""
    return table.features.arrow_schema


def _load(source: str, subset: str) -> tuple[str, str, dict[str, Dataset], tuple[str, ...]]:
    """Loads a data set.

    Args:
      source: a folder, or a hub data set `org/name[@revision]`.
      subset: name of its configuration; empty for the default one.

    Returns:
      The data set's name, where it comes from with its commit, its splits, and the names of those that are not read.
    """
    from datasets import load_dataset

    folder = epath.Path(user_path(source, "config.tasks.sources"))
    if is_folder(folder):
        name, label, commit = str(folder), str(folder), ""
    else:
        name, _, revision = source.partition("@")
        commit, _ = hub.list_files(name, revision or None)
        label = f"{name}@{commit}"
    try:
        tables = load_dataset(name, subset or None, revision=commit or None)
    except Exception as error:  # each builder, transport and version of the library has errors of its own
        raise _refusal(label, error) from None
    # Without a network the library takes whatever commit it read last.
    if any(commit not in file["filename"] for table in tables.values() for file in table.cache_files):
        raise Refusal(
            BAD_INPUT,
            f"data set {label} cannot be fetched from the hub, and the cache holds another commit; run online once",
        )
    if "train" not in tables:
        raise Refusal(
            BAD_INPUT, f"data set {label} has no split 'train', only {', '.join(tables)}; name one that has it"
        )
    others = tuple(split for split in tables if split not in SPLITS)
    return epath.Path(name).name, label, {split: tables[split] for split in SPLITS if split in tables}, others


def _refusal(label: str, error: Exception) -> Refusal:
    """Makes the refusal of a data set that exists but cannot be read."""
    from datasets.exceptions import DatasetGenerationError

    if isinstance(error, DatasetGenerationError) and isinstance(error.__cause__, Exception):
        # The library's own message says only that there was an error.
        error = error.__cause__
    if hub.disk_full(error):
        return Refusal(DISK, f"no space left for data set {label}; free some or set HF_HOME, and run again")
    return Refusal(
        BAD_INPUT,
        f"data set {label} cannot be read ({type(error).__name__}: {str(error)[:400]}); name one of Parquet or JSONL "
        "files, with --config.tasks.subset if it has several subsets",
    )
