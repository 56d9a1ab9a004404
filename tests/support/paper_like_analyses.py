"""Planted tables of all analyses for `paper_like`: the paper's dimensions and correlations, and plausible others.

Shape letters: T tasks, L blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from mossa_jax.function.profile import profile_variants
from mossa_jax.similarity.factor_sums import WITHIN
from mossa_jax.similarity.projections import FACTORS

# Dimensions of 99 % of the variance, at layers 1 to 32 (the paper's figure 5).
DIMENSIONS = {
    "pretrained": (
        "270 366 460 516 604 716 779 772 781 793 806 831 820 826 819 799 777 752 737 733 742 779 802 835 903 969 "
        "1047 1052 1076 1127 1084 825"
    ),
    "tuned": (
        "276 384 448 500 659 782 856 922 951 1006 1155 1337 1515 1592 1722 1748 1740 1779 1721 1711 1704 1724 1719 "
        "1729 1741 1759 1768 1763 1763 1758 1715 1523"
    ),
}
# Correlations at layers 1 to 32 (the paper's figure 6).
CORRELATIONS = {
    "flesch_kincaid": {
        "pretrained": (
            "-.03 .01 .10 -.04 -.09 .02 -.06 -.03 -.09 -.11 -.14 -.18 .06 .11 .16 .15 .13 .11 .11 .09 .07 .06 .06 "
            ".05 .05 .06 .07 .07 .06 .06 .02 -.04"
        ),
        "tuned": (
            ".17 .26 .25 -.03 .02 .07 -.01 -.04 .04 .11 .15 .23 .33 .28 .38 .39 .43 .42 .42 .43 .41 .40 .40 .39 "
            ".40 .40 .39 .40 .39 .37 .35 .26"
        ),
    },
    "coleman_liau": {
        "pretrained": (
            "-.22 .06 .16 .05 -.01 .06 .00 .01 -.08 -.16 -.22 -.28 .01 .08 .12 .10 .09 .07 .08 .07 .05 .04 .04 "
            ".03 .03 .03 .04 .04 .04 .04 .04 -.01"
        ),
        "tuned": (
            ".17 .30 .21 -.03 .07 -.07 -.09 -.10 .01 .14 .19 .27 .32 .29 .41 .41 .44 .44 .44 .45 .43 .42 .41 .40 "
            ".40 .39 .39 .39 .39 .39 .39 .39"
        ),
    },
    "training_rows": {
        "pretrained": (
            ".46 .13 -.02 -.05 .05 .06 .05 .10 .18 .26 .30 .34 .15 .07 .04 .06 .06 .07 .05 .04 .02 .02 .02 .01 "
            ".01 .02 .02 .02 .01 .00 -.05 -.11"
        ),
        "tuned": (
            ".00 -.02 .03 .09 .11 .43 .33 .20 .15 .00 -.03 -.09 -.12 -.14 -.19 -.18 -.16 -.16 -.15 -.14 -.14 -.13 "
            "-.13 -.13 -.12 -.10 -.11 -.10 -.11 -.12 -.14 -.27"
        ),
    },
}
MEASURES = (
    "cka_debiased",
    "cka_biased",
    "rbf_cka",
    "procrustes",
    "svcca",
    "rsa",
    "mutual_knn",
    "cknna",
    "cknna_released",
)
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_NO_CELL = "no variance in a and b"


def analyses_of(table: pd.DataFrame, rng: np.random.Generator) -> dict[str, pd.DataFrame]:
    """Plants the tables of all analyses, around the CKA of a results table.

    Args:
      table: with own specialists under both models.
      rng: source of randomness.
    """
    planted = Planted(table, rng)
    makers: Iterable[Callable[[], dict[str, pd.DataFrame]]] = (
        planted.spectrum, planted.correlates, planted.map, planted.factors, planted.measures, planted.layers,
        planted.weights, planted.merged, planted.profile, planted.trajectory,
    )  # fmt: skip
    return {name: rows for make in makers for name, rows in make().items()}


def _curve(numbers: str, layers: int) -> np.ndarray:
    """Returns 32 published numbers, at as many layers as there are."""
    values = np.array([float(number) for number in numbers.split()])
    return np.interp(np.linspace(0, 1, layers), np.linspace(0, 1, len(values)), values)


class Planted:
    """What the planted analyses share.

    Attributes:
      places: the tasks, columns `task, cluster, held_out`; one per cluster in `some`.
      blocks: names of the blocks; `names` with the embedding and the final norm.
    """

    def __init__(self, table: pd.DataFrame, rng: np.random.Generator):
        """Reads tasks, layers and similarities off a results table."""
        self.rng = rng
        self.places = table.drop_duplicates("task")[["task", "cluster", "held_out"]].reset_index(drop=True)
        self.some = self.places.drop_duplicates("cluster").reset_index(drop=True)
        self.blocks = [name for name in dict.fromkeys(table["layer"]) if name.isdigit()]
        self.names = ["embed", *self.blocks, "final_norm"]
        self.depth = np.linspace(0, 1, len(self.blocks))
        own = table[table["control"] == table["task"]]
        self._own = own.set_index(["experimental", "estimator", "task", "layer"])["cka"]

    def grid(self, places: pd.DataFrame, **levels: Iterable[object]) -> pd.DataFrame:
        """Returns a row per task and combination of levels."""
        rows = pd.MultiIndex.from_product([range(len(places)), *levels.values()], names=["_", *levels])
        frame = rows.to_frame(index=False)
        return pd.concat([places.iloc[frame.pop("_")].reset_index(drop=True), frame], axis=1)

    def own(self, frame: pd.DataFrame, model: str = "", estimator: str = "") -> np.ndarray:
        """Returns the CKA with the own specialist for rows with a task, a layer, and a model and estimator."""
        models = np.full(len(frame), model) if model else frame["experimental"].to_numpy()
        estimators = np.full(len(frame), estimator) if estimator else frame["estimator"].to_numpy()
        keys = pd.MultiIndex.from_arrays([models, estimators, frame["task"], frame["layer"]])
        return self._own.reindex(keys).to_numpy()

    def noise(self, frame: pd.DataFrame, scale: float) -> np.ndarray:
        """Draws noise for each row."""
        return self.rng.normal(0, scale, len(frame))

    def spectrum(self) -> dict[str, pd.DataFrame]:
        """Plants the paper's dimensions, with a factor per task."""
        rows = self.grid(self.places, model=("pretrained", "tuned", "control"), layer=self.names)
        means = {model: _curve(numbers, len(self.blocks)) for model, numbers in DIMENSIONS.items()}
        means["control"] = 0.8 * means["tuned"]
        at = {name: min(max(index - 1, 0), len(self.blocks) - 1) for index, name in enumerate(self.names)}
        values = np.array([means[model][at[layer]] for model, layer in zip(rows["model"], rows["layer"], strict=True)])
        rows["components_99"] = np.round(values * np.exp(self.noise(rows, 0.1)))
        rows["participation_ratio"] = values / 20 * np.exp(self.noise(rows, 0.1))
        is_missing = rows["layer"] == "embed"
        rows.loc[is_missing, ["components_99", "participation_ratio"]] = np.nan
        return {"spectrum": rows.assign(n=512, undefined=np.where(is_missing, "no variance", ""))}

    def correlates(self) -> dict[str, pd.DataFrame]:
        """Plants the paper's correlations."""
        counted = self.places[~self.places["held_out"]]
        units, parts = counted["cluster"].nunique(), []
        for correlate in CORRELATIONS:
            base, tuned = (_curve(CORRELATIONS[correlate][name], len(self.blocks)) for name in ("pretrained", "tuned"))
            for name, r in (("pretrained", base), ("tuned", tuned), ("change", tuned - base)):
                for estimator in ("debiased", "biased"):
                    values = np.concatenate([[np.nan], r, [r[-1]]])
                    wide = 2 / np.sqrt(max(units, 4))
                    rows = pd.DataFrame({"layer": self.names, "experimental": name, "correlate": correlate})
                    rows = rows.assign(estimator=estimator, r=values, low=values - wide, high=values + wide)
                    rows["p"] = np.clip(1 - 2 * np.abs(values), 0.001, 1)
                    parts.append(rows.assign(q=rows["p"] * 1.2, spearman=values))
        table = pd.concat(parts, ignore_index=True)
        table["undefined"] = np.where(table["r"].isna(), "the same value for all tasks", "")
        table = table.assign(n_tasks=len(counted), n_units=units, unit="clusters", competent_only=True)
        readability = self.places.assign(flesch_kincaid=self.noise(self.places, 3) + 8, training_rows=30_000, texts=512)
        return {"correlates": table, "readability": readability.assign(coleman_liau=self.noise(self.places, 2) + 9)}

    def map(self) -> dict[str, pd.DataFrame]:
        """Plants clouds of prompts around their clusters, tighter in E."""
        layers = [self.blocks[int(share * (len(self.blocks) - 1))] for share in (0, 0.3, 0.45, 0.6, 1)]
        levels = {"model": ("pretrained", "tuned"), "layer": tuple(dict.fromkeys(layers)), "method": ("pca", "tsne")}
        rows = self.grid(self.places, prompt=range(12), **levels)
        clusters = list(dict.fromkeys(self.places["cluster"]))
        angle = 2 * np.pi * rows["cluster"].map({name: index / len(clusters) for index, name in enumerate(clusters)})
        spread = np.where(rows["model"] == "tuned", 3.0, 6.0)
        rows["x"] = 20 * np.cos(angle) + spread * self.noise(rows, 1)
        rows["y"] = 20 * np.sin(angle) + spread * self.noise(rows, 1)
        rows[["share_x", "share_y"]] = 0.4, 0.1
        labels = pd.MultiIndex.from_product(
            [("pretrained", "tuned"), self.names, ("cluster", "template"), ("neighbours", "probe"), ("item", "task")],
            names=["model", "layer", "label", "method", "left_out"],
        ).to_frame(index=False)
        labels = labels[(labels["label"] == "cluster") | (labels["left_out"] == "item")].reset_index(drop=True)
        labels["value"] = np.clip(0.5 + 0.2 * (labels["model"] == "tuned") + self.noise(labels, 0.05), 0, 1)
        labels = labels.assign(low=labels["value"] - 0.1, high=labels["value"] + 0.1, chance=1 / len(clusters), p=0.01)
        return {"map": rows, "separation": labels.assign(units=len(clusters))}

    def factors(self) -> dict[str, pd.DataFrame]:
        """Plants what similarity is made of: E's gain lies in the answer."""
        shares = {"pretrained": (0.3, 0.1, 0.1), "tuned": (0.1, 0.5, 0.1)}
        split = {model: dict(zip(FACTORS, (*three, 1 - sum(three)), strict=True)) for model, three in shares.items()}
        rows = self.grid(self.places, experimental=tuple(split), layer=self.names, factor=FACTORS)
        whole = self.own(rows, estimator="debiased")
        share = np.array([split[model][name] for model, name in zip(rows["experimental"], rows["factor"], strict=True)])
        base = np.array([split["pretrained"][name] for name in rows["factor"]]) * self.own(
            rows, "pretrained", "debiased"
        )
        rows["cka"] = share * whole + self.noise(rows, 0.01)
        rows = rows.assign(
            low=rows["cka"] - 0.03, high=rows["cka"] + 0.03, p=0.01, share=share, chance=0.01, whole=whole
        )
        is_tuned = rows["experimental"] == "tuned"
        rows["change"] = np.where(is_tuned, rows["cka"] - base, np.nan)
        rows = rows.assign(change_low=rows["change"] - 0.05, change_high=rows["change"] + 0.05, levels=10, degrees=9)
        rows = rows.assign(change_p=np.where(is_tuned, 0.02, np.nan), n=512, units=64, answer="class")
        rows["note"] = np.where(rows["cka"].isna(), _NO_CELL, "")
        within = self.grid(self.places, experimental=tuple(split), layer=self.names, within=WITHIN)
        kept = within["within"].map({"none": 1.0, "template": 0.95, "answer": 0.3, "both": 0.25}).fillna(0.5)
        change = self.own(within, "tuned", "debiased") - self.own(within, "pretrained", "debiased")
        within["cka"] = self.own(within, estimator="debiased") * (0.6 + 0.4 * kept)
        within["change"] = np.where(within["experimental"] == "tuned", kept * change, np.nan)
        within = within.assign(low=within["cka"] - 0.03, high=within["cka"] + 0.03, change_p=0.02, n=512, units=64)
        within = within.assign(change_low=within["change"] - 0.05, change_high=within["change"] + 0.05, answer="class")
        return {"factors": rows, "within": within.assign(undefined=np.where(within["cka"].isna(), _NO_CELL, ""))}

    def measures(self) -> dict[str, pd.DataFrame]:
        """Plants other measures that see what CKA sees, each on its own scale."""
        kinds = [("raw", "last"), ("standardised", "last"), ("top_removed", "last"), ("raw", "mean")]
        frames = []
        for variant, pool in kinds:
            for experimental, suffix in (("pretrained", ""), ("tuned", ""), ("tuned", ".twin"), ("control", ".seed1")):
                if suffix and pool == "mean":
                    continue
                rows = self.grid(self.some, layer=self.blocks, measure=MEASURES)
                rows = rows.assign(experimental=experimental, control=rows["task"] + suffix, variant=variant, pool=pool)
                model = "pretrained" if experimental == "pretrained" else "tuned"
                value = np.full(len(rows), 0.97) if suffix == ".seed1" else self.own(rows, model, "biased")
                value = value - 0.1 * (suffix == ".twin")
                scale = rows["measure"].map({name: 1 - 0.07 * index for index, name in enumerate(MEASURES)})
                frames.append(rows.assign(value=value * scale + self.noise(rows, 0.01), n=256, undefined=""))
        return {"measures": pd.concat(frames, ignore_index=True)}

    def layers(self) -> dict[str, pd.DataFrame]:
        """Plants every layer against every other, more alike the nearer they are."""
        at = {name: index / len(self.names) for index, name in enumerate(self.names)}
        models = ("pretrained", "tuned", "control")
        frames = []
        for first, a in enumerate(models):
            for b in models[first:]:
                rows = self.grid(self.some, layer_a=self.names, layer_b=self.names).assign(model_a=a, model_b=b)
                gap = (rows["layer_a"].map(at) - rows["layer_b"].map(at)).abs()
                deep = np.minimum(rows["layer_a"].map(at), rows["layer_b"].map(at))
                rows["cka"] = (1 - 0.1 * (a != b) * deep) * np.exp(-2 * gap) + (
                    0.0 if a == b else self.noise(rows, 0.01)
                )
                is_missing = (rows["layer_a"] == "embed") | (rows["layer_b"] == "embed")
                rows.loc[is_missing, "cka"] = np.nan
                frames.append(rows.assign(undefined=np.where(is_missing, _NO_CELL, ""), estimator="debiased", n=256))
        turning = self.grid(self.some, layer=self.blocks, estimator=("debiased", "biased"))
        bump = np.exp(-(((turning["layer"].astype(int) / len(self.blocks)) - 0.4) ** 2) / 0.02)
        turning["novelty"] = 0.03 + 0.1 * bump + np.abs(self.noise(turning, 0.01))
        turning["turning"] = 0.02 + 0.08 * bump + np.abs(self.noise(turning, 0.01))
        tuned, base = self.own(turning, "tuned"), self.own(turning, "pretrained")
        turning = turning.assign(departure=1 - base, change=tuned - base)
        by = turning.groupby(["task", "estimator"], sort=False)
        steps = {f"{name}_step": by[name].diff().fillna(turning[name]) for name in ("departure", "change")}
        return {"layers": pd.concat(frames, ignore_index=True), "turning": turning.assign(**steps)}

    def weights(self) -> dict[str, pd.DataFrame]:
        """Plants updates of which E shares a little with the specialists."""
        rows = self.grid(self.places, layer=self.blocks, target=TARGETS)
        depth = rows["layer"].astype(int) / len(self.blocks)
        for name, size in (("tuned", 4.0), ("control", 2.0)):
            rows[f"norm_{name}"] = size * (1 - 0.3 * depth) * np.exp(self.noise(rows, 0.1))
            rows[f"relative_{name}"] = rows[f"norm_{name}"] / 9
        rows = rows.assign(chance_in=0.1, chance_out=0.1)
        for suffix, cosine in (("", 0.12), ("_other", 0.04), ("_seed", 0.4)):
            rows[f"cosine{suffix}"] = cosine * (0.5 + depth) + self.noise(rows, 0.02)
            for side in ("in", "out"):
                rows[f"overlap_{side}{suffix}"] = 0.1 + cosine * (0.5 + depth) + self.noise(rows, 0.02)
        return {"weights": rows}

    def merged(self) -> dict[str, pd.DataFrame]:
        """Plants a mean of the specialists halfway between base and E."""
        rows = self.grid(self.places, layer=self.names, estimator=("debiased", "biased"))
        tuned, base = self.own(rows, "tuned"), self.own(rows, "pretrained")
        cka = (tuned + base) / 2 + self.noise(rows, 0.02)
        rows = rows.assign(cka=cka, low=cka - 0.03, high=cka + 0.03, cka_tuned=cka - 0.05, tuned=tuned, pretrained=base)
        rows["difference"] = tuned - cka
        rows = rows.assign(difference_low=rows["difference"] - 0.04, difference_high=rows["difference"] + 0.04, n=512)
        sizes = {"update_cosine_tuned": 0.3, "update_cosine_control": 0.2, "update_size_tuned": 0.5}
        rows = rows.assign(**sizes, undefined=np.where(rows["cka"].isna(), _NO_CELL, ""))
        scores = self.grid(self.places, model=("merged",), metric=("answer_nll", "information"))
        scores["value"] = np.where(scores["metric"] == "information", 0.5, 1.5) + self.noise(scores, 0.1)
        return {
            "merged": rows,
            "merged_scores": scores.assign(low=scores["value"] - 0.2, high=scores["value"] + 0.2, n=512),
        }

    def profile(self) -> dict[str, pd.DataFrame]:
        """Plants a gain that the layers around two fifths of the depth carry."""
        carried = np.exp(-((self.depth - 0.4) ** 2) / 0.03)
        below = np.concatenate([[0], np.cumsum(carried / carried.sum())])
        last, rows = len(self.blocks), []
        for place in self.places.to_dict("records"):
            for variant in profile_variants(last, 8):
                k = variant.layer
                ends = {"upto": below[min(k, last)], "from": 1 - below[max(k - 1, 0)]}
                share = ends.get(variant.kept, below[k] - below[k - 1] if variant.kept == "only" else 1.0)
                share += self.rng.normal(0, 0.02) if 0 < share < 1 else 0
                rows.append(place | {"model": variant.model, "kept": variant.kept, "layer": k, "share_of_gain": share})
        table = pd.DataFrame(rows)
        share = table["share_of_gain"]
        table = table.assign(answer_nll=2 - 1.5 * share, cost=1.5 * (1 - share), information=share)
        table = table.assign(information_cost=1 - share, share_of_information=share, n=64)
        for name in ("cost", "information", "information_cost"):
            table[f"{name}_low"], table[f"{name}_high"] = table[name] - 0.2, table[name] + 0.2
        return {"profile": table.assign(low=table["answer_nll"] - 0.2, high=table["answer_nll"] + 0.2)}

    def trajectory(self) -> dict[str, pd.DataFrame]:
        """Plants states that settle from the bottom up."""
        shares = (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
        rows = self.grid(self.some, model=("tuned", "control"), share_of_steps=shares, layer=self.names)
        depth = rows["layer"].map({name: index / len(self.names) for index, name in enumerate(self.names)})
        cka = 1 - depth * np.exp(-6 * rows["share_of_steps"]) + self.noise(rows, 0.01)
        rows = rows.assign(step=(1000 * rows["share_of_steps"]).astype(int), share_of_rate=rows["share_of_steps"] * 1.6)
        rows = rows.assign(cka=cka.clip(upper=1), low=cka - 0.03, high=(cka + 0.03).clip(upper=1), n=256, undefined="")
        rows["ceiling"] = np.where(rows["model"] == "control", 0.97, np.nan)
        settling = self.grid(self.some, model=("tuned", "control"), layer=self.names)
        at = settling["layer"].map({name: index / len(self.names) for index, name in enumerate(self.names)})
        settling["settled"] = np.array(shares)[np.minimum((at * 5).astype(int), 4)]
        settling["against"] = np.where(settling["model"] == "control", "ceiling", "fixed")
        settling = settling.assign(threshold=0.95, last=0.96)
        convergence = self.places.assign(model="control", steps=1000, layers=len(self.blocks))
        convergence = convergence.assign(moving=3, last_share=0.5, converged=True, reason="")
        tuned = convergence.iloc[:1].assign(task="tuned", cluster="", held_out=False, model="tuned", converged=False)
        convergence = pd.concat([tuned.assign(reason="the loss still falls"), convergence], ignore_index=True)
        loss = {"loss": 0.4, "loss_fall": 0.01, "loss_fall_low": -0.01, "loss_fall_high": 0.03}
        convergence = convergence.assign(**loss, loss_falls=~convergence["converged"].astype(bool))
        return {"trajectory": rows, "settling": settling, "convergence": convergence}
