"""States with the rows that they belong to, as tables and files for other tools: probes, statistics, plots."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from etils import epath
from jaxtyping import Float
from safetensors.numpy import save

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files import sums
from mossa_jax.files.listing import is_folder
from mossa_jax.files.write import ABOUT, new_folder, write_bytes, write_json, write_parquet, write_text
from mossa_jax.foreign import check_file, check_pointer, parse_json, user_path
from mossa_jax.outputs import check_output
from mossa_jax.similarity.intake import real_array
from mossa_jax.states import TokenStates
from mossa_jax.states.folders import open_states
from mossa_jax.tasks import Example

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

STATES = "states:"
"""In a table, the column of a layer's states is called this and the layer's name."""

_ARRAYS, _ROWS = "states.safetensors", "rows.parquet"
_METADATA = b"mossa_layers"


def states_table(
    states: Mapping[str, Float[np.ndarray, "n D"]],
    examples: Sequence[Example] | pd.DataFrame | None = None,
    **columns: str | int | float,
) -> pd.DataFrame:
    """Joins states with the rows that they belong to: one row per prompt, or per token of pool "tokens".

    Args:
      states: from `layer_states`: layer name -> [n, D].
      examples: one per prompt, from `load_task`, or a table with one row per prompt.
      **columns: the same in every row, such as `task="rte"` and `model="tuned"`.

    Returns:
      The given columns; `prompt`, the prompt's number, and for tokens `position` and `token`; those of `examples`
      (`inputs`, `targets`, `template`, `item`); and a column `states:LAYER` per layer, whose cells are [D] float32.

    Raises:
      Refusal: 3 if there are not as many examples as prompts.

    Example:
      >>> import mossa_jax as mossa, numpy as np
      >>> examples = mossa.load_task("demo", "sentiment_surprise", limit=200)
      >>> states = mossa.layer_states(model, [example.inputs for example in examples])
      >>> table = mossa.states_table(states, examples, task="sentiment_surprise")
      >>> probe = LogisticRegression().fit(np.stack(table["states:4"]), table.targets)
    """
    states = _checked(states)
    table = _rows_table(states, examples, columns)
    for name, array in states.items():
        table[STATES + name] = list(array)
    return table


def save_states(
    path: str | PathLike[str],
    states: Mapping[str, Float[np.ndarray, "n D"]],
    examples: Sequence[Example] | pd.DataFrame | None = None,
    **columns: str | int | float,
) -> None:
    """Writes states with the rows that they belong to.

    A path that ends in `.parquet` becomes one table, as `states_table` makes it, whose states are columns of lists with
    a fixed length. Any other path becomes a folder: `states.safetensors` with an array per layer, `rows.parquet` with
    the other columns and `ids.txt`, by which `compare_saved` sees that two folders hold the same prompts in one order.

    Args:
      path: of the table or the folder; replaced as a whole.
      states: as in `states_table`; arrays of NumPy, JAX or torch. Their number type is kept, but for integers and long
        doubles, which become float64, and for bfloat16 in a table, which becomes float32.
      examples: as in `states_table`.
      **columns: as in `states_table`.

    Raises:
      Refusal: 2 if nothing can be written there; 3 if there are not as many examples as prompts, or the states are no
        arrays of real numbers; 6 if the disk is full.

    Example:
      >>> mossa.save_states("states/tuned", states, examples, task="rte", model="tuned")
      >>> mossa.save_states("states/base", others, examples, task="rte", model="base")
      >>> mossa.compare_saved("states/base", "states/tuned")
      >>> states, rows = mossa.load_states("states/tuned")
    """
    name = user_path(path, "path")
    place = epath.Path(name)
    check_output(name, "path", "file" if place.suffix == ".parquet" else "folder")
    states = _checked(states)
    rows = _rows_table(states, examples, columns)
    if place.suffix == ".parquet":
        import pyarrow.parquet as pq

        buffer = io.BytesIO()
        pq.write_table(_arrow_table(rows, states), buffer)
        write_bytes(place, buffer.getvalue())
        return
    with new_folder(place) as folder:
        write_bytes(folder / _ARRAYS, save({name: np.ascontiguousarray(array) for name, array in states.items()}))
        write_parquet(folder / _ROWS, rows)
        write_text(folder / "ids.txt", "".join(f"{name}\n" for name in _ids(rows)))
        write_json(folder / ABOUT, {"layers": list(states), "rows": len(rows), **columns})
        sums.seal(list(folder.iterdir()))


def load_states(path: str | PathLike[str]) -> tuple[dict[str, Float[np.ndarray, "n D"]], pd.DataFrame]:
    """Reads what `save_states` wrote.

    Args:
      path: of the table or the folder.

    Returns:
      Layer name -> [n, D] in the order of the layers, and the other columns, one row per row of the states.

    Raises:
      Refusal: 3 if it is neither, or holds something else.
    """
    place = epath.Path(user_path(path, "path"))
    if place.suffix == ".parquet" and not is_folder(place):
        return _read_table(place)
    if not (place / _ARRAYS).is_file() or not (place / _ROWS).is_file():
        raise Refusal(BAD_INPUT, f"{place} holds no states; give a folder or a .parquet file of mossa.save_states")
    # The tensors of a file are sorted by name; the folder is read as `compare_saved` does, in the order of layers.
    saved = open_states(str(place))
    sums.check(place / _ROWS)
    rows = _read_parquet(place / _ROWS).to_pandas()
    if len(rows) != saved.rows:
        raise Refusal(BAD_INPUT, f"{place / _ROWS} has {len(rows)} rows and {_ARRAYS} {saved.rows}; save both again")
    return {name: np.array(read()) for name, read in saved.layers.items()}, rows


def _checked(states: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns states as arrays that every format of files can hold; the positions of tokens stay with them.

    Raises:
      Refusal: 3 if there are none, or one is no [n, D] of real numbers with as many rows as the first.
    """
    arrays = {name: np.asarray(real_array(array, f"states[{name!r}]")) for name, array in states.items()}
    if not arrays:
        raise Refusal(BAD_INPUT, "there are no states; give an array [rows, width] per layer")
    first = next(iter(arrays))
    for name, array in arrays.items():
        if array.ndim != 2 or len(array) != len(arrays[first]):
            rows = f"[{len(arrays[first])}, width]" if arrays[first].ndim == 2 else "[rows, width]"
            raise Refusal(BAD_INPUT, f"states[{name!r}] has shape {list(array.shape)}; give {rows} for every layer")
    if isinstance(states, TokenStates):
        return TokenStates(arrays, states.prompt, states.position, states.token)
    return arrays


def _rows_table(
    states: Mapping[str, np.ndarray], examples: Sequence[Example] | pd.DataFrame | None, columns: Mapping[str, Any]
) -> pd.DataFrame:
    """Returns the columns beside the states, one row per row of them."""
    import pandas as pd

    count = len(next(iter(states.values())))
    index: dict[str, np.ndarray] = {"prompt": np.arange(count, dtype=np.int32)}
    if isinstance(states, TokenStates):
        index = {"prompt": states.prompt, "position": states.position, "token": states.token}
    prompts = int(index["prompt"].max(initial=-1)) + 1
    table = pd.DataFrame({**{name: [value] * count for name, value in columns.items()}, **index})
    if examples is None:
        return table
    own = examples if isinstance(examples, pd.DataFrame) else pd.DataFrame([asdict(example) for example in examples])
    if len(own) != prompts:
        raise Refusal(BAD_INPUT, f"there are {len(own)} examples and states of {prompts} prompts; give one per prompt")
    # Tokens of a prompt repeat its example.
    own = own.drop(columns=[name for name in own.columns if name in table.columns])
    return pd.concat([table, own.iloc[index["prompt"]].reset_index(drop=True)], axis=1)


def _ids(rows: pd.DataFrame) -> list[str]:
    """Returns one id per row: its numbers, and digits of its prompt's text where that is known."""
    numbers = rows[[name for name in ("prompt", "position", "token") if name in rows]].astype(str).agg(":".join, axis=1)
    if "inputs" not in rows:
        return numbers.tolist()
    texts = [hashlib.sha256(text.encode()).hexdigest()[:12] for text in rows.inputs]
    return [f"{number}:{text}" for number, text in zip(numbers, texts, strict=True)]


def _arrow_table(rows: pd.DataFrame, states: Mapping[str, np.ndarray]) -> pa.Table:
    """Joins the columns of rows with a column of fixed-size lists per layer."""
    import pyarrow as pa

    table = pa.Table.from_pandas(rows, preserve_index=False)
    for name, array in states.items():
        # Parquet has no bfloat16, and float32 holds all of it.
        array = array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array
        flat = np.ascontiguousarray(array).reshape(-1)
        table = table.append_column(STATES + name, pa.FixedSizeListArray.from_arrays(pa.array(flat), array.shape[1]))
    return table.replace_schema_metadata(table.schema.metadata | {_METADATA: json.dumps(list(states)).encode()})


def _read_parquet(path: epath.Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_file(path, "give a table of mossa.save_states")
    with path.open("rb") as file:
        check_pointer(path, file.read(64))
    try:
        return pq.read_table(io.BytesIO(path.read_bytes()))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0]
        raise Refusal(BAD_INPUT, f"{path} is not a readable Parquet file ({reason}); save it again") from None


def _read_table(path: epath.Path) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    table = _read_parquet(path)
    names = parse_json((table.schema.metadata or {}).get(_METADATA, b"[]"), path, "save it again")
    if not names or not isinstance(names, list) or not {f"{STATES}{name}" for name in names} <= {*table.column_names}:
        raise Refusal(BAD_INPUT, f"{path} holds no states; give a table of mossa.save_states")
    states = {}
    for name in names:
        column = table.column(STATES + name).combine_chunks()
        states[name] = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    return states, table.drop_columns([STATES + name for name in names]).to_pandas()
