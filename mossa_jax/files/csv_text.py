"""CSV that a spreadsheet can open: a cell of text is never run as a formula.

Excel, LibreOffice and Google Sheets compute a cell that begins with `=`, `+`, `-` or `@`, also behind white space, and
a task's name may begin with anything. Such a cell gets an apostrophe in front, which spreadsheets take for "this is
text". Numbers, also as text, stay as they are. `read_csv` takes the apostrophe off again.
"""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING, Any

from etils import epath

if TYPE_CHECKING:
    import pandas as pd

# An apostrophe in front of a text that begins so is the guard. A text of one's own that begins like a guarded one gets
# another, so that taking one off always gives the text back. Spreadsheets of East Asia take the wide signs, too.
_FORMULA = re.compile(r"[\s'\"\x00-\x1f\ufeff]*[=+\-@＝＋－＠]|['\"]*[\t\r\n\x00]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def guard(value: Any) -> Any:
    """Returns a cell with an apostrophe in front where a spreadsheet would run it; what is no text stays as it is."""
    return f"'{value}" if isinstance(value, str) and _is_formula(value) else value


def unguard(value: Any) -> Any:
    """Returns the cell that `guard` got."""
    return value[1:] if isinstance(value, str) and value.startswith("'") and _is_formula(value) else value


def csv_text(table: pd.DataFrame) -> str:
    """Returns a table as CSV, without its index and with its cells and column names guarded."""
    # Python's writer leaves a carriage return bare, and a spreadsheet would begin a row behind it.
    returns: set[str] = set()

    def cell(value: Any) -> Any:
        if isinstance(value, str) and "\r" in value:
            returns.add(value)
        return guard(value)

    guarded = _each_text(table, cell)
    return guarded.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL)


def read_csv(path: epath.PathLike, **options: Any) -> pd.DataFrame:
    """Reads a CSV file that this package wrote, and takes the apostrophes of `guard` off.

    Args:
      path: of the file.
      options: of `pandas.read_csv`; `dtype={"layer": str}` keeps layers as names.
    """
    import pandas as pd

    table = pd.read_csv(io.BytesIO(epath.Path(path).read_bytes()), **options)
    return _each_text(table, unguard)


def _is_formula(text: str) -> bool:
    return _FORMULA.match(text) is not None and _NUMBER.fullmatch(text) is None


def _each_text(table: pd.DataFrame, change: Any) -> pd.DataFrame:
    """Returns a copy of a table in which a function has changed column names and the cells of columns of text."""
    # By position: a table may have two columns of one name.
    columns = [table.iloc[:, index] for index in range(table.shape[1])]
    changed = {
        index: column if column.dtype.kind in "biufcmM" else column.astype(object).map(change)
        for index, column in enumerate(columns)
    }
    result = table.copy(deep=False)
    for index, column in changed.items():
        if column is not columns[index]:
            result.isetitem(index, column)
    result.columns = [change(name) for name in table.columns]
    return result
