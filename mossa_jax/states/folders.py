"""States that somebody else's program saved: a folder of arrays, one [n, D] a layer, and ids of the rows.

Nothing is unpickled, and no rows are put in another order: two folders with other ids, or with the same ids in another
order, are refused. Putting them in order here would hide a slip in the program that wrote them, which has likely put
other things in that order, too; and a wrong order is the one fault that no figure shows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files.safetensors import FLOATS, StoredTensor, read_header

IDS = "ids"
_INTEGERS = {"I64": np.int64, "I32": np.int32, "I16": np.int16, "U64": np.uint64, "U32": np.uint32, "U16": np.uint16}
_UNREADABLE = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".npz", ".ckpt")


@dataclass(frozen=True)
class SavedStates:
    """A folder's layers, read when they are asked for.

    Attributes:
      folder: where they lie.
      layers: name -> a call that gives [n, D] as stored (float16, bfloat16, float32 or float64), mapped from the file.
      rows: n, the same of all.
      ids: of the rows, each once; None where the folder has none.
    """

    folder: str
    layers: dict[str, Callable[[], np.ndarray]]
    rows: int
    ids: tuple[str, ...] | None

    def label(self, row: int) -> str:
        """How a message calls a row: its id, or its number."""
        return f"row {row}" if self.ids is None else self.ids[row]


def open_states(folder: str, ids: str | None = None) -> SavedStates:
    """Finds and checks the layers of a folder; reads headers only.

    A file `NAME.npy` is layer NAME. So is `NAME.safetensors` if it holds one tensor and is not the only layer file;
    otherwise its tensors are the layers, by their names. Layers stand in natural order (2 before 10), `embed` first and
    `final_norm` last. Ids are in `ids.txt` (one a line), `ids.json` (a list), `ids.npy` or a tensor `ids`.

    Args:
      folder: path.
      ids: one more file of ids (.txt, .json or .npy), beside the folder's own if it has any.

    Raises:
      Refusal: 3 for what is missing, pickled, of another number type or shape, or does not agree.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise Refusal(BAD_INPUT, f"states folder {folder} does not exist; give a folder of .npy or .safetensors files")
    files = sorted(path for path in place.iterdir() if path.suffix in (".npy", ".safetensors") and path.stem != IDS)
    layers: dict[str, tuple[Callable[[], np.ndarray], tuple[int, ...], str]] = {}
    found: dict[str, tuple[str, ...]] = {}
    for path in files:
        for name, layer in _layers_of(path, alone=len(files) == 1, ids=found).items():
            if name in layers:
                raise Refusal(BAD_INPUT, f"{folder} has layer {name!r} twice; leave one of the files out")
            layers[name] = layer
    if not layers:
        strange = sorted(path.name for path in place.iterdir() if path.suffix in _UNREADABLE)
        hint = f"{strange[0]} is not read (a pickle can run code); " if strange else ""
        raise Refusal(BAD_INPUT, f"{folder} holds no layer; {hint}save one [rows, width] array a layer as .npy")
    rows = _common_rows(folder, layers)
    for path in [*(place / f"{IDS}{suffix}" for suffix in (".txt", ".json", ".npy")), *([Path(ids)] if ids else [])]:
        if path.exists() or str(path) == ids:
            found[str(path)] = _read_ids(path)
    order = sorted(layers, key=_natural)
    return SavedStates(folder, {name: layers[name][0] for name in order}, rows, _common_ids(found, rows))


def check_paired(a: SavedStates, b: SavedStates) -> None:
    """Refuses, with code 3, two folders whose rows or layers are not those of each other."""
    for one, other in ((a, b), (b, a)):
        missing = [name for name in one.layers if name not in other.layers]
        if missing:
            raise Refusal(
                BAD_INPUT,
                f"{other.folder} lacks layer {missing[0]!r} of {one.folder} ({len(missing)} such); layers are paired "
                "by name, so leave it out or rename the files",
            )
    if a.rows != b.rows:
        raise Refusal(
            BAD_INPUT, f"{a.folder} has {a.rows} rows and {b.folder} {b.rows}; save the same examples, in one order"
        )
    if (a.ids is None) != (b.ids is None):
        with_ids, without = (a, b) if b.ids is None else (b, a)
        raise Refusal(
            BAD_INPUT,
            f"{with_ids.folder} has ids of its rows and {without.folder} none, so that their order cannot be checked; "
            "give ids to both, or to neither",
        )
    if a.ids != b.ids:
        row = next(i for i, (left, right) in enumerate(zip(a.ids, b.ids, strict=True)) if left != right)
        reordered = set(a.ids) == set(b.ids)
        raise Refusal(
            BAD_INPUT,
            f"row {row} is {a.ids[row]!r} in {a.folder} and {b.ids[row]!r} in {b.folder}; "
            + ("both have the same ids: put the rows in one order" if reordered else "save the same examples for both"),
        )


def _natural(name: str) -> tuple[int, list[str | int]]:
    parts = re.split(r"(\d+)", name)
    return {"embed": 0, "final_norm": 2}.get(name, 1), [int(p) if i % 2 else p for i, p in enumerate(parts)]


def _layers_of(path: Path, alone: bool, ids: dict[str, tuple[str, ...]]) -> dict:
    """Layer name -> (reader, shape, number type) of a file; ids that stand in it are put into `ids`."""
    if path.suffix == ".npy":
        array = _load_npy(path)
        return {path.stem: (lambda: _load_npy(path), array.shape, array.dtype.name)}
    tensors = read_header(path)

    def reader(tensor: StoredTensor, types: dict) -> Callable[[], np.ndarray]:
        if 0 in tensor.shape:
            return lambda: np.zeros(tensor.shape, types[tensor.dtype])
        return lambda: np.memmap(path, types[tensor.dtype], "r", tensor.offset, tensor.shape)

    if IDS in tensors:
        tensor = tensors.pop(IDS)
        if tensor.dtype not in _INTEGERS or len(tensor.shape) != 1:
            raise Refusal(
                BAD_INPUT, f"{path}: tensor 'ids' is {tensor.dtype}{list(tensor.shape)}; give whole numbers [n]"
            )
        ids[f"{path}:{IDS}"] = tuple(str(int(number)) for number in reader(tensor, _INTEGERS)())
    single = len(tensors) == 1 and not alone
    return {
        path.stem if single else name: (
            reader(tensor, FLOATS) if tensor.dtype in FLOATS else None, tensor.shape,
            np.dtype(FLOATS[tensor.dtype]).name if tensor.dtype in FLOATS else tensor.dtype,
        )
        for name, tensor in tensors.items()
    }  # fmt: skip


def _load_npy(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise Refusal(
            BAD_INPUT, f"{path} is a pickle or no NumPy array ({error}); save plain numbers with numpy.save"
        ) from None
    if not isinstance(array, np.ndarray):
        raise Refusal(BAD_INPUT, f"{path} is an archive of arrays; save one array a file with numpy.save")
    return array


def _common_rows(folder: str, layers: dict) -> int:
    allowed = [np.dtype(kind).name for kind in FLOATS.values()]
    first = min(layers, key=_natural)
    for name, (_, shape, kind) in layers.items():
        if kind not in allowed:
            hint = " (bfloat16 has no place in .npy: save it as safetensors)" if kind.startswith("void") else ""
            raise Refusal(BAD_INPUT, f"{folder}: layer {name!r} is of type {kind}; give {', '.join(allowed)}{hint}")
        if len(shape) != 2 or 0 in shape:
            raise Refusal(BAD_INPUT, f"{folder}: layer {name!r} has shape {list(shape)}; give [rows, width]")
        if shape[0] != layers[first][1][0]:
            raise Refusal(
                BAD_INPUT,
                f"{folder}: layer {name!r} has {shape[0]} rows and {first!r} {layers[first][1][0]}; "
                "save the same examples for every layer",
            )
    return layers[first][1][0]


def _read_ids(path: Path) -> tuple[str, ...]:
    if path.suffix == ".npy":
        array = _load_npy(path)
        if array.ndim != 1 or array.dtype.kind not in "iuU":
            raise Refusal(BAD_INPUT, f"{path} is {array.dtype}{list(array.shape)}; give whole numbers or strings [n]")
        return tuple(map(str, array.tolist()))
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            return tuple(text.splitlines())
        values = json.loads(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise Refusal(BAD_INPUT, f"ids {path} cannot be read ({error})") from None
    if not isinstance(values, list) or not all(type(value) in (str, int) for value in values):
        raise Refusal(BAD_INPUT, f"{path} is no list of strings or whole numbers; give one id a row")
    return tuple(map(str, values))


def _common_ids(found: dict[str, tuple[str, ...]], rows: int) -> tuple[str, ...] | None:
    if not found:
        return None
    first, ids = next(iter(found.items()))
    for path, others in found.items():
        if others != ids:
            raise Refusal(BAD_INPUT, f"{first} and {path} give other ids for the same rows; keep one of them")
    if len(ids) != rows:
        raise Refusal(BAD_INPUT, f"{first} has {len(ids)} ids for {rows} rows; give one a row")
    seen: dict[str, int] = {}
    for row, name in enumerate(ids):
        if name in seen:
            raise Refusal(BAD_INPUT, f"{first}: rows {seen[name]} and {row} are both {name!r}; an id names one row")
        seen[name] = row
    return ids
