"""A chart that has every mark, every kind of axis, and names that are hard to show."""

import numpy as np
import pandas as pd

from mossa_jax.report.charts.grammar import (
    Axis,
    Bars,
    Boxes,
    Chart,
    Choice,
    Heat,
    Line,
    Panel,
    Points,
    Rule,
    Span,
    View,
    box,
)

HOSTILE = "<img src=x onerror=\"document.title='broken'\">"
CHOICES = {"estimator": Choice("Estimator", {"debiased": "debiased", "biased": "biased (the paper's)"})}
LAYERS = ("emb", "1", "2", "norm")
ROWS = ("row one", HOSTILE, "row three", "row four")


def heat_values(shift=0.0):
    """Returns four rows of four layers, of which one cell is undefined."""
    values = np.array([[0.1, np.nan, 0.3, 0.4], [-0.1, -0.2, 0.2, 0.1], [0.5, 0.5, 0.5, 0.5], [0.0, 0.1, 0.0, 0.1]])
    return values + shift


def every_mark(data: pd.DataFrame | None = None) -> Chart:
    """Builds the chart; its biased view is higher by a tenth."""
    if data is None:
        data = pd.DataFrame({"task": ["=cmd()", HOSTILE, "plain"], "value": [0.25, -0.5, np.nan], "n": [1, 2, 3]})
    return Chart(
        name="every",
        title="Every mark",
        caption="Every mark once.",
        views=tuple(View(_panels(0.1 * number), 2, {"estimator": name}) for number, name in enumerate(_estimators())),
        data=data,
        choices=CHOICES,
        request="Follow a task",
        paper=2,
        height=3.0,
        rows_menu=True,
    )


def _estimators():
    return CHOICES["estimator"].options


def _panels(shift):
    layers = Axis("layer", LAYERS)
    few, many = box(2, [0.4, 0.8], ["few a", "few b"]), box(1, [0.1, 0.2, 0.3, 0.4, 0.5], list("abcde"))
    lines = Panel(
        layers,
        Axis("value", zero=True),
        (
            Span(low=0.5, high=2.5, role="shared", label="section"),
            Boxes(boxes=(many, few), name="spread", role="pretrained", shift=-0.2),
            Line(
                x=range(4),
                y=np.array([0.12345678, np.nan, 0.3, 0.4]) + (shift or 0),
                low=[0.1, None, 0.2, 0.3],
                high=[0.2, None, 0.4, 0.5],
                name="a line",
                role="tuned",
                dash="dash",
                symbol="square",
                hover=[f"line {layer}\nvalue {shift}" for layer in LAYERS],
            ),
            *(
                Line(x=range(4), y=[0.5, 0.6, 0.7, 0.8], name=task, on_request=task, hover=[task] * 4)
                for task in ("task one", HOSTILE)
            ),
            Rule(at=0.05, label="margin"),
        ),
        title="lines",
        note="4 layers",
    )
    points = Panel(
        Axis("across", percent=True),
        Axis("up", log=True),
        (
            Rule(axis="diagonal"),
            Points(
                x=[0.1, 0.5, 0.9],
                y=[1.0, 10.0, 100.0],
                y_low=[0.5, 5.0, 50.0],
                y_high=[2.0, 20.0, 200.0],
                name="points",
                role="control",
                symbol="diamond",
                hollow=True,
                size=9,
                hover=["t0\nvalue 1", "t\u200b1\nvalue 2", HOSTILE],
            ),
        ),
        title="points",
    )
    bars = Panel(
        Axis("length"),
        Axis("", ("a", "b"), reverse=True),
        (Bars(x=[1.0, 2.0], y=[0, 1], low=[0.5, 1.5], high=[1.5, 2.5], level=True, hover=["bar a", "bar b"]),),
        title="bars",
    )
    heat = Panel(
        layers,
        Axis("", ROWS, reverse=True),
        (
            Heat(
                values=heat_values(shift),
                hover=ROWS,
                cells=[
                    ["undefined: no variance" if np.isnan(value) else f"value {value:.3f}" for value in row]
                    for row in heat_values(shift)
                ],
                scale="change",
                hatched=np.abs(heat_values()) < 0.15,
                hatched_name="not significant",
                groups=("left", "left", "right", "right"),
                faint_rows=(3,),
                bar="change",
            ),
        ),
        title="heat",
    )
    empty = Panel(layers, Axis("value"), (Rule(at=0.0),), title="nothing", empty="Nothing was measured.")
    return lines, points, bars, heat, empty
