"""The record beside an exported model, `mossa.json`: whose it is, how it was made, and what its files hold.

The record has the SHA-256 of the files beside it, and a digest of itself. So a model that is damaged, or lies in the
place of another one, is known as such when it is read back. Other libraries pass the file over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files.names import digest
from mossa_jax.files.write import ABOUT, write_json
from mossa_jax.foreign import read_object
from mossa_jax.llama.files.card import CARD

_FILES, _SEAL, _MODEL = "files", "seal", "model"
_CHUNK = 1 << 20  # bytes that are hashed at once


def write_about(folder: epath.PathLike, about: Mapping[str, Any], *, but: str = "") -> None:
    """Writes the record of a model into its folder, whose other files are written already.

    The card has no digest: scores are added to it later, and nothing is read from it.

    Args:
      folder: of the model.
      about: what is recorded, ready for JSON.
      but: ending of the names of files that get no digest, such as weights that have another one; "" for none.
    """
    folder = epath.Path(folder)
    names = [path.name for path in folder.iterdir() if path.name not in (CARD, ABOUT)]
    files = {name: _sha256(folder / name) for name in sorted(names) if not (but and name.endswith(but))}
    record = _plain({**about, _FILES: files})
    write_json(folder / ABOUT, record | {_SEAL: digest(record)})


def read_about(folder: epath.PathLike) -> dict[str, Any]:
    """Returns the record of a model without its digests' seal; empty for folders that others wrote.

    Raises:
      Refusal: 3 if the record is not as it was written.
    """
    path = epath.Path(folder) / ABOUT
    if not path.exists():
        return {}
    record = read_object(path, f"delete {folder}, and the command that made it makes it again")
    seal = record.pop(_SEAL, None)
    # Earlier versions wrote neither; no single damage removes both.
    is_sealed = seal is not None or _FILES in record
    if is_sealed and seal != digest(record):
        raise damaged(path)
    return record


def is_checkable(about: Mapping[str, Any]) -> bool:
    """Returns whether a record holds digests of the files beside it; those of earlier versions hold none."""
    return _FILES in about


def check_files(folder: epath.PathLike, about: Mapping[str, Any]) -> None:
    """Checks that the files of an exported model are those that were written; a record without digests passes.

    Args:
      folder: of the model.
      about: its record, from `read_about`.

    Raises:
      Refusal: 3, naming the first file that is missing or has another content.
    """
    for name, sha256 in about.get(_FILES, {}).items():
        path = epath.Path(folder) / name
        if not path.exists():
            raise damaged(path, "is missing")
        if _sha256(path) != sha256:
            raise damaged(path)


def check_owner(folder: epath.PathLike, about: Mapping[str, Any], model: str) -> None:
    """Checks that a folder holds the model that it is named after; a record that names none passes.

    Raises:
      Refusal: 3 if it holds another one.
    """
    if about.get(_MODEL, model) != model:
        raise damaged(epath.Path(folder), f"holds the model {about[_MODEL]!r} and not {model!r}")


def damaged(path: epath.Path, what: str = "is not as it was written") -> Refusal:
    """Returns the refusal of a file or folder of an exported model, with the way out."""
    folder = path if path.is_dir() else path.parent
    return Refusal(BAD_INPUT, f"{path} {what}; delete {folder}, and the command that made it makes it again")


def _sha256(path: epath.Path) -> str:
    sums = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sums.update(chunk)
    return sums.hexdigest()


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """Returns a record as it comes back from its file."""
    return json.loads(json.dumps(record))
