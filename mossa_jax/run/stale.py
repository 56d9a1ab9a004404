"""Models of a run folder that rest on other rows than the run has today: named, and then refused, retrained or kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files.write import is_whole
from mossa_jax.log import log
from mossa_jax.processes import agreement
from mossa_jax.run.basis import basis_digest, why_different
from mossa_jax.run.context import Run
from mossa_jax.run.exported import model_about
from mossa_jax.run.record import changed_splits, describe_changes
from mossa_jax.run.rounds import interrupted

_WAYS_OUT = {
    "came": "--stale=retrain tunes it again, --stale=keep keeps it and counts what came as unseen, or hold them out "
    "(config.tasks.held_out)",
    "rows": "restore the rows, --stale=retrain to tune anew what rests on them, or name a new --workdir with --from",
}


def match_models(
    run: Run, before: Mapping[str, Any], change: Mapping[str, Sequence[str]], is_first: bool = True
) -> dict[str, str]:
    """Compares the models of the run folder with the rows of today; all processes call this together.

    Args:
      run: the run, whose `record` is that of today.
      before: the record of data in the run folder.
      change: from `record.changes`.
      is_first: whether this attempt asks for the first time; later stages ask again and need not be told again.

    Returns:
      The models of E that are kept although they rest on other tasks: name -> digest of what they rest on.

    Raises:
      Refusal: 3, naming models, rows and the way out, unless `options.stale` allows to go on.
    """
    for kind, names in change.items():
        log.warning("data: since this run began, %s: %s", kind, ", ".join(names))
    names = [*run.experimental_names, *run.controls]
    stale = _stale(run, names) if run.folder.writer else {}
    is_stale = agreement.agreed([name in stale for name in names])
    found = {name: model_about(run, name) for name, flag in zip(names, is_stale, strict=True) if flag}
    # Who decided to keep E has decided for as long as no other task comes or goes.
    was_kept = bool(before["kept"]) and not change and run.options.stale == "refuse"
    keeps = was_kept or run.options.stale == "keep"
    may_stay = [name for name, about in found.items() if keeps and _may_be_kept(run, name, about)]
    rest = [name for name in found if name not in may_stay]
    if run.options.stale == "retrain":
        for name in rest:
            log.warning("%s: tuned anew, for it rests on other rows (%s)", name, _why(run, name, found[name]))
        return {}
    if rest:
        raise Refusal(BAD_INPUT, _refusal(run, rest, found, change))
    if change.get("changed") and run.options.stale == "refuse":
        raise Refusal(BAD_INPUT, _changed_rows(run, before, change["changed"]))
    for name in may_stay if is_first else ():
        log.warning("%s: kept as it is (%s)", name, _why(run, name, found[name]))
    # Also where E misses nothing that counts as its mixture: without this, what came would belong to it again.
    exported = [name for name in run.experimental_names if keeps and is_whole(run.tuned_folder(name))]
    return {name: model_about(run, name)["digest"] for name in exported}


def _stale(run: Run, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns what is written beside each model that is exported, or half tuned, on other rows."""
    stale = {}
    for name in names:
        folder = run.tuned_folder(name)
        about = model_about(run, name) if is_whole(folder) else {}
        if about and about.get("digest") != basis_digest(run.model_basis(name)):
            stale[name] = about
    for name in interrupted(run):
        if name in names and name not in stale and not run.is_tuned(name):
            stale[name] = {}
    return stale


def _may_be_kept(run: Run, name: str, about: Mapping[str, Any]) -> bool:
    """Returns whether a model is one of E that differs from what it should be only in which tasks it has seen."""
    if name not in run.experimental_names or not about:
        return False
    old, new = about["rests_on"], run.model_basis(name)
    shared = [task for task in old["rows"] if task in new["rows"]]
    # Caps of a cluster may divide other counts over the tasks that are left.
    same_rows = all(old["rows"][task][0] == new["rows"][task][0] for task in shared)
    rest = [{key: value for key, value in basis.items() if key not in ("rows", "order")} for basis in (old, new)]
    return same_rows and basis_digest(rest[0]) == basis_digest(rest[1])


def _why(run: Run, name: str, about: Mapping[str, Any]) -> str:
    if not about:
        return "it is half tuned on other rows"
    return why_different(about.get("rests_on", {}), run.model_basis(name))


def _refusal(
    run: Run, stale: Sequence[str], found: Mapping[str, Mapping[str, Any]], change: Mapping[str, Sequence[str]]
) -> str:
    why = _why(run, stale[0], found[stale[0]])
    more = f" and {len(stale) - 1} more" if len(stale) > 1 else ""
    only_tasks = not change.get("changed") and all(name in run.experimental_names for name in stale)
    way = _WAYS_OUT["came" if only_tasks else "rows"]
    what = f" ({describe_changes(change)})" if change else ""
    return (
        f"--workdir={run.folder.path}: its tasks have changed since this run began{what}, and {stale[0]!r}{more} was "
        f"tuned on others: {why}; {way}"
    )


def _changed_rows(run: Run, before: Mapping[str, Any], names: Sequence[str]) -> str:
    name = names[0]
    task = run.record["tasks"][name]
    splits = " and ".join(changed_splits(before["tasks"][name], task))
    more = f" (and those of {len(names) - 1} more tasks)" if len(names) > 1 else ""
    return (
        f"task {name!r}: its {splits} rows{more} in {task['source'] or 'the suite'} have changed since this run began; "
        "restore them, --stale=retrain to make anew what rests on them, or name a new --workdir with "
        f"--from={run.folder.path}"
    )
