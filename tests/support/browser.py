"""A page in headless Chromium: opening, the pointer, faults of access, what overflows, and paper."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mossa_jax.report.charts.grammar import Boxes, Chart, Heat

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PAPER = {"A4": (8.27, 11.69), "Letter": (8.5, 11.0)}
"""Kind of paper -> width and height in inches."""


def open_browser(folder: Path, scripts: bool = True) -> Any:
    """Starts headless Chromium with its profile in a folder; skips the test where there is none."""
    if not (CHROMIUM and DRIVER):
        if os.environ.get("MOSSA_REQUIRE_BROWSER") == "1":
            pytest.fail("MOSSA_REQUIRE_BROWSER=1, but chromium or chromedriver is not installed")
        pytest.skip("chromium and chromedriver are not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
        f"disable-component-update disable-sync window-size=1400,1000 user-data-dir={folder}"
    ).split():
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    if not scripts:
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    driver = webdriver.Chrome(service=Service(DRIVER), options=options)
    driver.set_script_timeout(240)
    return driver


def errors(driver: Any) -> list[dict[str, Any]]:
    """Returns what the console has as errors since the last call."""
    return [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def draw_all(driver: Any) -> None:
    """Draws the charts that are out of view, too, and waits for them."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 120).until(
        lambda d: d.execute_script("return document.documentElement.dataset.drawn") == "yes"
    )
    driver.execute_async_script("const done = arguments[0]; Promise.resolve(window.mossa.drawAll()).then(() => done())")


@contextmanager
def shown_at(driver: Any, width: int, height: int = 900, scheme: str = "light", media: str = "") -> Iterator[None]:
    """Shows the page in a window of this size, in a light or dark colour scheme, or as on paper."""
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 700}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    try:
        yield
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


def faults(driver: Any) -> list[str]:
    """Returns the serious and critical faults of access that axe-core finds, a line each."""
    import axe_core_python

    driver.execute_script((Path(axe_core_python.__file__).parent / "axe.min.js").read_text())
    # Plotly's drawings have thousands of marks, which a screen reader meets as one labelled group.
    violations = driver.execute_async_script(
        "const done = arguments[0];"
        "axe.run({exclude: [['.js-plotly-plot svg']]}, {resultTypes: ['violations']})"
        ".then((result) => done(result.violations))"
    )
    return [
        f"{violation['id']}: {node['target']}: {node['failureSummary']}"
        for violation in violations
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


def overflows(driver: Any) -> list[str]:
    """Returns the elements that reach beyond the right edge of the window and stand in no box that scrolls."""
    return driver.execute_script(
        """
        const width = document.documentElement.clientWidth;
        const scrolls = (e) => ['auto', 'scroll', 'hidden', 'clip'].includes(getComputedStyle(e).overflowX);
        const beyond = [...document.querySelectorAll('body *')].filter((e) => {
          const box = e.getBoundingClientRect();
          if (!box.width || box.right <= width + 1) return false;
          for (let up = e.parentElement; up !== document.body; up = up.parentElement) if (scrolls(up)) return false;
          return true;
        });
        const page = document.documentElement.scrollWidth > width ? ['the page itself'] : [];
        return page.concat(beyond.map((e) => `${e.tagName}#${e.id}.${e.getAttribute('class')}`));
        """
    )


def printed(driver: Any, paper: str) -> bytes:
    """Returns the page as PDF."""
    width, height = PAPER[paper]
    return base64.b64decode(
        driver.execute_cdp_cmd("Page.printToPDF", {"paperWidth": width, "paperHeight": height})["data"]
    )


def requests(driver: Any) -> list[str]:
    """Returns the addresses that the page has asked for beside itself and what it holds."""
    names = driver.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    return [name for name in names if not name.startswith(("data:", "blob:"))]


def squeezed(text: str) -> str:
    """Returns a text without blanks, since lines break elsewhere on the page."""
    return "".join(text.replace("<br>", "").split())


def hover_texts(chart: Chart) -> set[str]:
    """Returns all texts that the pointer can find in a chart, without blanks."""
    texts: list[str] = []
    for mark in (mark for view in chart.views for panel in view.panels for mark in panel.marks):
        if isinstance(mark, Heat):
            rows = mark.hover or [""] * len(mark.cells)
            texts += [
                f"{row}\n{cell}" for row, cells in zip(rows, mark.cells, strict=True) for cell in cells if row or cell
            ]
        elif isinstance(mark, Boxes):
            texts += [text for box in mark.boxes for text in box.hover] + mark.summaries
        texts += mark.hover
    return {squeezed(text) for text in texts if text}


_SPOTS = """
const chart = document.getElementById(arguments[0]);
const plot = chart.querySelector('.js-plotly-plot');
chart.scrollIntoView({block: 'center', behavior: 'instant'});
const frame = plot.getBoundingClientRect(), layout = plot._fullLayout, spots = [];
plot._fullData.forEach((trace, index) => {
  if (trace.visible !== true || ['skip', 'none'].includes(trace.hoverinfo)) return;
  const key = (letter) => letter + 'axis' + (trace[letter + 'axis'] || letter).slice(1);
  const xaxis = layout[key('x')], yaxis = layout[key('y')];
  const place = (x, y, text) => {
    if (x === null || y === null || x === undefined || y === undefined || !text) return;
    const left = xaxis.d2p(x), top = yaxis.d2p(y);
    if (!(left >= 0 && left <= xaxis._length && top >= 0 && top <= yaxis._length)) return;
    spots.push({trace: index, type: trace.type, text: String(text),
                x: frame.left + xaxis._offset + left, y: frame.top + yaxis._offset + top});
  };
  const texts = trace.hovertext || trace.text || trace.customdata;
  if (!texts) return;
  if (trace.type === 'heatmap') {
    trace.z.forEach((row, r) => [...row].forEach((value, c) => place(
      trace.x ? trace.x[c] : c, trace.y ? trace.y[r] : r, texts[r] && texts[r][c])));
  } else {
    const xs = trace.x || [], ys = trace.y || [];
    // The pointer goes to the middle of a bar, and to the end of nothing else.
    const base = (n) => (Array.isArray(trace.base) ? trace.base[n] : trace.base) || 0;
    const middle = (length, n) => (trace.type === 'bar' && length !== null ? base(n) + length / 2 : length);
    [...xs].forEach((x, n) => {
      const level = trace.orientation === 'h';
      if (trace.type === 'bar' && !(level ? x : ys[n])) return;
      place(level ? middle(x, n) : x, level ? ys[n] : middle(ys[n], n), Array.isArray(texts) ? texts[n] : texts);
    });
  }
});
return spots.filter((spot) => spot.text.includes(arguments[1]));
"""


def hover(driver: Any, chart: str, having: str = "") -> tuple[str, str] | None:
    """Moves the pointer onto a mark of a chart, as a reader does.

    Args:
      driver: the browser, with the chart drawn.
      chart: its name.
      having: words that the text of the mark has.

    Returns:
      The text that was wanted there and the text that the page then shows; None if the chart has no such mark.
    """
    from selenium.webdriver.support.ui import WebDriverWait

    spots = driver.execute_script(_SPOTS, chart, having)
    if not spots:
        return None
    spot = spots[len(spots) // 2]
    for offset in (3, 0):
        move = {"type": "mouseMoved", "x": spot["x"] + offset, "y": spot["y"], "button": "none"}
        driver.execute_cdp_cmd("Input.dispatchMouseEvent", move)
    shown = (
        "return [...document.getElementById(arguments[0]).querySelectorAll('.hoverlayer .hovertext')]"
        ".map((e) => e.textContent).join('')"
    )
    text = WebDriverWait(driver, 5).until(lambda d: d.execute_script(shown, chart))
    driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": 1, "y": 1, "button": "none"})
    return spot["text"], text
