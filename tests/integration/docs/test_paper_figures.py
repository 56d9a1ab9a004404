"""examples/paper_figures.py: both columns have the numbers of their source, and what is missing is said."""

import importlib

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from mossa_jax.benchmarks import published_figure
from mossa_jax.files.checked import write_json, write_table

LAYERS, WIDTH, PROMPTS = 6, 64, 17
NAMES = ("embed", *map(str, range(1, LAYERS + 1)), "final_norm")
# Relative depths of what the paper shows, and the layers they belong to: the last block's own output is not shown.
SHOWN = (*map(str, range(1, LAYERS)), "final_norm")
DEPTHS = np.arange(1, LAYERS + 1) / LAYERS
TASKS = {"a": False, "b": False, "c": False, "d": False, "x": True, "y": True, "z": True}
MODELS = ("pretrained", "tuned")


@pytest.fixture
def script(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "examples"))
    return importlib.import_module("paper_figures")


def planted_values() -> dict[tuple[str, str, str, str], float]:
    """CKA by task, model, layer and estimator; one cell of task d is undefined."""
    rng = np.random.default_rng(5)
    keys = [(t, m, layer, e) for t in TASKS for m in MODELS for layer in NAMES for e in ("biased", "debiased")]
    values = {key: float(rng.uniform()) for key in keys}
    return values | {("d", "tuned", "3", "biased"): np.nan}


def plant(folder, tasks=tuple(TASKS), has_analyses=True, name="planted", sections=None):
    """Writes a finished run folder with known tables."""
    write_json(folder / "config.json", {"name": name, "base": "somewhere/SomeModel-1B"})
    write_json(folder / "data.json", {"fingerprints": {"architecture": {"hidden": WIDTH}}})
    none = {"is_transition": False, "shared": None, "transition": None, "refinement": None}
    write_json(folder / "results/findings.json", {"sections": sections or none})
    (folder / "report.html").write_text("the page")
    cells = [
        dict(experimental=m, control=control, task=t, held_out=TASKS[t], layer=layer, estimator=e, cka=own, n=PROMPTS)
        for (t, m, layer, e), value in planted_values().items()
        if t in tasks
        # The pair with another task's specialist is no part of the figure.
        for control, own in ((t, value), ("other", 0.0))
    ]
    write_table(folder / "results/cka.parquet", pd.DataFrame(cells))
    if has_analyses:
        spectrum = [
            dict(task=t, held_out=TASKS[t], layer=layer, model=m, components_99=dimensions(t, m, k), n=PROMPTS)
            for t in tasks
            for m in (*MODELS, "control")
            for k, layer in enumerate(NAMES)
        ]
        write_table(folder / "results/spectrum.parquet", pd.DataFrame(spectrum))
        correlates = [
            dict(layer=layer, experimental=m, correlate=c, estimator=e, r=r(m, c, e, k), n_tasks=4, competent_only=True)
            for m in (*MODELS, "change")
            for c in ("flesch_kincaid", "coleman_liau", "training_rows")
            for e in ("biased", "debiased")
            for k, layer in enumerate(NAMES)
        ]
        write_table(folder / "results/correlates.parquet", pd.DataFrame(correlates))
    return folder


def dimensions(task: str, model: str, layer: int) -> float:
    return 1.0 + "abcdxyz".index(task) + layer + 3 * (model == "tuned") + 100 * (model == "control")


def r(model: str, correlate: str, estimator: str, layer: int) -> float:
    return 0.1 * layer - 0.3 * (model == "tuned") - 0.2 * (correlate == "coleman_liau") + 0.05 * (estimator == "biased")


@pytest.fixture
def run(tmp_path, script):
    (tmp_path / "run/results").mkdir(parents=True)
    return script.mossa.Run(plant(tmp_path / "run"))


def test_the_papers_column_has_the_numbers_of_its_figures(script):
    paper = script.read_paper()
    panels = script.paper_panels(paper)
    assert "arXiv 2410.20008" in paper["paper"] and "0.01" in paper["source"]
    base, tuned = panels["mixture"].curves
    for layer, row in published_figure._READ_OFF.items():
        (at,) = np.flatnonzero(np.isclose(base.depth, layer / 32))
        boxes = [part[at] for curve in (base, tuned) for part in (curve.low, curve.values, curve.high)]
        assert boxes == list(row), layer
    assert len(base.depth) == len(published_figure._READ_OFF)
    assert panels["mixture"].sections == {
        "shared": (0.5 / 32, 9.5 / 32),
        "transition": (9.5 / 32, 15.5 / 32),
        "refinement": (15.5 / 32, 32.5 / 32),
    }
    base, tuned = panels["unseen"].curves
    (at,) = np.flatnonzero(base.depth == 25 / 32)
    assert [base.low[at], base.values[at], base.high[at]] == [0.12, 0.31, 0.65]
    assert [tuned.low[at], tuned.values[at], tuned.high[at]] == [0.34, 0.56, 0.84]
    assert np.isnan(base.low[0]) and base.values[0] == 1.0  # its box was too thin to measure
    base, tuned = panels["dimensions"].curves
    assert (base.values[[0, 29, 31]] * 4096).tolist() == [270, 1127, 825]
    assert (tuned.values[[0, 17, 31]] * 4096).tolist() == [276, 1779, 1523] and tuned.depth[17] == 18 / 32
    grades = {(curve.measure, curve.model): curve.values for curve in panels["readability"].curves}
    assert [row[[0, 16, 31]].tolist() for row in grades.values()] == [
        [-0.03, 0.13, -0.04], [0.17, 0.43, 0.26], [-0.22, 0.09, -0.01], [0.17, 0.44, 0.39],
    ]  # fmt: skip
    assert all(len(row) == 32 for row in grades.values())


def test_the_runs_column_has_quartiles_of_its_own_biased_cells(script, run):
    panels, values = script.run_panels(run), planted_values()
    for name, is_held_out in (("mixture", False), ("unseen", True)):
        assert [curve.model for curve in panels[name].curves] == list(MODELS)
        for curve in panels[name].curves:
            np.testing.assert_allclose(curve.depth, DEPTHS)
            for k, layer in enumerate(SHOWN):
                own = [values[t, curve.model, layer, "biased"] for t, held in TASKS.items() if held is is_held_out]
                wanted = np.quantile([value for value in own if np.isfinite(value)], [0.25, 0.5, 0.75])
                np.testing.assert_allclose([curve.low[k], curve.values[k], curve.high[k]], wanted)
    assert panels["mixture"].title == "planted: 4 tasks of the mixture"
    assert panels["unseen"].title == "planted: 3 unseen tasks"
    assert panels["mixture"].sections == {} and "no sections" in panels["mixture"].note


def test_the_runs_column_has_its_dimensions_and_correlations(script, run):
    panels = script.run_panels(run)
    places = [NAMES.index(layer) for layer in SHOWN]
    for curve in panels["dimensions"].curves:
        wanted = [np.mean([dimensions(t, curve.model, k) for t, held in TASKS.items() if not held]) for k in places]
        np.testing.assert_allclose(curve.values, np.array(wanted) / WIDTH)
    assert panels["dimensions"].limit == (PROMPTS - 1) / WIDTH and f"n = {PROMPTS} prompts" in panels["dimensions"].note
    assert len(panels["readability"].curves) == 4
    for curve in panels["readability"].curves:
        np.testing.assert_allclose(curve.values, [r(curve.model, curve.measure, "biased", k) for k in places])
    assert panels["readability"].note == "4 tasks of the mixture with a competent specialist"


def test_sections_are_those_that_a_finding_states(script, run):
    sections = {"is_transition": True, "shared": [1, 2], "transition": [3, 4], "refinement": None}
    plant(run.folder, sections=sections)
    panel = script.run_panels(script.mossa.Run(run.folder))["mixture"]
    assert panel.sections == {"shared": (0.5 / 6, 2.5 / 6), "transition": (2.5 / 6, 4.5 / 6)} and not panel.note


def test_a_picture_shows_all_of_it_and_nothing_is_cut(script, run, tmp_path):
    plant(run.folder, name="a run with a name that is far too long for the head of a panel $of$ figures")
    run = script.mossa.Run(run.folder)
    panels = script.run_panels(run)
    figure = script.draw(script.paper_panels(script.read_paper()), panels, "A title", script.caption(run))
    assert f"the run has {PROMPTS} prompts" in script.caption(run).replace("\n", " ")
    for ax, panel in zip(figure.axes[1::2], panels.values(), strict=True):
        drawn = [line.get_ydata() for line in ax.lines if len(line.get_xdata()) == LAYERS]
        assert len(drawn) == len(panel.curves)
        assert all(np.array_equal(y, curve.values) for y, curve in zip(drawn, panel.curves, strict=True))
    figure.canvas.draw()
    whole = figure.bbox
    # Ticks beyond an axis have texts that are never drawn.
    ticks = {text for ax in figure.axes for text in (*ax.get_xticklabels(), *ax.get_yticklabels())}
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible() and text not in ticks]
    assert {"A title", "pre-trained base", "Coleman-Liau index"} <= {text.get_text() for text in texts}
    for text in texts:
        box = text.get_window_extent()
        assert box.x0 >= whole.x0 - 1 and box.x1 <= whole.x1 + 1 and box.y0 >= -1 and box.y1 <= whole.y1 + 1, text
    for left, right in zip(figure.axes[::2], figure.axes[1::2], strict=True):
        assert left._left_title.get_window_extent().x1 < right._left_title.get_window_extent().x0


def test_parts_that_a_run_lacks_leave_their_panel_empty(script, tmp_path, capsys):
    (tmp_path / "run/results").mkdir(parents=True)
    plant(tmp_path / "run", tasks="abcd", has_analyses=False)
    assert script.main([str(tmp_path / "run"), f"--out={tmp_path / 'new/figure.png'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "left empty: planted: 0 unseen tasks. This run holds out no task."
    assert [line.split(". ")[1] for line in lines[1:3]] == [
        "This run has no results/spectrum (analyse.spectrum).",
        "This run has no correlation with readability (analyse.correlates).",
    ]
    assert (tmp_path / "new/figure.png").read_bytes().startswith(b"\x89PNG")


def test_it_reads_a_run_of_today(script, tiny_run, tmp_path):
    assert script.main([str(tiny_run[1]), f"--out={tmp_path / 'figure.svg'}"]) == 0
    assert "<svg" in (tmp_path / "figure.svg").read_text()


@pytest.mark.parametrize(
    ("change", "out", "code", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "f.png", 3, "is no run folder: it has no config.json"),
        (lambda folder: (folder / "report.html").unlink(), "f.png", 3, "is not finished: it has no report.html"),
        (lambda folder: None, "f.jpeg", 2, "the ending is none of .png, .svg, .pdf"),
        (lambda folder: None, "run/report.html/f.png", 2, "is a file, not a folder"),
    ],
)
def test_bad_input_is_one_line(script, run, tmp_path, capsys, change, out, code, said):
    change(run.folder)
    assert script.main([str(run.folder), f"--out={tmp_path / out}"]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and said in captured.err
    assert not (tmp_path / out).exists()
