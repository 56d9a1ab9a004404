"""Layer profiles: what a model's layers do for its answers, by keeping or exchanging the adapters of some of them.

For E and for a task's specialist C_t, adapters are kept up to block k (`upto`), from block k (`from`) or in block k
alone (`only`); the other blocks are the base's. In E, blocks up to k (`swap_upto`) or from k (`swap_from`) are
exchanged for the specialist's. Each is measured, teacher-forced, by the negative log likelihood of the prompts' own
answers, and by the information that it uses: most of the likelihood that tuning adds belongs to the form of the
answers, which any layer can bring about; the information takes the form out.

Shape letters: N variants, L layers, n pairs.

References:
  Bansal, Nakkiran and Barak 2021, "Revisiting model stitching to compare neural representations", NeurIPS 34.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mossa_jax.function.estimates import Estimate
from mossa_jax.function.information import AnswerPairs, answer_nll, information

BASE, TUNED, CONTROL = 0, 1, 2
"""Sources of adapters: the base has a zero adapter."""

MODELS = {"tuned": TUNED, "control": CONTROL}
"""Values of the column `model`, and their sources."""

UPTO, FROM, ONLY, SWAP_UPTO, SWAP_FROM = "upto", "from", "only", "swap_upto", "swap_from"
KEPT = (UPTO, FROM, ONLY, SWAP_UPTO, SWAP_FROM)
"""Values of the column `kept`."""


@dataclass(frozen=True)
class Variant:
    """One model of a profile.

    Attributes:
      model: `tuned` or `control`, the model whose adapters are kept; those of `tuned` are exchanged.
      kept: one of `KEPT`.
      layer: k, from 1; 0 in `upto` keeps nothing, and so does L + 1 in `from`.
      sources: whose adapter each block has, L numbers.
    """

    model: str
    kept: str
    layer: int
    sources: tuple[int, ...]


def depths(layers: int, count: int = 0) -> list[int]:
    """Returns the depths k at which a profile cuts the network: 0, L, and an even choice between them.

    Args:
      layers: L.
      count: how many, without 0; 0 takes all.
    """
    count = min(count, layers) or layers
    return [round(layers * number / count) for number in range(count + 1)]


def profile_variants(layers: int, count: int = 0) -> list[Variant]:
    """Lists the variants of a profile; some of them are the same model.

    Args:
      layers: L.
      count: depths to cut at, as in `depths`.
    """
    cuts = depths(layers, count)

    def joined(below: int, above: int, depth: int) -> tuple[int, ...]:
        return (below,) * depth + (above,) * (layers - depth)

    variants = []
    for model, source in MODELS.items():
        variants += [Variant(model, UPTO, k, joined(source, BASE, k)) for k in cuts]
        variants += [Variant(model, FROM, k + 1, joined(BASE, source, k)) for k in cuts]
        for k in cuts[1:]:
            alone = tuple(source if layer == k else BASE for layer in range(1, layers + 1))
            variants.append(Variant(model, ONLY, k, alone))
    variants += [Variant("tuned", SWAP_UPTO, k, joined(CONTROL, TUNED, k)) for k in cuts]
    variants += [Variant("tuned", SWAP_FROM, k + 1, joined(TUNED, CONTROL, k)) for k in cuts]
    return variants


def sources(variants: list[Variant]) -> Int[np.ndarray, "N L"]:
    """Returns whose adapter each block of each variant has."""
    return np.asarray([variant.sources for variant in variants], np.int64)


def profile_rows(
    variants: list[Variant], pairs: AnswerPairs, likelihoods: Float[np.ndarray, "N pairs"]
) -> list[dict[str, Any]]:
    """Turns the log probabilities of a task's answers into the rows of its profile.

    Args:
      variants: from `profile_variants`.
      pairs: the prompts with their own answers and with those of other prompts.
      likelihoods: log probability of each pair's answer, by each variant.

    Returns:
      A row per variant: `model, kept, layer`; `answer_nll, low, high` in nats per id of the own answers; `cost`, by how
      much that is above the unaltered model's; `share_of_gain`, the part that the variant keeps of what the unaltered
      model has over the base; `information`, in nats per prompt, with `information_low, information_high,
      information_cost` (by how much it is below the unaltered model's) and `share_of_information`; `n` prompts. Costs
      have their own intervals (`_low`, `_high`), since both models read the same answers. A share is undefined (NaN)
      where the interval of the gain reaches zero.
    """
    last = len(variants[0].sources)
    index = {(each.model, each.kept, each.layer): number for number, each in enumerate(variants)}
    base = likelihoods[index["tuned", UPTO, 0]]
    full = {model: likelihoods[index[model, UPTO, last]] for model in MODELS}
    # Both measures are linear in the log probabilities, so that a difference of two models is measured like a model.
    losses_gained = {model: answer_nll(pairs, base - full[model]) for model in MODELS}
    information_gained = {model: information(pairs, full[model] - base) for model in MODELS}
    rows = []
    for variant, values in zip(variants, likelihoods, strict=True):
        missing = full[variant.model] - values
        loss, cost = answer_nll(pairs, values), answer_nll(pairs, -missing)
        known, forgotten = information(pairs, values), information(pairs, missing)
        rows.append(
            {
                "model": variant.model,
                "kept": variant.kept,
                "layer": variant.layer,
                "answer_nll": loss.value,
                "low": loss.low,
                "high": loss.high,
                **_columns("cost", cost),
                "share_of_gain": _share(losses_gained[variant.model], cost),
                **_columns("information", known),
                **_columns("information_cost", forgotten),
                "share_of_information": _share(information_gained[variant.model], forgotten),
                "n": len(pairs.items),
            }
        )
    return rows


def _columns(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _share(gain: Estimate, cost: Estimate) -> float:
    return 1 - cost.value / gain.value if gain.low > 0 else math.nan
