"""A folder of safetensors files: which tensors it holds, and any part of one of them, read on demand."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mossa_jax.errors import BAD_INPUT, DISK, Refusal
from mossa_jax.files.write import write_json

_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".pkl")


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies.

    Attributes:
      path: its file.
      offset: of its first byte in the file.
      shape: as stored.
      dtype: as stored.
    """

    path: str
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype


class Checkpoint:
    """The tensors of a folder, by name.

    Attributes:
      tensors: name -> where it lies.
    """

    def __init__(self, folder: epath.PathLike):
        """Finds and checks the files; reads their headers only.

        Raises:
          Refusal: 3 when the folder is missing, has pickled weights only, lacks a file of its index, or holds a
            file or a number type that cannot be read.
        """
        self.folder = epath.Path(folder)
        if not self.folder.is_dir():
            raise Refusal(BAD_INPUT, f"model folder {self.folder} does not exist; give a folder or a hub id")
        self.tensors: dict[str, Stored] = {}
        for name in self._files():
            self.tensors |= self._header(self.folder / name)

    def _files(self) -> list[str]:
        index = self.folder / _INDEX
        if index.exists():
            try:
                names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
                raise Refusal(BAD_INPUT, f"{index} is no index of tensors ({error}); copy the model again") from None
        else:
            names = sorted(path.name for path in self.folder.glob("*.safetensors"))
            names = ["model.safetensors"] if "model.safetensors" in names else names
        missing = [name for name in names if not (self.folder / name).exists()]
        if missing:
            raise Refusal(BAD_INPUT, f"{self.folder} lacks {', '.join(missing)} of its index; copy the whole model")
        if not names:
            pickled = sorted(path.name for path in self.folder.glob("*") if path.suffix in _PICKLES)
            if pickled:
                raise Refusal(
                    BAD_INPUT,
                    f"{self.folder / pickled[0]} is a pickle, which can run code when read; convert the model to "
                    "safetensors (transformers: save_pretrained)",
                )
            raise Refusal(BAD_INPUT, f"{self.folder} holds no .safetensors file")
        return names

    @staticmethod
    def _header(path: epath.Path) -> dict[str, Stored]:
        try:
            with safe_open(str(path), framework="numpy"):  # the library checks header and length
                pass
            with open(path, "rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
        except (SafetensorError, OSError) as error:
            raise Refusal(BAD_INPUT, f"{path} is not a readable safetensors file ({error})") from None
        header.pop("__metadata__", None)
        strange = [name for name, entry in header.items() if entry["dtype"] not in _TYPES]
        if strange:
            kind = header[strange[0]]["dtype"]
            raise Refusal(
                BAD_INPUT,
                f"{path}: {strange[0]} is stored as {kind}; of the number types {', '.join(_TYPES)} can be read: use "
                "a checkpoint that is not quantized",
            )
        return {
            name: Stored(
                str(path), 8 + size + entry["data_offsets"][0], tuple(entry["shape"]), np.dtype(_TYPES[entry["dtype"]])
            )
            for name, entry in header.items()
        }

    def read_into(self, out: np.ndarray, name: str, index: tuple[slice, ...] = ()) -> None:
        """Copies a part of a tensor into `out`, cast to its type; reads the bytes of that part and no others."""
        stored = self.tensors[name]
        start = (index[0] if index else slice(None)).indices(stored.shape[0])[0]
        row = int(np.prod(stored.shape[1:]))
        whole = all(part.indices(size) == (0, size, 1) for part, size in zip(index[1:], stored.shape[1:], strict=False))
        if whole and stored.dtype == out.dtype and out.flags.c_contiguous:
            # Plain reads: a mapped file would count as this process's memory as long as it is open.
            with open(stored.path, "rb", buffering=0) as file:
                file.seek(stored.offset + start * row * stored.dtype.itemsize)
                left = memoryview(out.view(np.uint8).reshape(-1))
                while len(left):
                    got = file.readinto(left)
                    if not got:
                        raise OSError(f"{stored.path} ended early while {name} was read")
                    left = left[got:]
            return
        mapped = np.memmap(stored.path, stored.dtype, "r", stored.offset, stored.shape)
        out[...] = mapped[index or ...]


class Writer:
    """Writes tensors one after another into numbered files of a bounded size, and their index."""

    def __init__(self, folder: epath.Path, shard_bytes: int):
        self.folder, self.shard_bytes = folder, shard_bytes
        self._waiting: dict[str, np.ndarray] = {}
        self._files: list[list[str]] = []
        self._bytes = 0

    def add(self, name: str, tensor: np.ndarray) -> None:
        """Takes a tensor; writes what waits once it fills a file.

        Raises:
          Refusal: 6 when the disk is full; `close` likewise.
        """
        if self._waiting and sum(t.nbytes for t in self._waiting.values()) + tensor.nbytes > self.shard_bytes:
            self._flush()
        self._waiting[name] = np.ascontiguousarray(tensor)
        self._bytes += tensor.nbytes

    def close(self) -> None:
        """Writes the rest and, if there are several files, the index."""
        self._flush()
        count = len(self._files)
        names = [
            f"model-{i + 1:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors" for i in range(count)
        ]
        for number, name in enumerate(names):
            os.chmod(self._temporary(number), 0o644)  # the library leaves it to its owner alone
            os.replace(self._temporary(number), self.folder / name)
        if count > 1:
            where = {tensor: name for name, tensors in zip(names, self._files, strict=True) for tensor in tensors}
            write_json(self.folder / _INDEX, {"metadata": {"total_size": self._bytes}, "weight_map": where})

    def _temporary(self, number: int) -> str:
        return str(self.folder / f"{number}.part")

    def _flush(self) -> None:
        try:
            save_file(self._waiting, self._temporary(len(self._files)), metadata={"format": "pt"})
        except SafetensorError as error:
            if f"os error {errno.ENOSPC}" in str(error) or f"os error {errno.EDQUOT}" in str(error):
                size = sum(tensor.nbytes for tensor in self._waiting.values())
                raise Refusal(DISK, f"no space left to write {self.folder} ({size} bytes); free some") from None
            raise
        self._files.append(list(self._waiting))
        self._waiting = {}
