"""Planted layer profiles: the share of the gain that each layer carries is known."""

import numpy as np
import pandas as pd

from mossa_jax.function.profile import profile_variants


def planted_profile(
    tasks: dict[str, str],
    carried: np.ndarray,
    synergy: float = 0.0,
    noise: float = 0.0,
    cuts: int = 0,
    seed: int = 0,
    information: bool = True,
) -> pd.DataFrame:
    """Builds the table `results/profile` for tasks of a mixture.

    Args:
      tasks: task -> cluster.
      carried: [L] or [T, L], the share of the gain that each layer carries; each row sums to 1.
      synergy: by how much the layers up to any depth and those above it, each alone, sum to less than the whole.
      noise: standard deviation of every share.
      cuts: depths, as `analyse.profile_layers`.
      seed: of the noise.
      information: False leaves the shares of information undefined.
    """
    rng = np.random.default_rng(seed)
    carried = np.broadcast_to(carried, (len(tasks), np.shape(carried)[-1]))
    layers, rows = carried.shape[1], []
    for (task, cluster), own in zip(tasks.items(), carried, strict=True):
        below = np.concatenate([[0], np.cumsum(own)])
        inner = np.full(layers + 1, synergy / 2)
        inner[[0, -1]] = 0
        for variant in profile_variants(layers, cuts):
            k = variant.layer
            match variant.kept:
                case "upto":
                    share = below[k] - inner[k]
                case "from":
                    share = 1 - below[k - 1] - inner[k - 1]
                case "only":
                    share = own[k - 1]
                case _:
                    share = 1.0
            is_end = variant.kept in ("upto", "from") and k in (0, 1, layers, layers + 1) and share in (0.0, 1.0)
            share += 0.0 if is_end else noise * rng.standard_normal()
            cost = 0.1 * (k if variant.kept == "swap_upto" else layers + 1 - k)
            rows.append(
                {"task": task, "cluster": cluster, "held_out": False, "model": variant.model, "kept": variant.kept}
                | {"layer": k, "answer_nll": 2 - share, "low": 1.0, "high": 3.0, "cost": cost}
                | {"share_of_gain": share / 2 + 0.5 * (share > 0), "information": share, "information_cost": cost}
                | {"share_of_information": share if information else np.nan}
            )
    return pd.DataFrame(rows)
