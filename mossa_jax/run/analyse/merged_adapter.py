"""The mean of the specialists as an adapter of its own, kept in the run folder as PEFT reads it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from etils import epath

from mossa_jax.errors import Refusal
from mossa_jax.files.write import is_whole
from mossa_jax.llama.adapters import Adapter
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.files.about import check_files, read_about
from mossa_jax.llama.files.peft import load_adapter, save_adapter
from mossa_jax.llama.updates import inner_products, mean_adapter, quotients
from mossa_jax.log import log
from mossa_jax.processes import agreement
from mossa_jax.run.context import Run
from mossa_jax.run.exported import model_about, tuned_adapter


@dataclass(frozen=True)
class MergedAdapter:
    """The mean of the specialists' updates.

    Attributes:
      adapter: with one rank for all targets' sum.
      squares: [L] squared norm of each block's update.
    """

    adapter: Adapter
    squares: np.ndarray

    def cosines(self, other: Adapter) -> np.ndarray:
        """Returns the cosine of each block's update with that of another adapter, over all targets: [L] float64."""
        shared = [target for target in self.adapter if target in other]
        products = np.sum([inner_products(self.adapter[target], other[target]) for target in shared], axis=0)
        return quotients(products, np.sqrt(self.squares * block_squares(other)))


def block_squares(adapter: Adapter) -> np.ndarray:
    """Returns the squared norm of each block's update, over all targets: [L] float64."""
    return np.sum([inner_products(update, update) for update in adapter.values()], axis=0)


def merged_folder(run: Run) -> epath.Path:
    """Returns the folder of the mean of the specialists."""
    return run.folder.place / "merged"


def specialists(run: Run) -> list[str]:
    """Returns the names of the specialists whose mean is taken: those of the mixture's tasks."""
    return [task.name for task in run.suite.tasks if task.name not in run.suite.held_out]


def load_merged(run: Run) -> MergedAdapter:
    """Loads the mean of the specialists; it is made and written on first use."""
    folder, names = merged_folder(run), specialists(run)
    analyse = run.config.analyse
    models = {name: run.model_digest(name) for name in names}
    settings = {"specialists": models, "max_rank": analyse.merged_rank, "scale": analyse.merged_scale}
    is_there = run.folder.writer and _is_there(folder, settings)
    if not all(agreement.agreed([is_there])):
        if run.folder.writer:
            _write(run, folder, names, settings)
        agreement.wait_for_all("merged")
    return _read(os.fspath(folder), json.dumps(settings), run.architecture)


def _is_there(folder: epath.Path, settings: dict) -> bool:
    """Returns whether the mean with these settings is there, as it was written."""
    if not is_whole(folder):
        return False
    try:
        return read_about(folder).get("settings") == settings and _is_intact(os.fspath(folder), json.dumps(settings))
    except Refusal as refusal:
        log.info("merged: made again (%s)", refusal)
        return False


# Once for all tasks, as `_read`; a refusal is not kept.
@lru_cache(maxsize=1)
def _is_intact(folder: str, _: str) -> bool:
    check_files(folder, read_about(folder))
    return True


# Once for all tasks: of a large model with many specialists it is a gigabyte. Other settings make another adapter in
# the same folder.
@lru_cache(maxsize=1)
def _read(folder: str, _: str, arch: Architecture) -> MergedAdapter:
    return MergedAdapter(load_adapter(folder, arch), np.asarray(read_about(folder)["squares"]))


def _write(run: Run, folder: epath.Path, names: list[str], settings: dict) -> None:
    arch = run.architecture
    adapters = [tuned_adapter(run, name) for name in names]
    adapter, lost = mean_adapter(arch, adapters, run.config.analyse.merged_rank)
    for update in adapter.values():
        update["scale"] = np.full_like(update["scale"], settings["scale"])
    ranks = sorted({update["a"].shape[-1] for update in adapter.values()})
    cut = f"; {100 * lost:.2g} % of its norm is cut off" if lost > 1e-6 else ", without loss"
    log.debug("merged: the mean of %d specialists has rank %s%s", len(names), " to ".join(map(str, ranks)), cut)
    about = {
        "settings": settings,
        "lost": lost,
        "squares": block_squares(adapter).tolist(),
        "template": model_about(run, names[0]).get("template"),
    }
    save_adapter(folder, adapter, str(run.base), about)
