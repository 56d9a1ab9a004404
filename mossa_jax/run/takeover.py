"""Taking over from another run: the models that rest on the same base, rows, settings and seed."""

from __future__ import annotations

from dataclasses import replace

from etils import epath

from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.files.checked import damage, read_json, write_json
from mossa_jax.files.names import slug
from mossa_jax.files.paths import as_path, copy_folder
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.files.write import is_whole, new_folder
from mossa_jax.llama.files.about import check_files
from mossa_jax.llama.files.exported import exported_about
from mossa_jax.llama.fingerprint import WEIGHTS, check_weights
from mossa_jax.log import log
from mossa_jax.processes import agreement
from mossa_jax.run.basis import why_different
from mossa_jax.run.context import Run
from mossa_jax.run.fingerprints import FINGERPRINTS, check_texts
from mossa_jax.run.record import FILE, read_record
from mossa_jax.tuning.curves import recorded_losses

_FILE = "takeover.json"
# What a run folder holds once any of its models was tuned, in whole or in part.
_TUNED = ("adapters", "models", "rounds.json")
_SHOWN = 6


def check_source(take_from: str, workdir: epath.PathLike) -> None:
    """Refuses a folder to take over from that is none.

    Raises:
      Refusal: 2, naming the folder and the way out.
    """
    if not take_from:
        return
    try:
        folder = as_path(take_from)
        has_config = (folder / "config.json").exists()
    except (ImportError, ValueError, OSError) as error:
        raise Refusal(BAD_CONFIG, f"--from={take_from}: {error}; name the folder of a run") from None
    if not has_config:
        raise Refusal(BAD_CONFIG, f"--from={take_from} has no config.json; name the folder of a run")
    if folder.resolve() == as_path(workdir).resolve():
        raise Refusal(BAD_CONFIG, f"--from={take_from} is --workdir itself; name another run, or leave --from out")


def take_models(run: Run) -> None:
    """Copies the models of `options.take_from` that this run would tune to the same; all processes call this together.

    A copied folder equals the other one byte for byte. What cannot be taken over is named with the reason, and tuned.
    """
    if not run.options.take_from:
        return
    other = RunFolder(run.options.take_from, writer=False)
    names = [*run.experimental_names, *run.controls]
    if not _has_our_base(run, other):
        run.options = replace(run.options, take_from="")
        return
    missing = run.untuned(names)
    if run.folder.writer and missing:
        path = run.folder / _FILE
        if (what := damage(path)) is not None:
            log.warning("%s: begun anew", what)
        is_sound = what is None and path.exists()
        earlier = read_json(path, "delete it") if is_sound else {"models": []}
        taken, anew = [], {}
        for name in missing:
            reason = _take_model(run, other, name)
            if reason:
                anew[name] = reason
            else:
                taken.append(name)
        models = [*earlier["models"], *taken]
        write_json(path, {"from": str(other.path), "models": models, "anew": anew})
        log.info("from %s: %d of %d models taken over", other.path, len(models), len(names))
        for reason in dict.fromkeys(anew.values()):
            concerned = [name for name in anew if anew[name] == reason]
            more = ", ..." if len(concerned) > _SHOWN else ""
            log.info("tuned anew: %s%s (%s)", ", ".join(concerned[:_SHOWN]), more, reason)
    agreement.wait_for_all("takeover")


def _has_our_base(run: Run, other: RunFolder) -> bool:
    """Returns whether another run rests on the same base; one that only lies elsewhere is known by its old name here.

    Names and sizes of files say little of weights, so these are compared. From a run that rests on others nothing is
    taken over, neither models nor results.
    """
    theirs, ours = read_record(other) or {}, run.record
    prints = theirs.get(FINGERPRINTS, {})
    if prints.get(WEIGHTS) is None:
        log.info("from %s: it recorded no digest of its base's weights, so these are not compared", other.path)
        return True
    if ours["base"]["dtype"] != theirs["base"]["dtype"]:
        return True  # each model is told from ours by that
    if run.base_weights is None:
        _ = run.model  # which records the digest
    try:
        check_texts(prints, ours[FINGERPRINTS], run.config.base)
        check_weights(str(run.base_weights), prints, f"the models of {other.path} were", run.config.base)
    except Refusal as refusal:
        log.warning("from %s: nothing is taken over (%s)", other.path, str(refusal))
        return False
    if ours["base"] != theirs["base"] and not any((run.folder / place).exists() for place in _TUNED):
        run.record = {**ours, "base": theirs["base"]}
        if run.folder.writer:
            write_json(run.folder / FILE, run.record)
    return True


def _take_model(run: Run, other: RunFolder, name: str) -> str:
    """Copies a model with its snapshots and its curve; returns why it cannot be taken over, "" if it was."""
    target = run.tuned_folder(name)
    source = other / f"{target.parent.name}/{target.name}"
    if not is_whole(source):
        return "it is not there"
    try:
        about = exported_about(source, name)
        if about.get("digest") == run.model_digest(name):
            check_files(source, about)
    except Refusal as refusal:
        return str(refusal)
    if about.get("digest") != run.model_digest(name):
        return why_different(about.get("rests_on", {}), run.model_basis(name))
    snapshots = other / f"snapshots/{slug(name)}"
    if snapshots.exists():
        for step in snapshots.iterdir():
            _copy(step, run.folder / f"snapshots/{slug(name)}/{step.name}")
    # The curve comes before the model: what is exported is not recorded again.
    recorded = recorded_losses(run.folder).get(name, {})
    for step, record in recorded_losses(other).get(name, {}).items():
        if step not in recorded:
            run.folder.append_metrics(record)
    run.folder.flush()
    _copy(source, target)
    return ""


def _copy(source: epath.Path, target: epath.Path) -> None:
    with new_folder(target) as new:
        copy_folder(source, new)
