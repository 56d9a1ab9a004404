"""A planted run with the paper's published medians: FLAN 2021's names, 32 layers, all tables; and odd shapes.

The biased estimator has the quartiles of the paper's figures 2 and 7 at every layer, read off its plots. Each task
keeps its rank among the tasks, which follows its cluster's place in figure 3. All the rest (intervals, scores,
analyses) is drawn around that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from mossa_jax.findings import find
from mossa_jax.monitoring.goodput import times
from mossa_jax.report import ReportInputs
from mossa_jax.report.inputs import ANSWER_COLUMNS
from mossa_jax.tasks.flan_names import MISC, select
from tests.support.paper_like_analyses import analyses_of
from tests.support.planted_report import NO_SCORES, report_change, report_scores, training_records

AT_LAYERS = (1, 2, 4, 6, 8, 9, 10, 12, 13, 15, 16, 20, 25, 30, 31, 32)
QUANTILES = (0.02, 0.25, 0.5, 0.75, 0.98)
_TOP = 0.999
# Low whisker, lower quartile, median and upper quartile, at `AT_LAYERS` of 32.
PAPER = {
    ("pretrained", False): (
        (0.99, 0.995, 1.0, 1.0), (0.99, 0.995, 1.0, 1.0), (0.94, 0.97, 0.99, 0.99), (0.91, 0.96, 0.98, 0.99),
        (0.75, 0.86, 0.94, 0.97), (0.69, 0.84, 0.92, 0.97), (0.48, 0.75, 0.89, 0.96), (0.42, 0.67, 0.85, 0.94),
        (0.39, 0.60, 0.82, 0.92), (0.35, 0.51, 0.74, 0.87), (0.35, 0.55, 0.74, 0.86), (0.27, 0.42, 0.64, 0.80),
        (0.18, 0.37, 0.60, 0.76), (0.20, 0.40, 0.61, 0.79), (0.18, 0.42, 0.63, 0.77), (0.08, 0.30, 0.53, 0.73),
    ),
    ("tuned", False): (
        (0.97, 0.98, 0.99, 1.0), (0.97, 0.98, 0.99, 1.0), (0.83, 0.91, 0.95, 0.99), (0.68, 0.83, 0.94, 0.98),
        (0.60, 0.84, 0.92, 0.97), (0.75, 0.87, 0.94, 0.97), (0.83, 0.93, 0.96, 0.98), (0.89, 0.95, 0.97, 0.98),
        (0.90, 0.95, 0.97, 0.98), (0.86, 0.95, 0.97, 0.98), (0.90, 0.93, 0.95, 0.98), (0.78, 0.91, 0.95, 0.98),
        (0.81, 0.89, 0.94, 0.97), (0.78, 0.89, 0.93, 0.97), (0.82, 0.89, 0.94, 0.97), (0.82, 0.89, 0.91, 0.94),
    ),
    ("pretrained", True): (
        (0.99, 0.995, 1.0, 1.0), (0.99, 0.995, 1.0, 1.0), (0.97, 0.98, 0.99, 0.995), (0.95, 0.97, 0.98, 0.99),
        (0.92, 0.94, 0.97, 0.98), (0.82, 0.91, 0.96, 0.98), (0.81, 0.88, 0.94, 0.97), (0.75, 0.85, 0.90, 0.95),
        (0.67, 0.71, 0.82, 0.92), (0.10, 0.44, 0.80, 0.91), (0.08, 0.39, 0.80, 0.89), (0.04, 0.16, 0.42, 0.68),
        (0.03, 0.12, 0.31, 0.65), (0.02, 0.12, 0.40, 0.70), (0.02, 0.12, 0.41, 0.74), (0.02, 0.08, 0.30, 0.63),
    ),
    ("tuned", True): (
        (0.98, 0.99, 1.0, 1.0), (0.98, 0.99, 1.0, 1.0), (0.95, 0.95, 0.97, 0.99), (0.90, 0.93, 0.95, 0.98),
        (0.85, 0.87, 0.93, 0.97), (0.70, 0.83, 0.91, 0.97), (0.71, 0.77, 0.87, 0.96), (0.73, 0.75, 0.84, 0.95),
        (0.69, 0.71, 0.84, 0.95), (0.31, 0.51, 0.83, 0.95), (0.29, 0.45, 0.80, 0.95), (0.16, 0.33, 0.63, 0.86),
        (0.09, 0.34, 0.56, 0.84), (0.05, 0.34, 0.57, 0.85), (0.05, 0.35, 0.58, 0.87), (0.04, 0.26, 0.50, 0.79),
    ),
}  # fmt: skip
# Clusters of the paper's figure 3, by how much of their specialists the base holds at layer 20.
_HELD_BY_BASE = {"sentiment": 0.81, "commonsense": 0.78, "closed_book_qa": 0.76, "paraphrase": 0.70, "nli": 0.66}
_HELD_BY_BASE |= {"coreference": 0.62, "reading_comprehension": 0.5, "summarization": 0.45, "translation": 0.39}
_HELD_BY_BASE |= {"struct_to_text": 0.31}

FLAN = {
    cluster: tuple(task.name for task in select("paper") if task.cluster == cluster)
    for cluster in dict.fromkeys(task.cluster for task in select("paper"))
}
"""The 60 names of the mixture and the seven that are held out, by cluster."""


@dataclass(frozen=True)
class Shape:
    """What a planted run is made of.

    Attributes:
      clusters: cluster -> its tasks.
      held_out: clusters that are held out.
      layers: number of blocks.
      incompetent: tasks whose specialists do not use their prompts.
      has_scores: whether models were scored.
      has_analyses: whether the analyses beside the comparison were made.
      is_defined: False leaves every cell undefined.
      seeds: whether every third task has a second seed of its specialist, and E one, too.
      facts: more facts of the run.
    """

    clusters: Mapping[str, Sequence[str]] = field(default_factory=lambda: FLAN)
    held_out: tuple[str, ...] = (MISC,)
    layers: int = 32
    incompetent: tuple[str, ...] = ("wnli", "copa", "wsc")
    has_scores: bool = True
    has_analyses: bool = True
    is_defined: bool = True
    seeds: bool = True
    facts: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def places(self) -> pd.DataFrame:
        """Returns the tasks with their clusters, columns `task, cluster, held_out`."""
        rows = [(task, name, name in self.held_out) for name, tasks in self.clusters.items() for task in tasks]
        return pd.DataFrame(rows, columns=["task", "cluster", "held_out"])


def plain_clusters(tasks: int, clusters: int) -> dict[str, tuple[str, ...]]:
    """Names tasks and divides them evenly into clusters."""
    names = [f"task{task:03}" for task in range(tasks)]
    return {f"cluster{index:02}": tuple(names[index::clusters]) for index in range(clusters)}


_PLAIN = Shape(held_out=(), incompetent=())
SHAPES = {
    "paper": Shape(),
    "200 tasks": replace(_PLAIN, clusters=plain_clusters(200, 20), held_out=("cluster19",)),
    "8 layers": Shape(layers=8),
    "80 layers": Shape(layers=80),
    "1 task": replace(_PLAIN, clusters=plain_clusters(1, 1), layers=8),
    "one cluster": replace(_PLAIN, clusters=plain_clusters(12, 1), layers=12),
    "one task per cluster": replace(_PLAIN, clusters=plain_clusters(9, 9), layers=12),
    "nothing held out": replace(_PLAIN, clusters=plain_clusters(20, 8), layers=12),
    "no scores": replace(_PLAIN, clusters=plain_clusters(20, 8), layers=12, has_scores=False, has_analyses=False),
    "one seed": replace(_PLAIN, clusters=plain_clusters(20, 8), layers=12, seeds=False, has_analyses=False),
    "everything undefined": replace(
        _PLAIN, clusters=plain_clusters(6, 3), held_out=("cluster02",), layers=8, is_defined=False, has_analyses=False
    ),
}
"""Runs that a page must show well, by name."""


def levels(model: str, held_out: bool, ranks: np.ndarray, layers: int) -> np.ndarray:
    """Returns CKA [tasks, layers] with the paper's quartiles, given each task's rank between 0 and 1."""
    table = np.array(PAPER[model, held_out])
    # The paper gives no upper whiskers; they lie as far from the median as ones that end at 1 can.
    top = np.minimum(_TOP, table[:, 3] + 1.5 * (table[:, 3] - table[:, 2]))
    points = np.column_stack([table, top])
    at = np.arange(1, layers + 1) * 32 / layers
    quantiles = np.stack([np.interp(at, AT_LAYERS, column) for column in points.T], axis=1)
    return np.stack([np.interp(ranks, QUANTILES, row) for row in quantiles], axis=1)


def paper_like(shape: Shape | None = None, seed: int = 0, **fields: object) -> ReportInputs:
    """Plants a run of this shape, that of the paper unless given; `fields` replace parts of what the report shows."""
    shape = shape or SHAPES["paper"]
    rng = np.random.default_rng(seed)
    table = results_table(shape, rng)
    scores = report_scores(table, shape.incompetent) if shape.has_scores else NO_SCORES
    change = report_change(table) if shape.is_defined else None
    analyses = analyses_of(table, rng) if shape.has_analyses else {}
    curves, tasks = training_records(table)
    steps = np.arange(25, 1001, 25)
    models = ["tuned", *tasks["task"]]
    curves = pd.DataFrame({"model": np.repeat(models, len(steps)), "step": np.tile(steps, len(models))})
    levels_at_end = rng.uniform(0.05, 0.8, len(models)).repeat(len(steps))
    curves["loss"] = levels_at_end + 3 * np.exp(-curves["step"] / 120) + rng.normal(0, 0.02, len(curves))
    analysis = find(table, scores, draws=200, change=change, analyses=analyses, warnings=fields.pop("warnings", ()))
    tasks = tasks.assign(train_rows=30_000, test_rows=512, steps=1000)
    planted: dict[str, object] = {"curves": curves, "tasks": tasks}
    planted |= {"parity": planted_parity(shape.layers), "times": planted_times(), "analyses": analyses}
    planted |= {
        "facts": _facts(shape) | dict(shape.facts),
        "command": "mossa run --config=flan2021 --workdir=runs/flan",
    }
    planted |= {"versions": {"mossa_jax": "0.1.0", "jax": "0.10.2", "python": "3.11.7"}}
    return ReportInputs(table=table, analysis=analysis, scores=scores, change=change, **(planted | fields))


def _facts(shape: Shape) -> dict[str, str | int]:
    places = shape.places
    return {
        "name": "planted with the paper's medians",
        "base": "meta-llama/Llama-2-7b-hf",
        "suite": "flan2021",
        "tasks": len(places),
        "prompts_min": 512,
        "prompts_max": 512,
        "layers": shape.layers,
        "dtype": "bfloat16",
        "pooling": "last",
        "template": "none (9e5a10242ae7909d): {content}",
        "seed": 0,
        "devices": "8 x TPU v5p, 1 process",
        "date": "2026-01-31",
    }


def results_table(shape: Shape, rng: np.random.Generator) -> pd.DataFrame:
    """Builds the results table: own specialists, twins, foreign ones, second seeds, and E with the specialists."""
    places, layers = shape.places, shape.layers
    keys = places["cluster"].map(_HELD_BY_BASE).fillna(0.6) + rng.normal(0, 0.08, len(places))
    ranks = pd.Series(keys).groupby(places["held_out"]).rank(method="first").to_numpy()
    counts = places.groupby("held_out")["task"].transform("size").to_numpy()
    ranks = (ranks - 0.5) / counts
    # E's ranks follow the base's loosely.
    mixed = pd.Series(0.5 * ranks + 0.5 * rng.random(len(places)))
    tuned_ranks = (mixed.groupby(places["held_out"]).rank(method="first").to_numpy() - 0.5) / counts
    values = {}
    for model, own in (("pretrained", ranks), ("tuned", tuned_ranks)):
        parts = [levels(model, held_out, own, layers) for held_out in (False, True)]
        values[model] = np.where(places["held_out"].to_numpy(bool)[:, None], parts[1], parts[0])
    depth = np.linspace(0, 1, layers)
    pieces = []

    def add(experimental: str, controls: Sequence[str], cka: np.ndarray, rows: np.ndarray) -> None:
        own = places.iloc[rows]
        for estimator in ("debiased", "biased"):
            frame = own.loc[own.index.repeat(layers)].reset_index(drop=True)
            frame.insert(0, "control", np.repeat(np.asarray(controls, object), layers))
            frame.insert(0, "experimental", experimental)
            frame["layer"] = np.tile([str(layer) for layer in range(1, layers + 1)], len(own))
            frame["estimator"] = estimator
            shown = cka if estimator == "biased" else cka - 0.03 * (1 - cka)
            pieces.append(frame.assign(cka=shown.ravel()))

    tasks, every = places["task"].to_numpy(object), np.arange(len(places))
    noise = lambda rows, scale: rng.normal(0, scale, (len(rows), 1)) * np.ones(layers)  # noqa: E731
    for model in ("pretrained", "tuned"):
        add(model, tasks, values[model], every)
        other = tasks[(every + max(1, len(every) // 2)) % len(every)]
        if len(every) > 1:
            add(model, other, values[model] - 0.25 * depth + noise(every, 0.02), every)
    add("tuned", tasks + ".twin", values["tuned"] - 0.15 * depth + noise(every, 0.02), every)
    if shape.seeds:
        seeded = every[::3]
        ceiling = 0.995 - 0.03 * depth + np.zeros((len(seeded), 1)) + noise(seeded, 0.003)
        add("control", tasks[seeded] + ".seed1", ceiling, seeded)
        for model in ("pretrained", "tuned"):
            add(model, tasks[seeded] + ".seed1", values[model][seeded] + noise(seeded, 0.01), seeded)
        add("tuned.seed1", tasks, values["tuned"] + noise(every, 0.01), every)
    table = pd.concat(pieces, ignore_index=True)
    last = table[table["layer"] == str(layers)].assign(layer="final_norm")
    first = table[table["layer"] == "1"].assign(layer="embed", cka=np.nan)
    table = pd.concat([first, table, last], ignore_index=True)
    if not shape.is_defined:
        table["cka"] = np.nan
    table["undefined"] = np.where(table["cka"].isna(), "no variance in a and b", "")
    table["cka"] = table["cka"].clip(-0.05, 1.0)
    width = 0.02 + 0.05 * (1 - table["cka"])
    return table.assign(
        low=table["cka"] - width, high=(table["cka"] + width).clip(upper=1.0), n=512, p=0.001, q=0.002, null_mean=0.001
    )


def planted_answers(places: pd.DataFrame, texts: Sequence[str] = ()) -> pd.DataFrame:
    """Returns three example prompts of each task with the answers of base, E and specialist.

    Args:
      places: columns `task, cluster, held_out`.
      texts: to put into prompts and answers, in turn.
    """
    rows, at = [], 0
    for place in places.to_dict("records"):
        for example in (1, 2, 3):
            for model, answer in (("base", "Perhaps."), ("tuned", "yes"), ("control", "yes" if example < 3 else "no")):
                extra = f" {texts[at % len(texts)]}" if texts else ""
                prompt = f"Example {example} of a prompt.\nIs it one?{extra}"
                text = {"prompt": prompt, "target": "yes", "answer": answer + extra, "exact": answer == "yes"}
                rows.append(place | {"example": example, "model": model} | text)
                at += 1
    return pd.DataFrame(rows)[ANSWER_COLUMNS]


def planted_parity(layers: int) -> pd.DataFrame:
    """Returns differences from transformers that grow with depth."""
    names = ["embed", *map(str, range(1, layers + 1)), "final_norm", "logits"]
    return pd.DataFrame({"layer": names, "max_abs_difference": np.geomspace(1e-8, 3e-6, len(names)), "largest": 12.5})


def planted_times() -> pd.DataFrame:
    """Returns the times of a run of seven stages on eight devices, in one attempt that was resumed once."""
    shared = {"devices": 8, "label": ""}
    stages = {"data": (310, 300), "tuned": (15_500, 14_900), "controls": (20_800, 20_100), "score": (2_900, 2_500)}
    stages |= {"compare": (2_400, 2_100), "analyse": (1_900, 1_500)}
    records, at = [], 0.0
    for step, (stage, (wall, useful)) in enumerate(stages.items()):
        lost = {"compile": 0.6 * (wall - useful), "load": 0.4 * (wall - useful)}
        attempt = 0.0 if stage != "analyse" else at
        at += wall
        record = {"stage": stage, "step": step, "attempt": attempt, "time": at, "wall": wall, "useful": useful}
        records.append(shared | record | {"lost": lost})
    return times(records)


def write_pages(folder: Path, names: Sequence[str] = tuple(SHAPES)) -> dict[str, Path]:
    """Writes the page of each shape into a folder of its own; returns the pages by name."""
    from mossa_jax.report import write_figures, write_page

    pages = {}
    for name in names:
        target = folder / name.replace(" ", "-")
        target.mkdir(parents=True, exist_ok=True)
        inputs = paper_like(SHAPES[name])
        write_figures(inputs, target / "figures")
        write_page(target / "report.html", inputs, target / "figures")
        pages[name] = target / "report.html"
    return pages


if __name__ == "__main__":
    import sys

    for written in write_pages(Path(sys.argv[1]), sys.argv[2:] or tuple(SHAPES)).values():
        print(written)
