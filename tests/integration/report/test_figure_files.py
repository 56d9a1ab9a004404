"""The figures of a report as files: every chart, in every format, and nothing of an earlier report."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mossa_jax.files.csv_text import csv_text, read_csv
from mossa_jax.report import remove_former_figures, write_figures
from mossa_jax.report.catalogue import FILES, all_charts
from mossa_jax.report.charts.grammar import Axis, Chart, Heat, Panel, View
from mossa_jax.report.drawing.figures import save_charts
from mossa_jax.report.drawing.saving import preview_png
from tests.support.paper_like import planted_times
from tests.support.planted_report import NO_CURVES, report_change, report_inputs, report_scores, report_table


@pytest.fixture(scope="module")
def inputs():
    table = report_table((2, 2, 5, 1), 4, (1, 2), held_out=1, names={"t00": "=1+1", "t01": "$x$"})
    return report_inputs(table, report_scores(table, ("t05",)), report_change(table))


@pytest.fixture(scope="module")
def folder(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    write_figures(inputs, folder)
    return folder


def test_every_chart_is_written_in_every_format(inputs, folder):
    names = [chart.file for chart in all_charts(inputs).values()]
    assert {"figure2_layers", "figure3_clusters", "figure7_held_out", "heatmap", "scores"} <= set(names) <= set(FILES)
    assert {path.name for path in folder.iterdir()} == {
        f"{name}.{suffix}" for name in names for suffix in ("png", "svg", "pdf", "csv")
    }
    for name in names:
        with Image.open(folder / f"{name}.png") as image:
            assert np.allclose(image.info["dpi"], 300, atol=0.01)
            assert np.asarray(image.convert("L")).std() > 5, f"{name} is blank"


def test_the_numbers_of_a_chart_are_beside_it_and_safe_to_open(inputs, folder):
    chart = all_charts(inputs)["layers"]
    text = (folder / "figure2_layers.csv").read_text()
    assert text == csv_text(chart.data) and "'=1+1" in text and ",=1+1" not in text
    read = read_csv(folder / "figure2_layers.csv", dtype={"layer": str})
    assert np.allclose(read["value"], chart.data["value"], equal_nan=True) and set(read["task"]) == set(
        chart.data["task"]
    )


def test_a_chart_that_is_absent_has_no_file(tmp_path):
    table = report_table((1,) * 3, 3, None, held_out=0)
    files = write_figures(report_inputs(table, curves=NO_CURVES), tmp_path)
    assert not {"figure7_held_out", "training", "scores", "time"} & set(files)
    assert not list(tmp_path.glob("*held_out*"))


def test_figures_of_an_earlier_report_go_and_files_of_ones_own_stay(tmp_path):
    for name in ("layers.png", "layers.pdf", "spectrum.png", "figure7_held_out.svg", "scores.csv", "scores.png"):
        (tmp_path / name).write_text("old")
    own = ["layers_v1.png", "layers.txt", "my_scores.csv"]
    for name in own:
        (tmp_path / name).write_text("mine")
    remove_former_figures(tmp_path, ["scores"])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*own, "scores.csv", "scores.png"])


def test_times_are_drawn_when_they_are_known(inputs, tmp_path):
    assert "time" not in all_charts(inputs)
    charts = all_charts(report_inputs(report_table((1,) * 3, 3, None, held_out=0), times=planted_times()))
    assert write_figures(inputs, tmp_path, {"time": charts["time"]}) == ["time"]
    assert set(pd.read_csv(tmp_path / "time.csv").columns) >= {"stage", "cause", "seconds"}


def test_a_table_with_nothing_defined_is_drawn(tmp_path):
    table = report_table((1,) * 3, 4, None, held_out=0).assign(cka=np.nan, undefined="not finite")
    for name in write_figures(report_inputs(table, curves=NO_CURVES), tmp_path):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000


def test_pictures_for_the_page_are_small(folder, tmp_path):
    (tmp_path / "small.png").write_bytes(preview_png((folder / "figure2_layers.png").read_bytes()))
    with Image.open(tmp_path / "small.png") as image:
        assert image.mode == "P" and 700 <= image.width <= 1100
    assert (tmp_path / "small.png").stat().st_size < 60_000


def test_a_small_picture_keeps_colours_that_are_rare(tmp_path):
    values = np.linspace(-0.05, 1.0, 400).reshape(20, 20)
    panel = Panel(Axis(names=tuple("abcdefghijklmnopqrst")), Axis(names=tuple("abcdefghijklmnopqrst")),
                  (Heat(values=values, scale="change"),))  # fmt: skip
    chart = Chart("heat", "Heat", "A heat map", (View((panel,)),), pd.DataFrame({"value": values.ravel()}))
    save_charts([chart], tmp_path)
    png = (tmp_path / "heat.png").read_bytes()
    small = np.asarray(Image.open(io.BytesIO(preview_png(png))).convert("RGB")).astype(int)
    with Image.open(io.BytesIO(png)) as whole:
        size = small.shape[1], small.shape[0]
        exact = np.asarray(whole.convert("RGB").resize(size, Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(small - exact).max() < 60


@pytest.mark.slow
def test_sixty_tasks_and_eighty_layers(tmp_path):
    table = report_table((5,) * 12, 80, (20, 40))
    assert write_figures(report_inputs(table, report_scores(table)), tmp_path)
