"""The task cards of the page: everything that a run measured about one task, in one place.

A card opens on a click, by its link, and from the charts. All of it is in the page as HTML, with small charts as SVG
(`sparkline`), unless that would be too much: then the page keeps the head of every card as HTML, and the rest
compressed, for the page's script to unpack.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import groupby, zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mossa_jax.config import PRETRAINED, TUNED
from mossa_jax.files.names import slug
from mossa_jax.findings.ceiling import CONTROL
from mossa_jax.findings.competence import scores_of
from mossa_jax.findings.curves import EXPERIMENTALS, HEADLINE, block_layers
from mossa_jax.findings.profile import MEASURES
from mossa_jax.findings.warning_kinds import KINDS
from mossa_jax.foreign import visible
from mossa_jax.report import palette
from mossa_jax.report.charts.parts import Cells
from mossa_jax.report.inputs import ReportInputs
from mossa_jax.report.numbers import NONE, between, fixed, percent
from mossa_jax.report.page.html_parts import templates
from mossa_jax.report.page.interactive import packed
from mossa_jax.report.page.sparkline import Sparkline, Trace, is_defined

if TYPE_CHECKING:
    from markupsafe import Markup

MOST_INLINE = 400_000
"""Characters of all cards beside their heads that stand in the page as HTML; more are compressed."""

_CUT = "\f"  # no text that is shown holds it: `visible` gives it a sign
_SHOWN = 400  # characters of a text that are seen at once
_POINTS = 30  # of a training curve
_FACTORS = ("template", "answer", "item", "rest")
_KEPT = {"upto": "layers 1 to k", "from": "layers k to the last"}

Row = dict[str, Any]


def anchor(task: str) -> str:
    """Returns the anchor of a task's card."""
    return f"task-{slug(task)}"


def task_cards(inputs: ReportInputs) -> dict[str, Any]:
    """Returns the cards, ready for `task_cards.html.j2`.

    Returns:
      `groups`: (cluster, heads of its cards) in order; `bodies`: anchor -> HTML of the rest, empty if it is `packed`;
      `packed`: the same for `task_cards.js` to unpack, or ""; `half`: the layers of the upper half, in words;
      `n`: number of cards; `has_answers`: whether there are example prompts.
    """
    builder = _Builder(inputs)
    heads = sorted((builder.head(row) for row in range(len(builder.cells.tasks))), key=_place)
    template = templates().get_template("task_card.html.j2")
    bodies = {head["id"]: template.render(builder.body(head["row"])).split(_CUT) for head in heads}
    is_packed = sum(len(piece) for pieces in bodies.values() for piece in pieces) > MOST_INLINE
    return {
        "groups": [(cluster, list(group)) for cluster, group in groupby(heads, key=lambda head: head["cluster"])],
        "bodies": {} if is_packed else {name: "".join(pieces) for name, pieces in bodies.items()},
        "packed": _packed_bodies(bodies) if is_packed else "",
        "half": inputs.analysis["half"]["name"],
        "n": len(heads),
        "has_answers": inputs.answers is not None,
    }


def _place(head: Row) -> tuple[str, str]:
    return head["cluster"], head["task"]


def _packed_bodies(bodies: Mapping[str, Sequence[str]]) -> str:
    """Packs the pieces of all bodies.

    The first pieces of all cards come first, then the second ones, and so on: what is alike lies near enough together
    for gzip to find it.

    Returns:
      The JSON is an object of `ids`, the anchors, and `pieces`, one list per place in a body with a piece per card.
    """
    pieces = list(zip_longest(*bodies.values(), fillvalue=""))
    return packed(json.dumps({"ids": list(bodies), "pieces": pieces}, ensure_ascii=False))


class _Builder:
    """Builds the cards of one run.

    Attributes:
      inputs: of the report.
      cells: of the table of similarities.
      blocks: names of block outputs.
    """

    def __init__(self, inputs: ReportInputs):
        """Reads the tables of `inputs`."""
        self.inputs, self.cells = inputs, Cells(inputs)
        self.blocks = block_layers(inputs.table)
        upper = set(inputs.analysis["half"]["layers"])
        places = {layer: place for place, layer in enumerate(self.cells.layers)}
        self._halves = {
            "lower half": [places[layer] for layer in self.blocks if layer not in upper],
            "upper half": [places[layer] for layer in self.blocks if layer in upper],
        }
        self._names = [layer for layer in self._halves if self._halves[layer]]

    # ---------------------------------------------------------------- the head

    def head(self, row: int) -> Row:
        """Returns what is seen of a card at once, and without scripts."""
        cells = self.cells
        task, halves = cells.tasks[row], self._halves_of(row)
        matches = {model: self._score(task, "exact_match", model)["value"] for model in ("base", TUNED, "control")}
        return {
            "row": row,
            "id": anchor(task),
            "task": task,
            "cluster": str(cells.cluster_of[task]),
            "held_out": task in cells.held_out,
            "left_out": cells.left_out.get(task, ""),
            "change": halves[-1]["change"],
            "halves": halves,
            "matches": {model: fixed(value, 2) for model, value in matches.items()}
            if any(map(is_defined, matches.values()))
            else None,
        }

    def _halves_of(self, row: int) -> list[Row]:
        """Returns mean similarities and changes of a task in both halves of the network, in words."""
        cells, rows = self.cells, []
        difference = self._difference[row]
        for name in self._names:
            at = self._halves[name]
            change = difference[at]
            low, high = self._ends(row, at, np.isfinite(change))
            shares = self._tested["share_of_ceiling"]
            first, last = cells.layers[at[0]], cells.layers[at[-1]]
            rows.append(
                {
                    "name": f"{name} (layer {first})" if first == last else f"{name} (layers {first} to {last})",
                    **{model: fixed(_mean(cells.matrix(model)[row, at])) for model in EXPERIMENTALS},
                    "change": fixed(_mean(change), signed=True),
                    "interval": between(low, high, signed=True),
                    "share": NONE if shares is None else percent(_mean(shares[row, at]), signed=True),
                }
            )
        return rows

    @cached_property
    def _difference(self) -> np.ndarray:
        return self.cells.difference()

    @cached_property
    def _tested(self) -> dict[str, np.ndarray | None]:
        """Columns of the table of changes over tasks and layers; None for those that it does not have."""
        columns = () if self.inputs.change is None else self.inputs.change.columns
        names = ("low", "high", "share_of_ceiling")
        return {name: self.cells.tested(name) if name in columns else None for name in names}

    def _ends(self, row: int, at: Sequence[int], defined: np.ndarray) -> tuple[float, float]:
        """Returns an interval of the mean change over layers: the means of their ends.

        The layers' errors come from the same prompts and seeds. This interval is exact if they are one error, and wider
        than it needs to be if they are not.
        """
        ends = []
        for name in ("low", "high"):
            matrix = self._tested[name]
            values = np.full(len(at), np.nan) if matrix is None else matrix[row, at]
            ends.append(float(values[defined].mean()) if defined.any() else np.nan)
        return ends[0], ends[1]

    # ---------------------------------------------------------------- the rest

    def body(self, row: int) -> Row:
        """Returns the rest of a card."""
        task = self.cells.tasks[row]
        return {
            "curve": self.curve(row),
            "profile": self.profile(task),
            "factors": self._factors_of(task),
            "half": self.inputs.analysis["half"]["name"],
            "scores": self._scores_of(task),
            "training": self.training(task),
            "counts": self._counts.get(task, {}),
            "warnings": self._warnings_of(task),
            "examples": self._examples_of(task),
        }

    def curve(self, row: int) -> Sparkline:
        """Draws CKA of the base and E with the task's specialist, and its ceiling."""
        cells, task = self.cells, self.cells.tasks[row]
        traces = []
        if task in self._ceilings:
            values = self._ceilings[task]
            traces.append(
                Trace("ceiling", "ceiling", [values.get(layer, np.nan) for layer in cells.layers], dashed=True)
            )
        for model in EXPERIMENTALS:
            value, low, high = (cells.matrix(model, column=name)[row] for name in ("cka", "low", "high"))
            band = {"low": low, "high": high} if np.isfinite(low).any() else {}
            traces.append(Trace(palette.MODEL_NAMES[model], model, value, **band))
        lowest = min((np.nanmin(np.array(trace.values, float)) for trace in traces if _is_drawn(trace)), default=0.0)
        return Sparkline(
            f"CKA with the specialist of {visible(task)} ({HEADLINE}) by layer",
            "layer",
            [palette.layer_label(layer) for layer in cells.layers],
            range(len(cells.layers)),
            traces,
            low=min(0.0, float(np.floor(5 * lowest) / 5)),
            high=1.0,
            ticks=(0.0, 0.5, 1.0),
        )

    @cached_property
    def _ceilings(self) -> dict[str, dict[str, float]]:
        """CKA of a task's specialist with further seeds of it, by task and layer; the mean over seeds."""
        table = self.inputs.table
        rows = table[(table["experimental"] == CONTROL) & (table["estimator"] == HEADLINE)]
        rows = rows[[_is_seed(control, task) for control, task in zip(rows["control"], rows["task"], strict=True)]]
        rows = rows.assign(layer=rows["layer"].astype(str)).dropna(subset=["cka"])
        means = rows.groupby(["task", "layer"])["cka"].mean()
        of_task: dict[str, dict[str, float]] = {}
        for (task, layer), value in means.items():
            of_task.setdefault(task, {})[layer] = float(value)
        return of_task

    def profile(self, task: str) -> Sparkline | None:
        """Draws the share of the gain of tuning that is kept with the adapters of some layers."""
        # The first measure in which the task gains anything.
        measure = next((name for name, shares in self._profiles.items() if task in shares.index.levels[0]), None)
        if measure is None:
            return None
        shares = self._profiles[measure].loc[task]
        traces = [
            Trace(f"{name}, {words}", model, shares[model, kept].tolist(), dashed=kept == "from")
            for model, name in ((TUNED, "E"), ("control", "specialist"))
            for kept, words in _KEPT.items()
            if (model, kept) in shares
        ]
        values = np.array([trace.values for trace in traces], float)
        what = "information about the answer" if measure == "information" else "likelihood of the answer"
        return Sparkline(
            f"Share of the gain in {what} with the adapters of some layers of {visible(task)}",
            "k =",
            [str(layer) for layer in shares.index],
            shares.index.tolist(),
            traces,
            low=float(np.clip(np.floor(5 * np.nanmin(values)) / 5, -1.0, 0.0)),
            high=float(np.clip(np.ceil(5 * np.nanmax(values)) / 5, 1.0, 2.0)),
            ticks=(0.0, 0.5, 1.0),
            write=percent,
            tick=percent,
        )

    @cached_property
    def _profiles(self) -> dict[str, pd.DataFrame]:
        """Shares of the gain by measure: a row per task and layer, a column per model and what is kept."""
        table = self.inputs.analyses.get("profile")
        if table is None:
            return {}
        rows = table[table["kept"].isin(list(_KEPT)) & table["model"].isin([TUNED, "control"])]
        shares = {}
        for measure, column in MEASURES.items():
            if column in rows and rows[column].notna().any():
                own = rows.dropna(subset=[column])
                wide = own.pivot_table(index=["task", "layer"], columns=["model", "kept"], values=column)
                wide.index = wide.index.remove_unused_levels()
                shares[measure] = wide
        return shares

    def _factors_of(self, task: str) -> list[Row]:
        """Returns the parts of CKA that template, answer, item and the rest make, in the upper half."""
        parts = []
        for factor in _FACTORS:
            means = {model: self._factors.get((task, model, factor), np.nan) for model in EXPERIMENTALS}
            if np.isfinite([*means.values()]).any():
                cells = {model: fixed(value) for model, value in means.items()}
                change = means[TUNED] - means[PRETRAINED]
                parts.append({"name": factor, **cells, "change": fixed(change, signed=True)})
        return parts

    @cached_property
    def _factors(self) -> dict[tuple[str, str, str], float]:
        """Mean parts of CKA over the upper half, by task, model and factor."""
        table = self.inputs.analyses.get("factors")
        if table is None:
            return {}
        rows = table[table["layer"].astype(str).isin(self.inputs.analysis["half"]["layers"])]
        rows = rows.assign(cka=pd.to_numeric(rows["cka"], errors="coerce")).dropna(subset=["cka"])
        return rows.groupby(["task", "experimental", "factor"])["cka"].mean().to_dict()

    @cached_property
    def _metrics(self) -> list[str]:
        return [metric for metric in palette.METRIC_NAMES if metric in set(self.inputs.scores["metric"])]

    @cached_property
    def _score_table(self) -> dict[tuple[str, str, str], Row]:
        return {
            (metric, model, task): {"value": value, "low": low, "high": high}
            for metric in self._metrics
            for model in palette.SCORE_NAMES
            for (task, value), low, high in zip(
                scores_of(self.inputs.scores, metric, model).items(),
                *(scores_of(self.inputs.scores, metric, model, end) for end in ("low", "high")),
                strict=True,
            )
        }

    def _score(self, task: str, metric: str, model: str) -> Row:
        return self._score_table.get((metric, model, task), dict.fromkeys(("value", "low", "high")))

    def _scores_of(self, task: str) -> Row | None:
        """Returns the scores of a task's models, in words; None if it was not scored."""
        rows = []
        for model, name in palette.SCORE_NAMES.items():
            cells = []
            for metric in self._metrics:
                score = self._score(task, metric, model)
                signed, digits = metric == "information", 3 if metric != "exact_match" else 2
                cells.append(
                    (fixed(score["value"], digits, signed), between(score["low"], score["high"], digits, signed))
                )
            if any(value != NONE for value, _ in cells):
                rows.append((name, cells))
        metrics = [palette.METRIC_NAMES[metric] for metric in self._metrics]
        return {"metrics": metrics, "rows": rows} if rows else None

    def training(self, task: str) -> Sparkline | None:
        """Draws the training loss of the task's specialist."""
        rows = self._curves.get(task)
        if rows is None:
            return None
        # Evenly spaced records of a long curve, its last one among them.
        every = -(-len(rows) // _POINTS)
        rows = rows.iloc[::-1].iloc[::every].iloc[::-1]
        loss = rows["loss"].to_numpy(float)
        if not np.isfinite(loss).any():
            return None
        high = _ceiling(float(np.nanmax(loss)))
        return Sparkline(
            f"Training loss of the specialist of {visible(task)}",
            "step",
            [f"{step:,}" for step in rows["step"]],
            rows["step"].tolist(),
            [Trace("loss (nats per answer token)", "control", loss)],
            low=0.0,
            high=high,
            ticks=(0.0, high / 2, high),
        )

    @cached_property
    def _curves(self) -> dict[str, pd.DataFrame]:
        curves = self.inputs.curves.sort_values(["model", "step"])
        return {str(model): of_model for model, of_model in curves.groupby("model")}

    @cached_property
    def _counts(self) -> dict[str, dict[str, str]]:
        names = {
            "train_rows": "training rows",
            "truncated_rows": "training rows cut",
            "steps": "steps of the specialist",
            "test_rows": "test rows",
            "truncated_prompts": "test prompts cut",
        }
        return {
            str(row["task"]): {
                label: f"{int(row[name]):,}" for name, label in names.items() if is_defined(_number(row.get(name)))
            }
            for row in self.inputs.tasks.to_dict("records")
        }

    def _warnings_of(self, task: str) -> list[tuple[str, str]]:
        """Returns kind and problem of each warning that a task has."""
        warnings = self.inputs.analysis["warnings"]
        return [(each["kind"], KINDS[each["kind"]].problem) for each in warnings if task in each["tasks"]]

    def _examples_of(self, task: str) -> list[Row]:
        """Returns the example prompts of a task with the answers to each."""
        examples = []
        for number, rows in groupby(self._answers.get(task, []), key=lambda row: row["example"]):
            of_models = list(rows)
            answers = [
                {
                    "name": palette.SCORE_NAMES[row["model"]],
                    "model": row["model"],
                    "text": _text(row["answer"]),
                    "exact": bool(row["exact"]),
                }
                for row in of_models
            ]
            prompt, target = (_text(of_models[0][key]) for key in ("prompt", "target"))
            examples.append({"number": number, "prompt": prompt, "target": target, "answers": answers})
        return examples

    @cached_property
    def _answers(self) -> dict[str, list[Row]]:
        answers = self.inputs.answers
        rows = [] if answers is None else answers.sort_values(["task", "example"], kind="stable").to_dict("records")
        return {task: list(of_task) for task, of_task in groupby(rows, key=lambda row: row["task"])}


def _is_seed(control: str, task: str) -> bool:
    return control.startswith(f"{task}.seed")


def _is_drawn(trace: Trace) -> bool:
    return any(map(is_defined, trace.values))


def _mean(values: np.ndarray) -> float:
    """Returns the mean of the defined values; NaN without any."""
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if defined.size else float("nan")


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _ceiling(value: float) -> float:
    """Returns the next number of one digit."""
    size = 10.0 ** np.floor(np.log10(value)) if value > 0 else 1.0
    return float(np.ceil(value / size) * size)


def _text(text: str) -> Row:
    """Cuts a text into what is seen at once and the rest, which opens on a click; line ends stay."""
    head, rest = text[:_SHOWN], text[_SHOWN:]
    # A few characters are not worth a click.
    if len(rest) < _SHOWN // 4:
        head, rest = text, ""
    return {"head": shown_lines(head), "rest": shown_lines(rest), "left": f"{len(rest):,}"}


def shown_lines(text: str) -> Markup:
    """Escapes a text of several lines, with a sign for every other character that shows nothing (`visible`)."""
    from markupsafe import Markup, escape

    return Markup("\n").join(escape(visible(line)) for line in text.split("\n"))
