"""Times CKA at matching layers, ours against the procedures in common use, each written out plainly here."""

import dataclasses
import importlib.util
import platform
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mossa_jax.rundir import Refusal
from mossa_jax.similarity.compare import compare_states
from mossa_jax.similarity.estimators import MIN_ROWS
from mossa_jax.similarity.pairwise import cka


@dataclasses.dataclass(frozen=True)
class Workload:
    """Two models' states: `layers` layers of `n` rows of width `d`, float32, a constant offset `offset` times the
    signal, drawn from `seed`; timed `rounds` times."""

    n: int = 2048
    d: int = 1024
    layers: int = 12
    rounds: int = 5
    offset: float = 0.0
    seed: int = 0


def draw(work: Workload) -> np.ndarray:
    """[2, layers, n, d] float32 states that share a part of their factors."""
    rng = np.random.default_rng(work.seed)
    rank = max(2, work.d // 8)
    states = np.empty((2, work.layers, work.n, work.d), np.float32)
    for k in range(work.layers):
        factors = rng.standard_normal((work.n, rank), np.float32)
        for m in range(2):
            own = factors if m == 0 else np.where(np.arange(rank) % 2, factors, rng.standard_normal(factors.shape))
            mixing = rng.standard_normal((rank, work.d)) / np.sqrt(np.arange(1, rank + 1))[:, None]
            noise = rng.standard_normal((work.n, work.d), np.float32)
            states[m, k] = own @ mixing + noise + work.offset * rng.standard_normal(work.d)
    return states


def feature_float64(x: np.ndarray, y: np.ndarray) -> float:
    """Biased CKA as the MOSSA paper's procedure computes it: float64 NumPy, feature space, everything per pair."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    x, y = x - x.mean(0), y - y.mean(0)
    cross = np.linalg.norm(x.T @ y) ** 2
    return float(cross / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def gram_float32(x: np.ndarray, y: np.ndarray) -> float:
    """Biased CKA by the widely copied recipe: Gram matrices of raw float32 rows, centred afterwards."""

    def centred(gram: np.ndarray) -> np.ndarray:
        means = gram.mean(0)
        means = means - means.mean() / 2
        return gram - means[:, None] - means[None, :]

    k, m = centred(x @ x.T), centred(y @ y.T)
    return float(k.ravel() @ m.ravel() / (np.linalg.norm(k) * np.linalg.norm(m)))


def debiased_float64(x: np.ndarray, y: np.ndarray) -> float:
    """Debiased CKA in float64 feature space: the oracle of the debiased column."""
    n = len(x)
    x, y = x.astype(np.float64), y.astype(np.float64)
    x, y = x - x.mean(0), y - y.mean(0)

    def inner(u: np.ndarray, v: np.ndarray) -> float:
        r, s = np.square(u).sum(1), np.square(v).sum(1)
        h = np.square(u.T @ v).sum()
        return float(h - n / (n - 2) * (r @ s) + r.sum() * s.sum() / ((n - 1) * (n - 2)))

    return inner(x, y) / np.sqrt(inner(x, x) * inner(y, y))


def _torch_rows(states: np.ndarray) -> Callable[[], np.ndarray] | None:
    """The hand-written torch version over all layers, or None without torch."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    placed = torch.from_numpy(states).to(device)

    def run() -> np.ndarray:
        values = []
        with torch.no_grad():
            for x, y in zip(placed[0], placed[1], strict=True):
                x, y = x - x.mean(0), y - y.mean(0)
                norms = torch.linalg.norm(x.T @ x) * torch.linalg.norm(y.T @ y)
                values.append(torch.linalg.norm(x.T @ y) ** 2 / norms)
        return torch.stack(values).cpu().numpy()

    return run


def contestants(states: np.ndarray) -> dict[str, tuple[str, Callable[[], np.ndarray]]]:
    """Name -> (estimator whose error is measured, a call that returns one value a layer)."""
    placed = jnp.asarray(states)
    layers = [[jnp.asarray(a) for a in model] for model in states]
    valid = np.ones(states.shape[2], bool)

    def diagonal(estimator: str) -> Callable[[], np.ndarray]:
        return lambda: np.array([cka(x, y, estimator) for x, y in zip(*layers, strict=True)])

    def numpy_loop(function: Callable[[np.ndarray, np.ndarray], float]) -> Callable[[], np.ndarray]:
        return lambda: np.array([function(x, y) for x, y in zip(*states, strict=True)])

    found = {
        "mossa_jax cka, debiased": ("debiased", diagonal("debiased")),
        "mossa_jax cka, biased": ("biased", diagonal("biased")),
        "mossa_jax compare_states (both + intervals)": (
            "debiased",
            lambda: compare_states(placed, valid, [(0, 1)]).value[0, :, 1],
        ),
        "float64 NumPy, features (the paper's way)": ("biased", numpy_loop(feature_float64)),
        "float32 NumPy, Gram (the common recipe)": ("biased", numpy_loop(gram_float32)),
    }
    torch_rows = _torch_rows(states)
    if torch_rows:
        found["float32 torch, features (by hand)"] = ("biased", torch_rows)
    return found


def measure(work: Workload) -> dict:
    """Runs every contestant in turn, `rounds` times, after one warm-up call each.

    Returns:
        A JSON-ready record: versions, device, sizes, and per contestant the median and all seconds, the ratio to
        the first contestant, and the largest error against float64 of its own estimator.

    Raises:
        Refusal: code 2 for sizes that cannot be measured.
    """
    for name, least in (("n", MIN_ROWS), ("d", 1), ("layers", 1), ("rounds", 1)):
        if getattr(work, name) < least:
            raise Refusal(2, f"{name} is {getattr(work, name)}; give at least {least}")
    states = draw(work)
    runs = contestants(states)
    exact = {
        "biased": np.array([feature_float64(x, y) for x, y in zip(*states, strict=True)]),
        "debiased": np.array([debiased_float64(x, y) for x, y in zip(*states, strict=True)]),
    }
    errors, seconds = {}, {name: [] for name in runs}
    for name, (estimator, run) in runs.items():
        errors[name] = float(np.abs(run() - exact[estimator]).max())
    for _ in range(work.rounds):
        for name, (_, run) in runs.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    base = statistics.median(seconds[next(iter(runs))])
    device = jax.devices()[0]
    return {
        "jax": jax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        **dataclasses.asdict(work),
        "rows": [
            {
                "name": name,
                "estimator": estimator,
                "seconds": statistics.median(seconds[name]),
                "all_seconds": seconds[name],
                "ratio": statistics.median(seconds[name]) / base,
                "error": errors[name],
            }
            for name, (estimator, _) in runs.items()
        ],
    }


def table(record: dict) -> str:
    """The record as a plain text table."""
    lines = [
        f"{record['layers']} matching layers, n={record['n']}, d={record['d']}, offset {record['offset']:g}; "
        f"{record['devices']} x {record['device']}, jax {record['jax']}; median of {record['rounds']}",
        f"{'':46}{'ms':>10}{'ratio':>8}{'error':>10}",
    ]
    for row in record["rows"]:
        lines.append(f"{row['name']:46}{1e3 * row['seconds']:>10.1f}{row['ratio']:>8.2f}{row['error']:>10.1e}")
    return "\n".join(lines)
