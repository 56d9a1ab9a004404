"""Rounds of tuning: which models are tuned together, so that a restart finds the checkpoints of the same group.

The first round of a group has all of its models. Models that come later, because a task or an adapter is new, are tuned
in further rounds. A round is recorded before its first step: its checkpoints hold exactly its models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mossa_jax.files.checked import damage, read_json, write_json
from mossa_jax.log import log
from mossa_jax.processes import agreement
from mossa_jax.run.context import Run
from mossa_jax.tuning.checkpoints import checkpoint_folder
from mossa_jax.tuning.curves import begin_again

_FILE = "rounds.json"
_MOST = 99  # rounds of a group that are looked for where their record is lost


@dataclass(frozen=True)
class Round:
    """Models that are tuned together.

    Attributes:
      label: of progress lines and of the folder of checkpoints.
      names: of the models.
    """

    label: str
    names: tuple[str, ...]


def next_round(run: Run, label: str, models: Mapping[str, str], missing: Sequence[str]) -> Round:
    """Returns the round to go on with; all processes call this together.

    Args:
      run: the run.
      label: of the group.
      models: of the group: name -> digest of what each rests on.
      missing: names of those that are not tuned yet; at least one.
    """
    if run.folder.writer:
        rounds = _read(run)
        own = rounds.setdefault(label, [])
        if not own:
            own += _lost_rounds(run, label, models)
        # Goes on with a round only if it would tune the same models again, and leads to one that is missing.
        open_round = own[-1] if own and not own[-1]["done"] else None
        if open_round is not None:
            members = open_round["models"]
            is_same = all(models.get(name) == digest for name, digest in members.items())
            if not is_same or not set(missing) & set(members):
                _give_up(run, open_round)
                open_round = None
        if open_round is None:
            own.append(
                {
                    "label": _label(label, len(own) + 1),
                    "models": {name: models[name] for name in models if name in missing},
                    "done": False,
                }
            )
            begin_again(run.folder, own[-1]["models"])
            run.folder.flush()
        write_json(run.folder / _FILE, rounds)
    agreement.wait_for_all("round")
    current = _read(run)[label][-1]
    return Round(current["label"], tuple(current["models"]))


def end_round(run: Run, label: str) -> None:
    """Records that the last round of a group has taken all of its steps; all processes call this together."""
    if run.folder.writer:
        rounds = _read(run)
        rounds[label][-1]["done"] = True
        write_json(run.folder / _FILE, rounds)
    agreement.wait_for_all("round")


def remove_checkpoints(run: Run) -> None:
    """Deletes the checkpoints of rounds that are done, with what a kill has left of the last save (writer only).

    Nothing reads them again: all models of the round are exported. So are those of a round that was stopped between its
    last export and its record.
    """
    if run.folder.writer:
        for each in (each for own in _read(run).values() for each in own):
            if each["done"] or _is_exported(run, each["models"]):
                checkpoint_folder(run.folder, each["label"]).rmtree(missing_ok=True)


def _is_exported(run: Run, models: Mapping[str, str]) -> bool:
    """Returns whether all models of a round are exported and still rest on what they rested on in it."""
    known = {*run.experimental_names, *run.controls}
    return all(
        name in known and digest == run.model_digest(name) and run.is_tuned(name) for name, digest in models.items()
    )


def interrupted(run: Run) -> list[str]:
    """Returns the models of rounds that were not finished, where they rested on something else than today."""
    open_rounds = [own[-1] for own in _read(run).values() if own and not own[-1]["done"]]
    known = {*run.experimental_names, *run.controls}
    return [
        name
        for each in open_rounds
        for name, digest in each["models"].items()
        if name in known and digest != run.model_digest(name)
    ]


def _read(run: Run) -> dict[str, list[dict[str, Any]]]:
    path = run.folder / _FILE
    if (what := damage(path)) is not None:
        if run.folder.writer:
            log.warning("%s: begun anew", what)
            write_json(path, {})
        return {}
    return read_json(path, "delete it") if path.exists() else {}


def _lost_rounds(run: Run, label: str, models: Mapping[str, str]) -> list[dict[str, Any]]:
    """Returns the rounds of a group whose record is lost, as far as its checkpoints tell.

    If these are of the first round alone, it had all models of the group. Of a further one nobody knows the models, and
    its checkpoints are given up.
    """
    folder = run.folder / "checkpoints"
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    labels = [_label(label, number) for number in range(1, _MOST + 1)]
    found = [number for number, each in enumerate(labels, 1) if checkpoint_folder(run.folder, each).name in names]
    if found == [1]:
        return [{"label": label, "models": dict(models), "done": False}]
    return [{"label": each, "models": {}, "done": True} for each in labels[: max(found, default=0)]]


def _label(label: str, number: int) -> str:
    """Returns the label of a group's round of a number, from 1."""
    return label if number == 1 else f"{label} {number}"


def _give_up(run: Run, old: dict[str, Any]) -> None:
    """Ends a round whose models are no longer those that are asked for; what it has exported stays."""
    folder = checkpoint_folder(run.folder, old["label"])
    if folder.exists():
        log.warning("%s: its checkpoints belong to other models than today's and are given up", old["label"])
        folder.rmtree()
    old["done"] = True
