"""States that another program saved: a folder with one array [n, D] per layer, and ids of the rows.

Nothing is unpickled, and no rows are reordered: two folders with different ids, or with the same ids in another order,
are refused. Sorting them here would hide a mistake of the program that wrote them, which has likely put other things in
that order too; and a wrong order is the one mistake that no figure shows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files import sums
from mossa_jax.files.listing import composed, is_folder, shown, visible
from mossa_jax.files.safetensors import FLOATS, StoredTensor, read_header
from mossa_jax.files.write import ABOUT
from mossa_jax.foreign import check_file, check_pointer, read_json, read_text, short
from mossa_jax.log import log

_IDS = "ids"
_LAYER_FILES = (".npy", ".safetensors")
_ID_FILES = (".txt", ".json", ".npy")
_LARGEST = 2**30  # bytes of a file of ids
_NAMED = 5  # files that a message names
# Types of stored ids, by the names that safetensors gives them.
_INTEGERS = {"I64": np.int64, "I32": np.int32, "I16": np.int16, "U64": np.uint64, "U32": np.uint32, "U16": np.uint16}
# Formats that may run code when they are read, or that hold several arrays under one name.
_UNREADABLE = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".npz", ".ckpt")


@dataclass(frozen=True)
class SavedStates:
    """The layers of a folder; each is read on request.

    Attributes:
      folder: its path.
      layers: name -> a call that returns [n, D] as stored (float16, bfloat16, float32 or float64), mapped from the
        file.
      rows: n, the same for all layers.
      ids: of the rows, each once; None if the folder has none.
    """

    folder: str
    layers: dict[str, Callable[[], np.ndarray]]
    rows: int
    ids: tuple[str, ...] | None

    def label(self, row: int) -> str:
        """Returns what a message calls a row: its id, or its number."""
        return f"row {row}" if self.ids is None else self.ids[row]


@dataclass(frozen=True)
class _Layer:
    """One layer as its file's header describes it, before it is read."""

    read: Callable[[], np.ndarray]
    shape: tuple[int, ...]
    dtype: str


def open_states(folder: str, ids: str | None = None) -> SavedStates:
    """Finds and checks the layers of a folder; reads headers only.

    A file `NAME.npy` is layer NAME. So is `NAME.safetensors` if it holds one tensor and is not the only layer file;
    otherwise its tensors are the layers, by their names. Layers are put in natural order (2 before 10), `embed` first
    and `final_norm` last. Ids are in `ids.txt` (one per line), `ids.json` (a list), `ids.npy` or a tensor `ids`.

    Args:
      folder: its path.
      ids: another file of ids (.txt, .json or .npy); the folder's own, if it has any, must agree with it.

    Other files are named in the log, but for hidden ones, backups, and what `mossa.save_states` writes beside.

    Raises:
      Refusal: 3 if something is missing, is a pickle, has another number type or shape, or does not agree.
    """
    path = epath.Path(folder)
    if not is_folder(path):
        raise Refusal(BAD_INPUT, f"states folder {folder} does not exist; give a folder of .npy or .safetensors files")
    there = visible(path)
    files = [Path(file) for file in there if file.suffix.lower() in _LAYER_FILES and file.stem != _IDS]
    layers: dict[str, _Layer] = {}
    ids_by_source: dict[str, tuple[str, ...]] = {}
    for file in files:
        check_file(file)
        sums.check(file)
        for name, layer in _layers_of(file, is_only_file=len(files) == 1, ids_by_source=ids_by_source).items():
            if name in layers:
                raise Refusal(BAD_INPUT, f"{folder} has layer {name!r} twice; leave one of the files out")
            layers[name] = layer
    others = [shown(file.name) for file in there if Path(file) not in files and not _is_known(file.name)]
    if not layers:
        unreadable = [name for name in others if name.lower().endswith(_UNREADABLE)]
        hint = f"{unreadable[0]} is not read (a pickle can run code); " if unreadable else ""
        raise Refusal(BAD_INPUT, f"{folder} holds no layer; {hint}save one [rows, width] array per layer as .npy")
    rows = _common_rows(folder, layers)
    # All sources of ids are read, and have to agree: a stale ids.txt beside newer arrays is a likely mistake.
    own = [Path(file) for file in there if file.stem == _IDS and file.suffix.lower() in _ID_FILES]
    for file in [*own, *([Path(ids)] if ids else [])]:
        ids_by_source[str(file)] = read_ids(file)
    if others:
        log.warning("%s: %d files are no layers and not read: %s", folder, len(others), _first(others))
    order = sorted(layers, key=_natural_order)
    return SavedStates(folder, {name: layers[name].read for name in order}, rows, _common_ids(ids_by_source, rows))


def check_paired(a: SavedStates, b: SavedStates) -> None:
    """Checks that two folders have the same layers and the same rows.

    Raises:
      Refusal: 3 if they do not.
    """
    for side, other in ((a, b), (b, a)):
        # Both ways: a layer that only one folder has would otherwise be left out in silence.
        missing = [name for name in side.layers if name not in other.layers]
        if missing:
            raise Refusal(
                BAD_INPUT,
                f"{other.folder} lacks layer {missing[0]!r} of {side.folder} ({len(missing)} in all); layers are "
                "paired by name, so leave it out or rename the files",
            )
    if a.rows != b.rows:
        raise Refusal(
            BAD_INPUT, f"{a.folder} has {a.rows} rows and {b.folder} {b.rows}; save the same examples, in one order"
        )
    if a.ids is None and b.ids is None:
        return
    if a.ids is None or b.ids is None:
        with_ids, without = (a, b) if b.ids is None else (b, a)
        raise Refusal(
            BAD_INPUT,
            f"{with_ids.folder} has row ids and {without.folder} has none, so their order cannot be checked; "
            "give ids to both, or to neither",
        )
    if a.ids != b.ids:
        # Names the first row that differs, and says whether it is a matter of order or of other examples.
        row = next(i for i, (left, right) in enumerate(zip(a.ids, b.ids, strict=True)) if left != right)
        is_reordered = set(a.ids) == set(b.ids)
        raise Refusal(
            BAD_INPUT,
            f"row {row} is {short(a.ids[row])} in {a.folder} and {short(b.ids[row])} in {b.folder}; "
            + (
                "both have the same ids: put the rows in one order"
                if is_reordered
                else "save the same examples for both"
            ),
        )


def _is_known(name: str) -> bool:
    """Returns whether a file stands beside layers without being one: ids, and what `mossa.save_states` writes."""
    return Path(name).stem == _IDS or name in (ABOUT, sums.SUMS, "rows.parquet")


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _natural_order(name: str) -> tuple[int, list[str | int]]:
    # Every other piece is digits, and compares as a number: block_2 before block_10.
    pieces = re.split(r"(\d+)", name)
    return {"embed": 0, "final_norm": 2}.get(name, 1), [int(p) if i % 2 else p for i, p in enumerate(pieces)]


def _layers_of(path: Path, is_only_file: bool, ids_by_source: dict[str, tuple[str, ...]]) -> dict[str, _Layer]:
    """Returns the layers of a file by name; ids that the file holds are added to `ids_by_source`."""
    check_file(path)
    with path.open("rb") as file:
        check_pointer(path, file.read(64))
    stem = composed(path.stem)
    if path.suffix.lower() == ".npy":
        # Memory-mapped: this reads the header. The file is opened again when the layer is read, so
        # that no map stays open.
        array = _load_npy(path)
        return {stem: _Layer(lambda: _load_npy(path), array.shape, array.dtype.name)}
    tensors = read_header(path)

    def reader(tensor: StoredTensor, dtypes: dict[str, Any]) -> Callable[[], np.ndarray]:
        # A layer of another type is refused before it is read.
        dtype = dtypes.get(tensor.dtype, np.uint8)
        # An empty file region cannot be mapped. The shape is refused later, with its layer's name.
        if 0 in tensor.shape:
            return lambda: np.zeros(tensor.shape, dtype)
        # Little-endian and C order, as safetensors stores all tensors; bfloat16 has a dtype in FLOATS.
        return lambda: np.memmap(path, dtype, "r", tensor.offset, tensor.shape)

    if _IDS in tensors:
        tensor = tensors.pop(_IDS)
        if tensor.dtype not in _INTEGERS or len(tensor.shape) != 1:
            raise Refusal(
                BAD_INPUT, f"{path}: tensor 'ids' is {tensor.dtype}{list(tensor.shape)}; give whole numbers [n]"
            )
        ids_by_source[f"{path}:{_IDS}"] = tuple(str(int(number)) for number in reader(tensor, _INTEGERS)())
    # One file per layer is named by the file; one file for all layers by its tensors.
    is_single = len(tensors) == 1 and not is_only_file
    layers = {}
    for name, tensor in tensors.items():
        dtype = np.dtype(FLOATS[tensor.dtype]).name if tensor.dtype in FLOATS else tensor.dtype
        layers[stem if is_single else name] = _Layer(reader(tensor, FLOATS), tensor.shape, dtype)
    return layers


def _load_npy(path: Path) -> np.ndarray:
    """Maps an array of a .npy file, in the machine's byte order; the numbers of another order are copied."""
    try:
        # `allow_pickle=False`: an array of objects is a pickle, which could run code.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # its parser of headers raises whatever Python's own does
        reason = " ".join(str(error).split())[:200]
        raise Refusal(
            BAD_INPUT, f"{path} is a pickle or not a NumPy array ({reason}); save plain numbers with numpy.save"
        ) from None
    if not isinstance(array, np.ndarray):
        raise Refusal(BAD_INPUT, f"{path} is an archive of arrays; save one array per file with numpy.save")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _common_rows(folder: str, layers: dict[str, _Layer]) -> int:
    """Checks number types and shapes; returns the number of rows that all layers have."""
    allowed = [np.dtype(dtype).name for dtype in FLOATS.values()]
    first = min(layers, key=_natural_order)
    for name, layer in layers.items():
        if layer.dtype not in allowed:
            # NumPy saves the bytes of bfloat16 without its name, and reads them back as void.
            is_void = layer.dtype.startswith("void")
            hint = " (.npy cannot hold bfloat16: save it as safetensors)" if is_void else ""
            raise Refusal(
                BAD_INPUT, f"{folder}: layer {name!r} is of type {layer.dtype}; give {', '.join(allowed)}{hint}"
            )
        if len(layer.shape) != 2 or 0 in layer.shape:
            raise Refusal(BAD_INPUT, f"{folder}: layer {name!r} has shape {list(layer.shape)}; give [rows, width]")
        if layer.shape[0] != layers[first].shape[0]:
            raise Refusal(
                BAD_INPUT,
                f"{folder}: layer {name!r} has {layer.shape[0]} rows and {first!r} {layers[first].shape[0]}; "
                "save the same examples for every layer",
            )
    return layers[first].shape[0]


def read_ids(path: Path) -> tuple[str, ...]:
    """Reads one id per row from a .npy file, a JSON list, or the lines of a text file.

    Raises:
      Refusal: 3 if it cannot be read, or holds anything but strings or whole numbers.
    """
    check_file(path)
    ending = path.suffix.lower()
    if ending == ".npy":
        array = _load_npy(path)
        # Kinds: signed and unsigned integers, and text.
        if array.ndim != 1 or array.dtype.kind not in "iuU":
            raise Refusal(BAD_INPUT, f"{path} is {array.dtype}{list(array.shape)}; give whole numbers or strings [n]")
        return tuple(map(str, array.tolist()))
    if ending != ".json":
        # No other character ends a line, and blank lines name nothing.
        return tuple(line for line in read_text(path, _LARGEST).split("\n") if line.strip())
    values = read_json(path, "give a list of ids", _LARGEST)
    if not isinstance(values, list) or not all(type(value) in (str, int) for value in values):
        raise Refusal(BAD_INPUT, f"{path} is not a list of strings or whole numbers; give one id per row")
    return tuple(map(str, values))


def _common_ids(ids_by_source: dict[str, tuple[str, ...]], rows: int) -> tuple[str, ...] | None:
    """Checks that all sources agree and that each row has one id of its own; returns the ids, or None without any."""
    if not ids_by_source:
        return None
    first, ids = next(iter(ids_by_source.items()))
    for source, others in ids_by_source.items():
        if others != ids:
            raise Refusal(BAD_INPUT, f"{first} and {source} give different ids to the same rows; keep one of them")
    if len(ids) != rows:
        raise Refusal(BAD_INPUT, f"{first} has {len(ids)} ids for {rows} rows; give one per row")
    row_of: dict[str, int] = {}
    for row, name in enumerate(ids):
        if name in row_of:
            raise Refusal(BAD_INPUT, f"{first}: rows {row_of[name]} and {row} are both {name!r}; an id names one row")
        row_of[name] = row
    return ids
