"""A run folder opened from Python: `mossa.Run`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from etils import epath

from mossa_jax.config import Config
from mossa_jax.config.data import config_from_data
from mossa_jax.errors import BAD_CONFIG, BAD_INPUT, Refusal
from mossa_jax.files.checked import RUN_AGAIN, read_json, read_table
from mossa_jax.files.paths import as_path
from mossa_jax.files.sums import recorded
from mossa_jax.foreign import user_path

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from jaxtyping import Float
    from matplotlib.figure import Figure

    from mossa_jax.existing.run_figures import RunFigures
    from mossa_jax.existing.run_models import RunModels
    from mossa_jax.report import ReportInputs
    from mossa_jax.states import TokenStates
    from mossa_jax.tasks import Example

TABLES = {
    "cka": "", "change": "", "scores": "", "answers": "", "curves": "", "parity": "", "spectrum": "spectrum",
    "map": "map", "separation": "map", "correlates": "correlates", "readability": "correlates", "factors": "factors",
    "within": "factors", "measures": "measures", "layers": "layers", "turning": "layers", "weights": "weights",
    "merged": "merged", "merged_scores": "merged", "profile": "profile", "trajectory": "trajectory",
    "settling": "trajectory", "convergence": "trajectory",
}  # fmt: skip
"""Tables of a run -> the field of `analyse` that makes it; empty for those that every run has."""

_RESTORE = "restore it from a copy, or run again in a new folder"

LAYER_COLUMNS = ("layer", "layer_a", "layer_b")


class Run:
    """A finished run, or one under way, as its folder shows it.

    Opening reads nothing but the configuration. Tables are attributes too: `run.cka` is `run.table("cka")`. Nothing in
    the folder is ever changed.

    Attributes:
      folder: the run folder.
      variant_name: which results these are: empty for those of config.json, else the name of a folder in `variants/`.

    Example:
      >>> import mossa_jax as mossa
      >>> run = mossa.Run("runs/demo")
      >>> run
      Run('runs/demo'): demo, 24 tasks, 8 layers, 21 tables
      >>> own = run.cka.query("control == task and estimator == 'debiased'")
      >>> own.groupby(["experimental", "layer"], observed=True).cka.median()
      >>> states = run.states("tuned", task="sentiment_surprise")
      >>> figure = run.figures.draw("layers", palette={"tuned": "#7a0177"})
    """

    def __init__(self, folder: str | os.PathLike[str], variant: str = ""):
        """Opens a run folder, or one of its variants by `folder/variants/NAME` or by name.

        Args:
          folder: the run folder, of any scheme that fsspec knows.
          variant: name of a variant; empty for the main results.

        Raises:
          Refusal: 3 if this is no run folder, or if it has no such variant.
        """
        path = as_path(user_path(folder, "folder"))
        if not variant and path.parent.name == "variants" and (path.parent.parent / "config.json").exists():
            path, variant = path.parent.parent, path.name
        if not (path / "config.json").exists():
            reason = "it has no config.json" if path.exists() else "it does not exist"
            raise Refusal(BAD_INPUT, f"{path} is no run folder: {reason}; give the --workdir of a run")
        self.folder, self.variant_name = path, variant
        if variant and not (self._place / "config.json").exists():
            there = ", ".join(self.variants) or "none"
            raise Refusal(BAD_INPUT, f"{path} has no variant {variant!r}; there is {there}")

    def __repr__(self) -> str:
        name = f"{str(self.folder)!r}" + (f", variant={self.variant_name!r}" if self.variant_name else "")
        if not self.is_finished:
            return f"Run({name}): {self.config.name}, not finished"
        tasks = len(self.data["tasks"])
        return f"Run({name}): {self.config.name}, {tasks} tasks, {len(self._blocks)} layers, {len(self.tables)} tables"

    # ---------------------------------------------------------------- what it is

    @property
    def _place(self) -> epath.Path:
        """The folder of this variant's results, figures and page."""
        return self.folder / "variants" / self.variant_name if self.variant_name else self.folder

    @cached_property
    def config(self) -> Config:
        """The configuration, of this variant if it is one."""
        return config_from_data(self.record, f"{self._place / 'config.json'}")

    @cached_property
    def record(self) -> dict[str, Any]:
        """The file config.json: every field, and `results_format`."""
        return read_json(self._place / "config.json", _RESTORE)

    @cached_property
    def data(self) -> dict[str, Any]:
        """The file data.json: which rows of which tasks.

        Raises:
          Refusal: 3 if the data have not been read yet.
        """
        return self._json(self.folder / "data.json", _RESTORE)

    @cached_property
    def environment(self) -> dict[str, Any]:
        """The file environment.json: versions, devices and the command of the last start; empty without it."""
        path = self.folder / "environment.json"
        is_there = path.exists() or recorded(path)
        return read_json(path, "launch.report writes it again") if is_there else {}

    @property
    def variants(self) -> list[str]:
        """Names of further variants of the results, sorted."""
        folder = self.folder / "variants"
        return sorted(path.parent.name for path in folder.glob("*/config.json")) if folder.exists() else []

    def variant(self, name: str) -> Run:
        """Returns a variant of these results; the empty name is the main one.

        Raises:
          Refusal: 3 if there is no such variant.
        """
        return Run(self.folder, name)

    @property
    def is_finished(self) -> bool:
        """Whether the report, the last stage, has been written."""
        return self.page.exists()

    @property
    def page(self) -> epath.Path:
        """The path of the report."""
        return self._place / "report.html"

    # ---------------------------------------------------------------- tables

    @property
    def tables(self) -> list[str]:
        """Names of the tables that are there, sorted."""
        folder = self._place / "results"
        return sorted(path.stem for path in folder.glob("*.parquet")) if folder.exists() else []

    def table(self, name: str) -> pd.DataFrame:
        """Returns a table of `results/`, with its layers in the order of the network.

        Args:
          name: such as "cka"; docs/reference/tables.md describes them all.

        Returns:
          The table. Columns `layer`, `layer_a` and `layer_b` are ordered categories: `embed`, `1` to `L`, `final_norm`.
          Behind `layer` stand `depth` (int: 0 for `embed`, l for block l, L + 1 for `final_norm`) and `relative_depth`
          (float: l / L; 0 for `embed`, 1 for `final_norm`); behind the other two `depth_a` and `depth_b`.

        Raises:
          Refusal: 2 for a name that is no table; 3 for a table that is not there, or not as it was written, with the
            way to make it.
        """
        return self._with_depths(self.raw_table(name))

    def raw_table(self, name: str) -> pd.DataFrame:
        """Returns a table as it lies in the folder: layers are text, and have no depth.

        Raises:
          Refusal: as `table`.
        """
        path = self._place / f"results/{name}.parquet"
        if "/" in name or not path.exists():
            raise self._no_table(name)
        return read_table(path)

    def _no_table(self, name: str) -> Refusal:
        """Says why there is no such table, and how to get it."""
        if name not in TABLES:
            close = difflib.get_close_matches(name, {*TABLES, *self.tables}, 3) or self.tables
            return Refusal(BAD_CONFIG, f"{name!r} is no table of a run; there is {', '.join(close)}")
        again = f"mossa run --workdir={self.folder}"
        if not self.is_finished:
            return Refusal(BAD_INPUT, f"{self._place} has no results/{name} yet; {again} continues the run")
        field = TABLES[name]
        if field and not getattr(self.config.analyse, field):
            return Refusal(
                BAD_INPUT,
                f"{self._place} has no results/{name}, since analyse.{field} is off; {again} "
                f"--config.analyse.{field}=true makes it",
            )
        return Refusal(
            BAD_INPUT, f"{self._place} has no results/{name}; {again} makes it where the run has data for it"
        )

    @cached_property
    def _blocks(self) -> list[str]:
        """Names of the block outputs, in network order."""
        return sorted({name for name in self.raw_table("cka")["layer"] if name.isdigit()}, key=int)

    def _with_depths(self, table: pd.DataFrame) -> pd.DataFrame:
        """Orders the columns of layers, and puts depths behind them."""
        import pandas as pd

        columns = [name for name in LAYER_COLUMNS if name in table]
        if not columns:
            return table
        order = ["embed", *self._blocks, "final_norm"]
        depth = {name: number for number, name in enumerate(order)}
        for name in columns:
            layers = table[name].astype(str)
            # Some tables have rows of no layer, or of the logits.
            further = sorted(set(layers) - depth.keys())
            table[name] = pd.Categorical(layers, [*order, *further], ordered=True)
            depths = layers.map(depth).astype("Int64" if further else "int64")
            place = table.columns.get_loc(name) + 1
            table.insert(place, name.replace("layer", "depth"), depths)
            if name == "layer":
                relative = (depths.clip(upper=len(self._blocks)) / len(self._blocks)).astype(float)
                table.insert(place + 1, "relative_depth", relative)
        return table

    @cached_property
    def analysis(self) -> dict[str, Any]:
        """The file results/findings.json: everything that `mossa_jax.findings.find` returns.

        Raises:
          Refusal: 3 if the run is not finished.
        """
        return self._json(self._place / "results/findings.json")

    @property
    def findings(self) -> pd.DataFrame:
        """The findings, one row per claim.

        The columns are `id, title, family, claim, verdict, sentence` and the numbers `mean, low, high, p, p_adjusted`,
        NaN where a claim has none.

        Raises:
          Refusal: 3 if the run is not finished.
        """
        import pandas as pd

        words = ("id", "title", "family", "claim", "verdict", "sentence")
        numbers = ("mean", "low", "high", "p", "p_adjusted")
        rows = [
            {name: row[name] for name in words} | {name: row["figures"].get(name) for name in numbers}
            for row in self.analysis["findings"]
        ]
        return pd.DataFrame(rows).astype(dict.fromkeys(numbers, float))

    @property
    def warnings(self) -> list[str]:
        """What a reader should know before trusting the results, one sentence each; empty if none were recorded."""
        rows = self.analysis.get("warnings") or []
        return [row["sentence"] if isinstance(row, Mapping) else str(row) for row in rows]

    def _json(self, path: epath.Path, way_out: str = RUN_AGAIN) -> dict[str, Any]:
        if not path.exists():
            again = f"mossa run --workdir={self.folder}"
            raise Refusal(BAD_INPUT, f"{self._place} has no {path.name} yet; {again} continues the run")
        return read_json(path, way_out)

    def __getattr__(self, name: str) -> pd.DataFrame:
        """Returns a table as an attribute."""
        if name.startswith("_") or "folder" not in self.__dict__:  # as while it is copied
            raise AttributeError(name)
        if name not in TABLES and name not in self.tables:
            raise AttributeError(f"a Run has no attribute or table {name!r}; its tables are {', '.join(self.tables)}")
        return self.table(name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.tables})

    # ---------------------------------------------------------------- models and their states

    @cached_property
    def opened_models(self) -> RunModels:
        """The models behind `states`, with the base that is loaded once."""
        from mossa_jax.existing.run_models import RunModels

        return RunModels(self.folder, self.config, self.data)

    @property
    def models(self) -> list[str]:
        """Names of the models that are there: `pretrained`, E and its seeds, then each task's specialists and twin."""
        return self.opened_models.names

    def examples(self, task: str) -> list[Example]:
        """Returns the rows of a task whose prompts the run compares: distinct after cutting, in its order.

        Row i belongs to row i of `states(model, task=task)`.

        Raises:
          Refusal: 2 for a task that is not the run's; 3 if the rows are no longer those that the run saw.
        """
        return self.opened_models.examples(task)

    def states(
        self,
        model: str | None,
        prompts: Sequence[str] | None = None,
        *,
        task: str | None = None,
        pool: str | None = None,
    ) -> dict[str, Float[np.ndarray, "n D"]] | TokenStates:
        """Computes the states of one of the run's models, cut and put into the template as the run did.

        The base is loaded once, onto one device, and kept.

        Args:
          model: a name of `models`; None is the base.
          prompts: n texts; by default those of `task`.
          task: whose distinct test prompts are read, in the run's order; by default that of the specialist.
          pool: "last", "mean" or "tokens", as in `mossa.layer_states`; by default that of the run's comparison.

        Returns:
          Layer name -> [n, D] float32, as `mossa.layer_states`.

        Raises:
          Refusal: 2 for a model, task or pooling that does not exist; 3 for a model that is not tuned yet, for rows
            that are no longer those that the run saw, and for a base that is not there.
        """
        return self.opened_models.states(model, prompts, task, pool)

    # ---------------------------------------------------------------- figures

    @property
    def figures(self) -> RunFigures:
        """The figures of the report: `figures["layers"]` draws one, `figures.names` lists them.

        Raises:
          Refusal: 3 if the run is not finished.
        """
        from mossa_jax.existing.run_figures import RunFigures

        return RunFigures(str(self._place), self._report_inputs())

    def figure(self, name: str, palette: Mapping[str, str] | None = None) -> Figure:
        """Draws one figure of the report, as `figures.draw`."""
        return self.figures.draw(name, palette)

    def _report_inputs(self) -> ReportInputs:
        """Gathers what the figures show."""
        from mossa_jax.files.metrics import Metrics
        from mossa_jax.monitoring import goodput
        from mossa_jax.report import ReportInputs

        analysis = self.analysis
        tables = {name: self.raw_table(name) for name in {*self.tables, "cka", "scores", "curves"}}
        return ReportInputs(
            table=tables["cka"],
            change=tables.get("change"),
            analyses={name: table for name, table in tables.items() if TABLES.get(name)},
            analysis=analysis,
            scores=tables["scores"],
            answers=tables.get("answers"),
            curves=tables["curves"],
            tasks=tables["cka"].drop_duplicates("task")[["task", "cluster", "held_out"]],
            parity="not shown in figures",
            times=goodput.times(Metrics(self.folder).read()[0]),
        )
