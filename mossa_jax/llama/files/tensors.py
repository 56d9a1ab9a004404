"""Folders of safetensors files: any part of their tensors, read on demand, and new ones, written tensor by tensor."""

from __future__ import annotations

import errno
import os

import numpy as np
from etils import epath
from safetensors import SafetensorError
from safetensors.numpy import save_file

from mossa_jax.errors import BAD_INPUT, DISK, Refusal
from mossa_jax.files.safetensors import FLOATS, StoredTensor, read_header
from mossa_jax.files.write import write_json
from mossa_jax.foreign import read_object
from mossa_jax.llama.files.precedence import INDEX, PICKLES, SINGLE, weight_files


class TensorReader:
    """The tensors of a folder, by name.

    Attributes:
      folder: as given.
      tensors: name -> where it lies.
    """

    def __init__(self, folder: epath.PathLike):
        """Finds the files that transformers would read, and reads only their headers.

        Raises:
          Refusal: 3 when the folder is missing, has pickled weights only, lacks a file of its index, holds a file that
            cannot be read, or leaves open which of two tensors is meant.
        """
        self.folder = epath.Path(folder)
        if not self.folder.is_dir():
            raise Refusal(BAD_INPUT, f"model folder {self.folder} does not exist; give a folder or a hub id")
        self.tensors: dict[str, StoredTensor] = {}
        present = [path.name for path in self.folder.iterdir()]
        for name in self._files(present):
            tensors = read_header(self.folder / name)
            # Shards of an index may repeat a tensor: the last one counts, as in transformers.
            if (twice := sorted(tensors.keys() & self.tensors)) and not {SINGLE, INDEX} & {*present}:
                raise Refusal(
                    BAD_INPUT,
                    f"{self.folder} has {twice[0]} in {name} and in another file, and no index that says which counts; "
                    f"leave one of them, named {SINGLE}",
                )
            self.tensors |= tensors

    def _files(self, present: list[str]) -> list[str]:
        """Returns the names of the files of weights among those that are there."""
        config = self.folder / "config.json"
        stated = read_object(config).get("transformers_weights") if config.exists() else None
        names = weight_files(present, str(self.folder), lambda name: read_object(self.folder / name), stated)
        missing = [name for name in names if not (self.folder / name).exists()]
        if missing:
            raise Refusal(BAD_INPUT, f"{self.folder} lacks {', '.join(missing[:3])} of its index; copy the whole model")
        if names:
            return names
        pickled = sorted(name for name in present if name.endswith(PICKLES))
        if pickled:
            raise Refusal(
                BAD_INPUT,
                f"{self.folder / pickled[0]} is a pickle, which can run code when read; convert the model to "
                "safetensors (transformers: save_pretrained)",
            )
        others = sorted(name for name in present if name.endswith((".safetensors", ".gguf")))
        seen = f" ({others[0]} is in another layout)" if others else ""
        raise Refusal(
            BAD_INPUT, f"{self.folder} holds no {SINGLE}{seen}; save the model with transformers: save_pretrained"
        )

    def read_into(self, out: np.ndarray, name: str, index: tuple[slice, ...] = ()) -> None:
        """Copies a part of a tensor into `out`, cast to its type; reads the bytes of that part and no others.

        Args:
          out: contiguous, of the part's shape.
          name: of the tensor.
          index: the part, a slice per axis; () for the whole tensor.

        Raises:
          OSError: the file ended early.
        """
        stored = self.tensors[name]
        dtype = np.dtype(FLOATS[stored.dtype])
        # Rows of the first axis are adjacent in the file, so a range of whole rows is one range of bytes.
        start = (index[0] if index else slice(None)).indices(stored.shape[0])[0]
        row = int(np.prod(stored.shape[1:]))
        whole_rows = all(
            part.indices(size) == (0, size, 1) for part, size in zip(index[1:], stored.shape[1:], strict=False)
        )
        if whole_rows and dtype == out.dtype and out.flags.c_contiguous:
            # Plain reads: a mapped file would count as this process's memory for as long as it is open.
            with open(stored.path, "rb", buffering=0) as file:
                file.seek(stored.offset + start * row * dtype.itemsize)
                left = out.view(np.uint8).reshape(-1).data
                while len(left):
                    count = file.readinto(left)
                    if not count:
                        raise OSError(f"{stored.path} ended early while {name} was read")
                    left = left[count:]
            return
        # A range of columns, or a cast: only the pages that hold the part are read. The map closes with this call.
        mapped = np.memmap(stored.path, dtype, "r", stored.offset, stored.shape)
        out[...] = mapped[index or ...]


class TensorWriter:
    """Writes tensors one after another into numbered files of a bounded size, and their index."""

    def __init__(self, folder: epath.Path, shard_bytes: int):
        """Starts with no file.

        Args:
          folder: an existing folder to write into.
          shard_bytes: the largest size of a file; a tensor that is larger gets a file of its own.
        """
        self.folder, self.shard_bytes = folder, shard_bytes
        self._waiting: dict[str, np.ndarray] = {}
        self._files: list[list[str]] = []
        self._bytes = 0

    def add(self, name: str, tensor: np.ndarray) -> None:
        """Takes a tensor; writes those that wait once they fill a file.

        Raises:
          Refusal: 6 when the disk is full.
        """
        if self._waiting and sum(t.nbytes for t in self._waiting.values()) + tensor.nbytes > self.shard_bytes:
            self._flush()
        # The library writes the bytes of the array as they lie.
        self._waiting[name] = np.ascontiguousarray(tensor)
        self._bytes += tensor.nbytes

    def close(self) -> None:
        """Writes the rest and, if there are several files, the index; refusals as in `add`."""
        self._flush()
        # Names hold the number of files, which is known only now.
        count = len(self._files)
        names = [
            f"model-{i + 1:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors" for i in range(count)
        ]
        for number, name in enumerate(names):
            # The library lets only the owner read it.
            os.chmod(self._temporary(number), 0o644)
            os.replace(self._temporary(number), self.folder / name)
        if count > 1:
            # Tensor name -> file; `total_size` is bytes of tensors without headers, as transformers writes it.
            weight_map = {tensor: name for name, tensors in zip(names, self._files, strict=True) for tensor in tensors}
            write_json(self.folder / INDEX, {"metadata": {"total_size": self._bytes}, "weight_map": weight_map})

    def _temporary(self, number: int) -> str:
        """Returns the path of a file while it is not known how many there will be."""
        return str(self.folder / f"{number}.part")

    def _flush(self) -> None:
        """Writes the waiting tensors into the next file."""
        try:
            # "pt" is the format that transformers asks for; the bytes are the same for all.
            save_file(self._waiting, self._temporary(len(self._files)), metadata={"format": "pt"})
        except SafetensorError as error:
            if f"os error {errno.ENOSPC}" in str(error) or f"os error {errno.EDQUOT}" in str(error):
                size = sum(tensor.nbytes for tensor in self._waiting.values())
                raise Refusal(DISK, f"no space left to write {self.folder} ({size} bytes); free some") from None
            raise
        self._files.append(list(self._waiting))
        self._waiting = {}
