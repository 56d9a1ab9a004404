"""What the base of a run was when its models were tuned: architecture, tokenizer, generation settings and weights.

The record of the run's data keeps it as `fingerprints`, and every later attempt compares. Texts are compared before
anything is computed. Weights are compared whenever they are loaded, and at the start of an attempt if their files have
been touched since they were last compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etils import epath

from mossa_jax.config import MINIATURE, Config
from mossa_jax.config.kinds import flat_fields
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files.checked import write_json
from mossa_jax.foreign import read_object, short, user_path
from mossa_jax.llama.files.load import Model
from mossa_jax.llama.files.locate import locate
from mossa_jax.llama.fingerprint import WEIGHTS, check_weights, weights_digest
from mossa_jax.log import log
from mossa_jax.processes import agreement
from mossa_jax.run.record import FILE

if TYPE_CHECKING:
    from mossa_jax.run.context import Run

FINGERPRINTS = "fingerprints"
"""The key of the record of a run's data that holds `architecture`, `generation`, `tokenizer` and, once the base was
loaded, `weights` (their digest) and `files` (sizes and times of the files that hold them)."""

_FILES = "files"
# Settings of generation by which prompts begin and answers end.
_STOPS = ("bos_token_id", "eos_token_id")
_SOURCES = {
    "architecture": "config.json",
    "generation": "what begins and ends texts (config.json, generation_config.json)",
    "tokenizer": "the tokenizer",
}
# Beginnings of the names of a tokenizer's files.
_TOKENIZER_FILES = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template")


def text_fingerprints(run: Run) -> dict[str, dict[str, Any]]:
    """Returns what identifies a run's base without its weights, ready for JSON.

    `architecture`, field by field; `generation`, the settings by which prompts begin and answers end; `tokenizer`, a
    digest of its `files` and one of its `rules` as they are understood. `check_texts` compares them.
    """
    folder, settings = _text_folder(run.config), {}
    if run.config.base != MINIATURE and (path := folder / "generation_config.json").exists():
        settings = read_object(path)
    architecture = asdict(run.architecture)
    # They come from either file, and are named with the settings of generation.
    stops = {name: architecture.pop(name) for name in ("bos", "eos")}
    prints = {
        "architecture": architecture,
        "generation": {**stops, **{name: settings.get(name) for name in _STOPS}},
        "tokenizer": {"files": _digest_of_files(folder), "rules": run.tokenizer.identity},
    }
    return json.loads(json.dumps(prints))


def _text_folder(config: Config) -> epath.Path:
    if config.base == MINIATURE:
        from mossa_jax.tasks.miniature import TOKENIZER

        return epath.Path(TOKENIZER)
    return locate(config.base, config.revision, text_only=True)


def _digest_of_files(folder: epath.Path) -> str:
    sums = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.name.startswith(_TOKENIZER_FILES) and path.is_file():
            content = path.read_bytes()
            sums.update(f"{path.name} {len(content)} ".encode(errors="surrogateescape") + content)
    return sums.hexdigest()[:16]


def check_texts(before: Mapping[str, Any], now: Mapping[str, Any], base: str) -> None:
    """Checks that a run's base is what it was when the run began, its weights aside.

    Args:
      before: fingerprints as recorded.
      now: from `text_fingerprints`.
      base: the base's name, for the message.

    Raises:
      Refusal: 3, naming what has changed.
    """
    for kind, source in _SOURCES.items():
        old, new = dict(flat_fields(before.get(kind, {}))), dict(flat_fields(now[kind]))
        # A field that one of two versions of this package does not know says nothing.
        changed = [name for name in old if name in new and old[name] != new[name]]
        # Other libraries write the rules of one tokenizer in other words, and its files with other spaces.
        if kind == "tokenizer" and len(changed) < len(old):
            continue
        if changed:
            values = [f"{name} was {short(old[name], 40)}, now {short(new[name], 40)}" for name in changed[:3]]
            more = "; ..." if len(changed) > len(values) else ""
            raise Refusal(
                BAD_INPUT,
                f"{source} of the base at {base} has changed since this run began ({'; '.join(values)}{more}); restore "
                "it, or start a new --workdir",
            )


def note_weights(run: Run, model: Model) -> None:
    """Compares the weights of a run's base with those that the run began with, or records them as these.

    All processes call this together, each time that the base was loaded.

    Raises:
      Refusal: 3 if they are others, or if processes differ in them.
    """
    weights = weights_digest(model.state)
    everywhere = agreement.everywhere(int(weights[:15], 16))
    others = [process for process, other in enumerate(everywhere) if other != everywhere[0]]
    if others:
        raise Refusal(
            BAD_INPUT,
            f"process {others[0]} of {len(everywhere)} has other weights of the base {run.base} than process 0; give "
            "all hosts the same files",
        )
    prints = run.record.get(FINGERPRINTS) if run.has_record else None
    if prints is None:
        return
    check_weights(weights, prints, "this run's models were", run.base)
    if prints.get(WEIGHTS) is None and run.folder.writer and any((run.folder / "adapters").glob("*")):
        log.info("base: the models of this run were tuned by a version that recorded no digest of its weights")
    files = weight_files(run.config)
    if prints.get(WEIGHTS) != weights or prints.get(_FILES) != files:
        prints.update({WEIGHTS: weights, _FILES: files})
        if run.folder.writer:
            write_json(run.folder / FILE, run.record)


def are_weights_touched(run: Run) -> bool:
    """Returns whether files of the base were touched since its weights were compared, as this process sees it."""
    prints = run.record[FINGERPRINTS]
    return prints.get(WEIGHTS) is not None and prints.get(_FILES) != weight_files(run.config)


def weight_files(config: Config) -> dict[str, list[int]]:
    """Returns size in bytes and the times of change, ns, of the files that hold a local base's weights.

    The second time is that of the entry itself, which no program can set back. A base of the hub has none: its files
    are named by their content. Nor has the miniature base, which is checked by `tuning.pretrain`.
    """
    if config.base == MINIATURE:
        return {}
    folder = Path(user_path(config.base, "config.base"))
    if not folder.is_dir():
        return {}
    paths = [
        path for path in sorted(folder.iterdir()) if path.name.endswith((".safetensors", ".safetensors.index.json"))
    ]
    stats = {path.name: path.stat() for path in paths if path.is_file()}
    return {name: [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for name, stat in stats.items()}
