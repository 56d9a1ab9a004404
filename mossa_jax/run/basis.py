"""What the models of a run rest on: base, rows, settings and seed, of each model by itself."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mossa_jax.config import MINIATURE, Config
from mossa_jax.config.kinds import differences, model_identity
from mossa_jax.files.names import digest
from mossa_jax.files.run_folder import RESULTS
from mossa_jax.foreign import user_path
from mossa_jax.tasks.controls import Control
from mossa_jax.tasks.mixture import mixture_counts
from mossa_jax.tasks.suite import Suite


def base_identity(config: Config) -> dict[str, Any]:
    """Returns what tells a base model from others: its name, and of a local folder its config and the files' sizes."""
    about: dict[str, Any] = {"base": config.base, "revision": config.revision, "dtype": config.dtype}
    if config.base == MINIATURE:
        return {**about, "pretraining": asdict(config.pretraining)}
    folder = Path(user_path(config.base, "config.base"))
    if not folder.is_dir():
        return about
    text = (folder / "config.json").read_bytes() if (folder / "config.json").is_file() else b""
    sizes = {path.name: path.stat().st_size for path in sorted(folder.glob("*.safetensors"))}
    return {**about, "base": os.path.realpath(folder), "config": digest(text.decode(errors="replace")), "sizes": sizes}


def mixture_of(suite: Suite, config: Config, record: Mapping[str, Any]) -> dict[str, int]:
    """Returns how many rows each task gives to E, by the record of a run's data."""
    rows = {task.name: record["tasks"][task.name]["train"]["rows"] for task in suite.tasks}
    return mixture_counts(suite, rows, config.tasks)


def experimental_basis(
    config: Config, record: Mapping[str, Any], mixture: Mapping[str, int], seed: Sequence[int]
) -> dict[str, Any]:
    """Returns what a model of E rests on, ready for JSON.

    Args:
      config: of the run.
      record: of the run's data (`run.prepare`).
      mixture: rows of each task.
      seed: of the model.
    """
    rows = {name: [_digest_of(record, name), count] for name, count in mixture.items()}
    return _basis(config, record, seed, config.tuning.experimental, rows) | {"order": list(mixture)}


def control_basis(config: Config, record: Mapping[str, Any], control: Control, seed: Sequence[int]) -> dict[str, Any]:
    """Returns what a control model rests on, ready for JSON. Arguments as in `experimental_basis`."""
    rows = {control.task.name: [_digest_of(record, control.task.name), None]}
    answers = "permuted" if control.is_twin else "own"
    return _basis(config, record, seed, config.tuning.control, rows) | {"answers": answers}


def _digest_of(record: Mapping[str, Any], task: str) -> str:
    return record["tasks"][task]["train"]["digest"]


def _basis(
    config: Config,
    record: Mapping[str, Any],
    seed: Sequence[int],
    schedule: Any,
    rows: Mapping[str, Any],
) -> dict[str, Any]:
    tokens = asdict(config.tokens)
    return {
        "results_format": RESULTS,
        "base": record["base"],
        "template": record["template"],
        "seed": list(seed),
        # Template and truncation are in the rows; these decide how rows are packed.
        "tokens": {name: tokens[name] for name in ("max_tokens", "row_length", "long_row_length", "share_prefix")},
        "tuning": model_identity(config.tuning, schedule),
        "rows": dict(rows),
    }


def basis_digest(basis: Mapping[str, Any]) -> str:
    """Returns the digest of what something rests on; 2 and 2.0 are the same."""
    return digest(_plain(basis))


def _plain(value: Any) -> Any:
    """Returns a value as JSON has it, with whole numbers as integers: files give `epochs = 2`, flags 2.0."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def why_different(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Says in a few words in what two bases differ, from the older one's point of view."""
    if not old:
        return "it does not say what it rests on"
    rows_old, rows_new = old.get("rows", {}), new.get("rows", {})
    gone, come = (
        [name for name in rows_old if name not in rows_new],
        [name for name in rows_new if name not in rows_old],
    )
    other = [name for name in rows_new if name in rows_old and rows_old[name] != rows_new[name]]
    reasons = [
        f"{verb} {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for verb, names in (("without", gone), ("with", come), ("other rows of", other))
        if names
    ]
    rest_old, rest_new = ({k: v for k, v in each.items() if k not in ("rows", "order")} for each in (old, new))
    changed = differences(json.loads(json.dumps(rest_old)), json.loads(json.dumps(rest_new)))
    reasons += [f"{name} was {before!r}, now {now!r}" for name, (before, now) in list(changed.items())[:3]]
    return "; ".join(reasons) or "the tasks' order changed"
