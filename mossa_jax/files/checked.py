"""Files of a run folder, written with their digests (`sums`) and checked when they are read back.

Nothing is parsed before its digest is known to be right: a damaged Parquet file can end a process. Folders of versions
without digests are read, which is said once.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from etils import epath

from mossa_jax import foreign
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files import sums
from mossa_jax.files.write import csv_bytes, json_bytes, parquet_bytes
from mossa_jax.log import log

if TYPE_CHECKING:
    import pandas as pd

RUN_AGAIN = "launch.run makes it anew"
"""The way out where a file of results is damaged."""

_told: set[str] = set()


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes indented JSON with its digest.

    Raises:
      ValueError: for NaN and infinity, which JSON does not have.
      Refusal: 6, as `write_bytes`.
    """
    sums.write_summed(path, json_bytes(value))


def write_table(path: epath.PathLike, table: pd.DataFrame) -> None:
    """Writes a table as Parquet at `path` and as CSV beside it, with their digests.

    A file that lay there damaged is named in the log, since who read it should know.
    """
    path = epath.Path(path)
    for place, data in ((path, parquet_bytes(table)), (path.with_suffix(".csv"), csv_bytes(table))):
        if (what := damage(place)) is not None:
            log.warning("%s: made anew", what)
        sums.write_summed(place, data)


def damage(path: epath.PathLike) -> str | None:
    """Says what is wrong with a file whose digest is known: "PATH is not as it was written"; None if nothing is."""
    path = epath.Path(path)
    if sums.is_intact(path) is not False:
        return None
    return f"{path} {'is not as it was written' if path.exists() else 'is gone'}"


def read_intact(path: epath.PathLike, way_out: str = RUN_AGAIN, code: int = BAD_INPUT) -> bytes:
    """Reads a file of a run folder.

    Args:
      path: of the file.
      way_out: what the user can do if it is damaged, for the message.
      code: of the refusal.

    Raises:
      Refusal: `code` when it is gone, cannot be read, or is not as it was written.
    """
    path = epath.Path(path)
    try:
        foreign.check_file(path, way_out)
        data = path.read_bytes()
    except Refusal as refusal:
        raise Refusal(code, str(refusal)) from None
    except OSError as error:
        raise Refusal(code, f"{path} cannot be read ({error.strerror or error}); {way_out}") from None
    agreement = sums.agrees(path, data)
    if agreement is False:
        raise Refusal(code, f"{path} is not as it was written, by {sums.SUMS} beside it; {way_out}")
    if agreement is None and str(path.parent) not in _told:
        _told.add(str(path.parent))
        log.info("%s was written before digests were; its files are read unchecked", path.parent)
    return data


def read_json(path: epath.PathLike, way_out: str = RUN_AGAIN, code: int = BAD_INPUT) -> dict[str, Any]:
    """Reads a JSON file of a run folder that holds an object.

    Raises:
      Refusal: as `read_intact`, and when it is no JSON object.
    """
    data = read_intact(path, way_out, code)
    try:
        value = foreign.parse_json(data, path, way_out)
    except Refusal as refusal:
        raise Refusal(code, str(refusal)) from None
    if not isinstance(value, dict):
        raise Refusal(code, f"{path} holds no JSON object; {way_out}")
    return value


def read_table(path: epath.PathLike, way_out: str = RUN_AGAIN) -> pd.DataFrame:
    """Reads a table of a run folder.

    Raises:
      Refusal: 3, as `read_intact`, and when it is no Parquet file.
    """
    return parse_table(read_intact(path, way_out), path, way_out)


def parse_table(data: bytes, path: epath.PathLike, way_out: str = RUN_AGAIN) -> pd.DataFrame:
    """Returns the table of a Parquet file's content.

    Raises:
      Refusal: 3 when it is none.
    """
    import pandas as pd

    try:
        return pd.read_parquet(io.BytesIO(data))
    except Exception as error:  # of pyarrow's many kinds
        raise Refusal(BAD_INPUT, f"{path} is no Parquet file ({type(error).__name__}: {error}); {way_out}") from None
