"""The header of a safetensors file: where each tensor lies, so that parts of it can be read without the rest.

Specification: https://huggingface.co/docs/safetensors, "Format".
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.foreign import check_file, check_pointer

FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
"""The number types of weights and states: name in the file -> NumPy type."""

# Bytes that tell a pointer from tensors.
_START = 64


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies.

    Attributes:
      path: its file.
      offset: of its first byte in the file.
      shape: as stored.
      dtype: as the file names it, e.g. "BF16".
    """

    path: str
    offset: int
    shape: tuple[int, ...]
    dtype: str


def read_header(path: Path | epath.Path) -> dict[str, StoredTensor]:
    """Reads where the tensors of a file lie: name -> place.

    Raises:
      Refusal: 3 when the file cannot be read or is cut off, is a pipe or a device, or is a Git LFS pointer instead of
        the tensors.
    """
    check_file(path, "copy it again")
    try:
        with open(path, "rb") as file:
            check_pointer(path, file.read(_START))
        # The library checks the header and the file's length.
        with safe_open(str(path), framework="numpy"):
            pass
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except (SafetensorError, OSError) as error:
        raise Refusal(BAD_INPUT, f"{path} is not a readable safetensors file ({error})") from None
    header.pop("__metadata__", None)
    return {
        name: StoredTensor(str(path), 8 + size + entry["data_offsets"][0], tuple(entry["shape"]), entry["dtype"])
        for name, entry in header.items()
    }
