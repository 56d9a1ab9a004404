"use strict";

// Draws the charts of a comparison of runs from the JSON in #data (page.py says what it holds), with drawing.js.
(function () {
  const data = JSON.parse(at("data").textContent);
  const shown = (value) => (value === null || value === undefined ? "undefined" : value.toFixed(3));

  function layout(extra) {
    const axis = { gridcolor: colour("--line"), zeroline: false, linecolor: colour("--line"), automargin: true };
    const common = {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: colour("--plot"),
      font: { family: "system-ui, sans-serif", size: 13, color: colour("--ink") },
      margin: { l: 60, r: 20, t: 34, b: 50 },
      hoverlabel: { align: "left" },
      height: 430,
      legend: { orientation: "h", y: 1.0, yanchor: "bottom", x: 0, xanchor: "left" },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--quiet"), activecolor: colour("--ink") },
    };
    return Object.assign(common, extra, {
      xaxis: Object.assign({}, axis, extra.xaxis),
      yaxis: Object.assign({}, axis, extra.yaxis),
    });
  }

  function draw(id, traces, extra) {
    const place = at(id);
    if (!place) return;
    if (!traces.length) {
      Plotly.purge(place);
      place.textContent = "Nothing is defined here.";
      return;
    }
    // Removes the message of an earlier call, and nothing of plotly's own.
    place.querySelectorAll(":scope > :not(.plot-container)").forEach((child) => child.remove());
    if (place.firstChild && place.firstChild.nodeType === 3) place.textContent = "";
    Plotly.react(place, traces, layout(extra), Object.assign({}, OFFLINE, {
      responsive: true,
      modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
      toImageButtonOptions: { format: "png", scale: 2, filename: id },
    }));
  }

  function drawCurves() {
    const traces = [];
    for (const { name, colour: hue, dash, curve } of data.runs) {
      const rows = curve.layer.map((layer, i) => i).filter((i) => curve.median[i] !== null);
      if (!rows.length) continue;
      const x = rows.map((i) => curve.relative_depth[i]), back = [...rows].reverse();
      traces.push({
        type: "scatter", mode: "lines", hoverinfo: "skip", showlegend: false, line: { width: 0 }, fill: "toself",
        fillcolor: faded(hue, 0.12), legendgroup: name, x: [...x, ...back.map((i) => curve.relative_depth[i])],
        y: [...rows.map((i) => curve.q3[i]), ...back.map((i) => curve.q1[i])],
      }, {
        type: "scatter", mode: "lines+markers", name: brief(name, 40), legendgroup: name, x,
        y: rows.map((i) => curve.median[i]), line: { color: hue, width: 2, dash }, marker: { size: 5 },
        hovertemplate: "%{text}<extra></extra>",
        text: rows.map((i) => [
          safe(name) + ", layer " + curve.layer[i], "median <b>" + shown(curve.median[i]) + "</b>",
          "quartiles " + shown(curve.q1[i]) + " to " + shown(curve.q3[i]), curve.n_tasks[i] + " tasks",
        ].join("<br>")),
      });
    }
    draw("chart-curves", traces, {
      xaxis: { title: { text: "relative depth (block l of L at l / L)" }, range: [0, 1.03] },
      yaxis: { title: { text: "change of CKA" }, zeroline: true, zerolinecolor: colour("--quiet") },
    });
  }

  function drawCells() {
    const run = at("cells-run").value, cells = data.cells[run];
    if (!cells) {
      draw("chart-cells", [], {});
      return;
    }
    const quantity = at("cells-quantity").value;
    const values = cells.values[quantity][at("cells-estimator").value];
    const grid = (cell) => cells.tasks.map((task, i) => cells.layers.map((layer, j) => cell(i, j)));
    const text = grid((i, j) => [
      safe(cells.tasks[i].name), safe(cells.tasks[i].cluster) + ", layer " + cells.layers[j],
      data.quantities[quantity] + ": " + shown(values.reference_value[i][j]) + " and " + shown(values.value[i][j]),
      "difference <b>" + shown(values.difference[i][j]) + "</b>",
      values.low[i][j] === null ? "no interval" : "95 % " + shown(values.low[i][j]) + " to " + shown(values.high[i][j]),
      values.q[i][j] === null ? "not tested" : "q = " + shown(values.q[i][j]),
      cells.tasks[i].same_prompts ? "same test prompts" : "other test prompts",
    ].join("<br>"));
    const defined = values.difference.flat().filter((value) => value !== null).map(Math.abs);
    const most = Math.max(0.02, ...defined);
    const y = cells.tasks.map((task, i) => i);
    const marked = y.flatMap((i) => cells.layers.map((layer, j) => [i, j]))
      .filter(([i, j]) => values.q[i][j] !== null && values.q[i][j] <= 0.05);
    const grey = [[0, data.undefined], [1, data.undefined]];
    const common = { type: "heatmap", x: cells.layers, y, xgap: 1, ygap: 1, hovertemplate: "%{text}<extra></extra>" };
    const traces = [
      Object.assign({}, common, {
        z: values.difference, text, zmin: -most, zmax: most, colorbar: { thickness: 12 }, hoverongaps: false,
        colorscale: [[0, "#5e3c99"], [0.25, "#b2abd2"], [0.5, "#f7f7f7"], [0.75, "#fdb863"], [1, "#b35806"]],
      }),
      Object.assign({}, common, {
        z: grid((i, j) => (values.difference[i][j] === null ? 1 : null)), colorscale: grey, showscale: false,
        hoverongaps: false, hovertemplate: undefined, hoverinfo: "skip",
      }),
    ];
    if (marked.length) {
      traces.push({
        type: "scatter", mode: "markers", showlegend: false, hoverinfo: "skip", marker: { size: 4, color: "#111111" },
        x: marked.map(([, j]) => cells.layers[j]), y: marked.map(([i]) => i),
      });
    }
    const narrow = at("chart-cells").clientWidth < 500;
    draw("chart-cells", traces, {
      height: 130 + 18 * y.length,
      xaxis: { type: "category", title: { text: "layer" }, showgrid: false, range: [-0.5, cells.layers.length - 0.5] },
      yaxis: {
        tickvals: y, ticktext: cells.tasks.map((task) => brief(task.name, narrow ? 18 : 44)), tickfont: { size: 11 },
        range: [y.length - 0.5, -0.5], showgrid: false,
      },
    });
  }

  function drawAll() {
    drawCurves();
    drawCells();
  }

  for (const id of ["cells-run", "cells-quantity", "cells-estimator"]) at(id).addEventListener("change", drawCells);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  drawAll();
  document.documentElement.dataset.drawn = "yes";
})();
