"""The models that a run tuned, as its later stages read them: whole, the run's own, and tuned on the base of today."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from etils import epath

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files.paths import on_disk
from mossa_jax.llama.adapters import Adapter
from mossa_jax.llama.files.about import damaged, is_checkable
from mossa_jax.llama.files.exported import exported_about, load_exported, load_exported_model
from mossa_jax.llama.files.load import Model
from mossa_jax.llama.fingerprint import check_weights
from mossa_jax.log import log

if TYPE_CHECKING:
    from mossa_jax.run.context import Run


def model_about(run: Run, name: str) -> dict[str, Any]:
    """Returns what is recorded beside a tuned model; empty where it is not there.

    Raises:
      Refusal: 3 if the record is damaged, or that of another model.
    """
    return exported_about(run.tuned_folder(name), name)


def model_steps(run: Run, name: str) -> int:
    """Returns how many steps a model was tuned for.

    Raises:
      Refusal: 3 if it is not there, or as `model_about`.
    """
    about = model_about(run, name)
    if "steps" not in about:
        raise Refusal(BAD_INPUT, f"{run.tuned_folder(name)} is missing; put it back, or let launch.run tune it again")
    return int(about["steps"])


def tuned_adapter(run: Run, name: str) -> Adapter:
    """Reads the adapter of a tuned model.

    Raises:
      Refusal: 3 if it is damaged, another model's, or was tuned on other weights than those of the base.
    """
    return _adapter(run, run.tuned_folder(name), name)


def snapshot_adapter(run: Run, name: str, step: int) -> Adapter:
    """Reads the adapter of a model as it was after so many of its steps; refusals as in `tuned_adapter`."""
    folder = run.snapshot_folder(name, step)
    if (taken := exported_about(folder, name).get("steps", step)) != step:
        raise damaged(folder, f"holds the adapter after {taken} steps and not after {step}")
    return _adapter(run, folder, name)


def tuned_model(run: Run, name: str) -> Model:
    """Reads a model that was tuned in full, onto `run.mesh`.

    Raises:
      Refusal: 3 if it is damaged, or another model's.
    """
    folder = run.tuned_folder(name)
    _check_base(run, folder, name)
    with on_disk(folder) as local:
        return load_exported_model(local, folder, run.config.dtype, run.mesh, name)


def _adapter(run: Run, folder: epath.Path, name: str) -> Adapter:
    _check_base(run, folder, name)
    return load_exported(folder, run.architecture, name)


def _check_base(run: Run, folder: epath.Path, name: str) -> None:
    about = exported_about(folder, name)
    if about and not is_checkable(about):
        _say_unchecked(str(run.folder.path))
    if run.base_weights is not None:
        check_weights(run.base_weights, about, f"{name!r} of this run was", run.config.base)


@lru_cache(maxsize=8)
def _say_unchecked(workdir: str) -> None:
    """Says once that models of an earlier version are taken as they are."""
    log.info("%s: its models were exported without digests by an earlier version, and are not checked", workdir)
