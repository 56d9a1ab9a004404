"""What rests on which field of the configuration: nothing, the results beside the models, or the models themselves."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Literal

from mossa_jax.config.fields import Schedule, Tuning

Kind = Literal["free", "later", "earlier"]
"""`free`: no result depends on the field, beyond rounding. `later`: scores, similarities, analyses or findings do, and
another value gives a variant of them over the same models. `earlier`: data or models do."""

# Names of fields, or of groups of fields. The rows of a folder are told by their content, wherever it lies.
FREE = (
    "name", "track", "mesh", "tasks.folder", "compare.batch_rows", "tuning.checkpoint_every", "tuning.skips",
)  # fmt: skip
"""Fields that no result depends on."""

# The end of every name of a variant that has a hash.
_HASHED = re.compile(r".*-[0-9a-f]{16}")
_LATER = ("compare", "analyse", "tuning.score_prompts", "tuning.score_tokens")
# Fields of `tuning` that decide which models there are, how they fit the devices and over which windows their curves
# are means: each model is the same, up to rounding, whatever they say.
_NOT_OF_A_MODEL = (
    "seeds", "control_seeds", "seeded", "twins", "slots", "remat", "log_every", "control", "experimental",
)  # fmt: skip


def kind_of(name: str) -> Kind:
    """Returns what kind a field is of, given its dotted name."""
    if _is_among(name, FREE):
        return "free"
    return "later" if _is_among(name, _LATER) else "earlier"


def _is_among(name: str, groups: tuple[str, ...]) -> bool:
    return any(name == group or name.startswith(f"{group}.") for group in groups)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns the fields that differ between two configurations, given as JSON: dotted name -> (old, new)."""
    before, now = dict(flat_fields(old)), dict(flat_fields(new))
    names = sorted({*before, *now})
    return {name: (before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)}


def flat_fields(record: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted name and the value of every field of a configuration, given as JSON."""
    for key, value in record.items():
        if isinstance(value, dict):
            yield from flat_fields(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def name_of(values: Mapping[str, Any]) -> str:
    """Names a variant or a run of a sweep, and its folder, by its own values: `compare.pool=mean`; "" for none.

    Other values have another name, also on file systems that take capitals for small letters.
    """
    texts = (
        f"{field}={'+'.join(map(str, value)) if isinstance(value, list | tuple) else value}"
        for field, value in values.items()
    )
    name = ",".join(texts)
    words = [word for value in values.values() for word in (value if isinstance(value, list | tuple) else [value])]
    is_plain = all(re.fullmatch(r"[a-z0-9_.-]+", word) for word in words if isinstance(word, str))
    if is_plain and re.fullmatch(r"([A-Za-z0-9_.,=+-]{0,99}[A-Za-z0-9_])?", name) and not _HASHED.fullmatch(name):
        return name
    # Too long for a folder's name, with characters that it may not have, or like the name of other values.
    plain = re.sub(r"[^A-Za-z0-9_.,=+-]+", "-", name)[:80]
    exact = json.dumps(dict(values), default=str)
    return f"{plain}-{hashlib.sha256(exact.encode()).hexdigest()[:16]}"


def tuning_identity(tuning: Tuning) -> dict[str, Any]:
    """Returns the fields of `tuning` on which its checkpoints rest: all that are neither free nor later."""
    # Snapshots look on; the state is the same with any number of them.
    return {
        name: value
        for name, value in asdict(tuning).items()
        if kind_of(f"tuning.{name}") == "earlier" and name != "snapshots"
    }


def model_identity(tuning: Tuning, schedule: Schedule) -> dict[str, Any]:
    """Returns the settings on which one tuned model rests, whatever other models are tuned beside it."""
    settings = {name: value for name, value in tuning_identity(tuning).items() if name not in _NOT_OF_A_MODEL}
    own = {name: value for name, value in asdict(schedule).items() if name != "parts"}
    return {**settings, "snapshots": tuning.snapshots, "schedule": own}
