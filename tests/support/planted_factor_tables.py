"""Tables of the split by factors with planted parts and changes."""

import numpy as np
import pandas as pd

from mossa_jax.similarity.factor_sums import WITHIN
from mossa_jax.similarity.projections import FACTORS

LAYERS = ("embed", "1", "2", "3", "4", "final_norm")
BASE_PARTS = dict(zip(FACTORS, (0.2, 0.1, 0.0, 0.05), strict=True))
CHANGES = dict(zip(FACTORS, (-0.05, 0.5, 0.0, 0.03), strict=True))


def tables(within_change=-0.1, clusters=9, kinds=None, reasons=None, template=True):
    """One task per cluster, and a held-out one; the change within the answer is as given, with noise over clusters."""
    rng = np.random.default_rng(0)
    factors, within = [], []
    for task in range(clusters + 1):
        place = {"task": f"t{task}", "cluster": f"c{task}", "held_out": task == clusters}
        kind = (kinds or {}).get(f"t{task}", "class")
        shift = rng.normal(0, 0.02)
        for layer in LAYERS:
            for experimental in ("pretrained", "tuned"):
                tuned = experimental == "tuned"
                whole = sum(BASE_PARTS.values()) + tuned * sum(CHANGES.values())
                for name in FACTORS:
                    is_missing = name == "item" or (name == "template" and not template)
                    change = np.nan if is_missing or not tuned else CHANGES[name] + shift * (name == "answer")
                    value = np.nan if is_missing else BASE_PARTS[name] + (change if tuned else 0)
                    note = f"no {name} is known" if is_missing else ""
                    factors.append(
                        {**place, "experimental": experimental, "layer": layer, "factor": name, "cka": value,
                         "change": change, "whole": whole + shift * tuned, "answer": kind, "note": note}
                    )  # fmt: skip
                for name in WITHIN:
                    own = within_change + shift if name == "answer" else 0.5 + shift
                    reason = (reasons or {}).get(f"t{task}", "") if name == "answer" else ""
                    if name in ("template", "both") and not template:
                        reason = "no template is known"
                    value = np.nan if reason else own
                    within.append(
                        {**place, "experimental": experimental, "layer": layer, "within": name,
                         "cka": 0.3 + tuned * value, "change": value if tuned else np.nan,
                         "change_low": value - 0.1, "change_high": value + 0.1, "answer": kind, "undefined": reason}
                    )  # fmt: skip
    return {"factors": pd.DataFrame(factors), "within": pd.DataFrame(within)}
