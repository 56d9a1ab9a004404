"""The tools that compute CKA of states in memory: ours, the procedures of `plain_cka`, and other packages.

Shape letters: L layers, n rows, D width of the states.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from mossa_jax.benchmarks import plain_cka
from mossa_jax.benchmarks.machine import torch_device
from mossa_jax.benchmarks.measuring import failure, quiet
from mossa_jax.similarity import cka, compare_states
from mossa_jax.similarity.matrix import cka_matrix

if TYPE_CHECKING:
    import torch

Run = Callable[[], np.ndarray]
Prepare = Callable[[np.ndarray, int], Run]


@dataclass(frozen=True)
class Tool:
    """A tool that computes CKA.

    Attributes:
      name: in tables and records.
      estimator: whose float64 value its error is measured against.
      prepare: (states [2, L, n, D], batch size) -> a call that returns [L] values (matching layers) or [L, L] values
        (all layers of the first model against all layers of the second).
      package: distribution that must be installed; "" if it needs none.
      source: argument of `pip install`, if it is not `package`.
      exact: False if it averages over batches, which is an estimate.
    """

    name: str
    estimator: str
    prepare: Prepare
    package: str = ""
    source: str = ""
    exact: bool = True

    def reason_absent(self) -> str:
        """Returns why the tool cannot run here, or ""."""
        if not self.package:
            return ""
        try:
            metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return f"not installed (pip install {self.source or self.package})"
        try:
            with quiet():
                self.prepare(np.zeros((2, 1, 4, 1), np.float32), 4)
        except Exception as error:
            # A package may fail in any way while it is imported.
            return f"does not start here ({failure(error)})"
        return ""


def _tensor(array: np.ndarray) -> torch.Tensor:
    """Returns the same numbers in torch, which does not know NumPy's bfloat16."""
    import torch

    array = np.ascontiguousarray(array)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(torch_device())
    return torch.from_numpy(array).to(torch_device())


def _each_torch(load: Callable[[], Callable[[Any, Any], Any]]) -> Prepare:
    """Compares matching layers by a function of two tensors, which `load` imports and returns."""

    def prepare(states: np.ndarray, batch: int) -> Run:
        import torch

        del batch
        compute = load()
        a, b = _tensor(states[0]), _tensor(states[1])

        def run() -> np.ndarray:
            with torch.inference_mode():
                return np.array([float(compute(x, y)) for x, y in zip(a, b, strict=True)])

        return run

    return prepare


def _each_numpy(function: Callable[[np.ndarray, np.ndarray], float]) -> Prepare:
    """Compares matching layers by a function of two arrays."""

    def prepare(states: np.ndarray, batch: int) -> Run:
        del batch
        return lambda: np.array([function(x, y) for x, y in zip(*states, strict=True)])

    return prepare


def _ours_each(estimator: str) -> Prepare:
    def prepare(states: np.ndarray, batch: int) -> Run:
        del batch
        layers = [[jnp.asarray(layer) for layer in model] for model in states]
        return lambda: np.array([cka(x, y, estimator) for x, y in zip(*layers, strict=True)])

    return prepare


def _ours_together(column: int) -> Prepare:
    def prepare(states: np.ndarray, batch: int) -> Run:
        del batch
        placed, valid = jnp.asarray(states), np.ones(states.shape[2], bool)
        return lambda: compare_states(placed, valid, [(0, 1)]).value[0, :, column]

    return prepare


def _ours_matrix(field: str) -> Prepare:
    def prepare(states: np.ndarray, batch: int) -> Run:
        del batch
        placed, valid, layers = jnp.asarray(states), np.ones(states.shape[2], bool), states.shape[1]
        return lambda: np.asarray(getattr(cka_matrix(placed, valid), field))[:layers, layers:]

    return prepare


def _import_alone(package: str, submodule: str) -> ModuleType:
    """Imports a submodule without its package, whose own import may need more than CKA does."""
    parent = importlib.util.find_spec(package)
    if parent is None or not parent.submodule_search_locations:
        raise ImportError(f"{package} is not an installed package")
    folder = Path(parent.submodule_search_locations[0], *submodule.split("."))
    name = f"_{package}_{submodule.replace('.', '_')}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
        if spec is None or spec.loader is None:
            raise ImportError(f"{package} has no {submodule}")
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _anatome() -> Callable[[Any, Any], Any]:
    from anatome.distance import linear_cka_distance

    return lambda x, y: 1 - linear_cka_distance(x, y, reduce_bias=False)


def _ckatorch() -> Callable[[Any, Any], Any]:
    from ckatorch.core import cka_base

    return cka_base


def _tdhook() -> Callable[[Any, Any], Any]:
    from tdhook.latent.representation_similarity.cka import CkaEstimator
    from tensordict import TensorDict

    estimator = CkaEstimator()
    return lambda x, y: estimator(TensorDict({"data_a": x, "data_b": y}, batch_size=[]))["cka"]


def _thingsvision(unbiased: bool) -> Callable[[], Callable[[Any, Any], Any]]:
    def load() -> Callable[[Any, Any], Any]:
        get_cka = _import_alone("thingsvision", "core.cka").get_cka
        device = torch_device()
        return lambda x, y: get_cka("torch", m=len(x), unbiased=unbiased, device=device).compare(x, y)

    return load


def _netrep(x: np.ndarray, y: np.ndarray) -> float:
    """Returns the cosine of netrep's `LinearCKA`, which is an angle."""
    from netrep.metrics.cka import LinearCKA

    return float(np.cos(LinearCKA().score(x, y)))


def _netrep_each(states: np.ndarray, batch: int) -> Run:
    import netrep.metrics.cka  # noqa: F401

    return _each_numpy(_netrep)(states, batch)


def _plain_torch() -> Callable[[Any, Any], Any]:
    import torch  # noqa: F401

    return plain_cka.torch_features


def _torch_matrix(states: np.ndarray, batch: int) -> Run:
    import torch

    del batch
    a, b = _tensor(states[0]), _tensor(states[1])

    def run() -> np.ndarray:
        with torch.inference_mode():
            return plain_cka.torch_matrix(a, b).cpu().numpy()

    return run


def _pytorch_cka_features(states: np.ndarray, batch: int) -> Run:
    import torch
    from cka import cka_from_features

    del batch
    a, b = _tensor(states[0]), _tensor(states[1])

    def run() -> np.ndarray:
        with torch.inference_mode():
            return cka_from_features(a, b).float().cpu().numpy()

    return run


def _replay(states: np.ndarray, batch: int) -> tuple[Callable[[], tuple[Any, Any]], Any, list[str]]:
    """Presents states in memory to tools that place hooks on the layers of two models.

    Returns:
      A call that makes two modules, whose layers pass on the states; the loader of both; and the layers' names.
    """
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    rows = _tensor(states.transpose(2, 0, 1, 3)).cpu()
    layers = states.shape[1]

    class Replay(torch.nn.Module):
        def __init__(self, side: int) -> None:
            super().__init__()
            self.side = side
            self.taps = torch.nn.ModuleList([torch.nn.Identity() for _ in range(layers)])

        def forward(self, x: torch.Tensor) -> None:
            for index, tap in enumerate(self.taps):
                tap(x[:, self.side, index])

    loader = DataLoader(TensorDataset(rows, torch.zeros(len(rows))), batch_size=batch)
    return lambda: (Replay(0), Replay(1)), loader, [f"taps.{index}" for index in range(layers)]


def _pytorch_cka(states: np.ndarray, batch: int) -> Run:
    from cka import compute_cka

    models, loader, names = _replay(states, batch)
    return lambda: compute_cka(*models(), loader, layers=names, progress=False)[0].float().cpu().numpy()


def _torch_cka(states: np.ndarray, batch: int) -> Run:
    import torch
    from torch_cka import CKA

    models, loader, names = _replay(states, batch)

    def run() -> np.ndarray:
        with quiet(), torch.no_grad():
            tool = CKA(*models(), "a", "b", names, names, device=torch_device())
            tool.compare(loader, loader)
        return tool.export()["CKA"].numpy()

    return run


def _cka_pytorch(states: np.ndarray, batch: int) -> Run:
    import torch
    from cka_pytorch import CKACalculator

    models, loader, names = _replay(states, batch)

    def run() -> np.ndarray:
        device = torch.device(torch_device())
        tool = CKACalculator(*models(), names, names, device=device, verbose=False)
        return tool.calculate_cka_matrix(loader, num_epochs=1).cpu().numpy()

    return run


DIAGONAL = (
    Tool("mossa_jax cka, debiased", "debiased", _ours_each("debiased")),
    Tool("mossa_jax cka, biased", "biased", _ours_each("biased")),
    Tool("mossa_jax compare_states, both + intervals", "debiased", _ours_together(1)),
    Tool("float32 torch, features (by hand)", "biased", _each_torch(_plain_torch), "torch"),
    Tool("float64 NumPy, features (the paper's way)", "biased", _each_numpy(plain_cka.feature_float64)),
    Tool("float32 NumPy, Gram (the common recipe)", "biased", _each_numpy(plain_cka.gram_float32)),
    Tool("anatome", "biased", _each_torch(_anatome), "anatome", "git+https://github.com/moskomule/anatome"),
    Tool("tdhook", "biased", _each_torch(_tdhook), "tdhook"),
    Tool("netrep, cosine of its angle", "biased", _netrep_each, "netrep", "git+https://github.com/ahwillia/netrep"),
    Tool("ckatorch cka_base, float64 Gram", "biased", _each_torch(_ckatorch), "ckatorch"),
    Tool("thingsvision, biased", "biased", _each_torch(_thingsvision(False)), "thingsvision"),
    Tool("thingsvision, unbiased", "debiased", _each_torch(_thingsvision(True)), "thingsvision"),
)
"""Tools that compare matching layers. The first one is the baseline of the ratios."""

MATRIX = (
    Tool("mossa_jax cka_matrix, both", "debiased", _ours_matrix("debiased")),
    Tool("float32 torch, whole Grams (by hand)", "biased", _torch_matrix, "torch"),
    Tool("pytorch-cka cka_from_features", "debiased", _pytorch_cka_features, "pytorch-cka"),
    Tool("pytorch-cka compute_cka, batches", "debiased", _pytorch_cka, "pytorch-cka", exact=False),
    Tool("torch_cka, batches", "debiased", _torch_cka, "torch-cka", exact=False),
    Tool("cka-pytorch, batches, 1 epoch", "debiased", _cka_pytorch, "cka-pytorch", exact=False),
)
"""Tools that compare each layer of one model with each layer of the other. The first one is the baseline."""

BOTH_COLUMNS = (Tool("mossa_jax compare_states, biased", "biased", _ours_together(0)),)
"""The other column of `compare_states`, beside its debiased one; `numerical_traps` looks at both."""
