"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const spoken = (layer) => ({ embed: "emb", final_norm: "norm" }[layer] || layer);
  const layers = data.layers.map(spoken);
  const models = [["pretrained", "pre-trained"], ["tuned", "tuned"]];
  const rows = (keep) => data.tasks.map((task, i) => i).filter((i) => keep(data.tasks[i], i));
  // Plotly reads a small markup in labels: names are data, so their signs are written as entities.
  const safe = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const brief = (text, limit) => safe(text.length > limit ? text.slice(0, limit - 1) + "…" : text);
  const minus = (a, b) => (a === null || b === null ? null : a - b);
  const shown = (value) => (value === null || value === undefined ? "undefined" : value.toFixed(3));
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  let estimator = "debiased";

  function layout(extra) {
    const axis = { gridcolor: colour("--line"), zeroline: false, linecolor: colour("--line"), automargin: true };
    return Object.assign({
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: colour("--plot"),
      font: { family: "system-ui, sans-serif", size: 13, color: colour("--ink") },
      margin: { l: 60, r: 20, t: 34, b: 50 }, hoverlabel: { align: "left" }, height: 430,
      legend: { orientation: "h", y: 1.0, yanchor: "bottom", x: 0, xanchor: "left" },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--quiet"), activecolor: colour("--ink") },
    }, extra, { xaxis: Object.assign({}, axis, extra.xaxis), yaxis: Object.assign({}, axis, extra.yaxis) });
  }

  function draw(id, traces, extra) {
    const place = at(id);
    if (!place) return;
    if (!traces.length) { Plotly.purge(place); place.textContent = "Nothing is defined here."; return; }
    place.querySelectorAll(":scope > :not(.plot-container)").forEach((child) => child.remove());
    if (place.firstChild && place.firstChild.nodeType === 3) place.textContent = "";
    Plotly.react(place, traces, layout(extra), {
      // The page stays offline: plotly's own button would upload the chart's data.
      responsive: true, displaylogo: false, showLink: false, showSendToCloud: false, plotlyServerURL: "",
      modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
      toImageButtonOptions: { format: "png", scale: 2, filename: id },
    });
  }

  function bands() {
    const found = data.sections;
    const shapes = [], annotations = [];
    if (!found.found) return { shapes, annotations };
    for (const name of ["shared", "transition", "refinement"]) {
      if (!found[name]) continue;
      const [low, high] = found[name].map((layer) => data.layers.indexOf(String(layer)));
      if (low < 0 || high < 0) continue;
      shapes.push({ type: "rect", xref: "x", yref: "paper", x0: low - 0.5, x1: high + 0.5, y0: 0, y1: 1,
        fillcolor: data.colours.sections[name], opacity: 0.17, line: { width: 0 }, layer: "below" });
      annotations.push({ x: (low + high) / 2, y: 0.01, xref: "x", yref: "paper", text: name, showarrow: false,
        yanchor: "bottom", font: { size: 12, color: colour("--quiet") } });
    }
    return { shapes, annotations };
  }

  function about(i, j, model, estimatorName) {
    const cells = data.cells[model][estimatorName], task = data.tasks[i];
    return safe(task.name) + "<br>" + safe(task.cluster) + (task.held_out ? " (held out)" : "") +
      "<br>layer " + data.layers[j] + ", " + (model === "tuned" ? "tuned" : "pre-trained") + ", " + estimatorName +
      ": <b>" + shown(cells.cka[i][j]) + "</b><br>95 % " + shown(cells.low[i][j]) + " to " + shown(cells.high[i][j]) +
      "<br>" + task.n + " prompts";
  }

  function box(name, hue, picked, value, text) {
    const x = [], y = [], labels = [];
    for (const i of picked) data.layers.forEach((_, j) => {
      const v = value(i, j);
      if (v !== null) { x.push(layers[j]); y.push(v); labels.push(text(i, j)); }
    });
    return { type: "box", name, x, y, text: labels, hovertemplate: "%{text}<extra></extra>", boxpoints: "all",
      jitter: 0.5, pointpos: 0, marker: { color: hue, size: 3, opacity: 0.45 }, line: { width: 1.3 } };
  }

  function boxes(id, picked, difference, followed) {
    const cell = (model, i, j) => data.cells[model][estimator].cka[i][j];
    const change = (i, j) => minus(cell("tuned", i, j), cell("pretrained", i, j));
    let traces;
    if (difference) {
      traces = [box("tuned minus pre-trained", data.colours.scores.control, picked, change,
        (i, j) => about(i, j, "pretrained", estimator) + "<br>" + about(i, j, "tuned", estimator).split("<br>")[2])];
    } else {
      traces = models.map(([key, name]) => box(name, data.colours.models[key], picked,
        (i, j) => cell(key, i, j), (i, j) => about(i, j, key, estimator)));
    }
    traces = traces.filter((trace) => trace.y.length);
    if (followed >= 0 && traces.length) {
      const line = (key, value) => ({ type: "scatter", mode: "lines+markers", x: layers, y: layers.map((_, j) => value(j)),
        line: { color: key, width: 2.5, dash: "dot" }, name: brief(data.tasks[followed].name, 40), hoverinfo: "skip" });
      if (difference) traces.push(line(colour("--ink"), (j) => change(followed, j)));
      else models.forEach(([key]) => traces.push(line(data.colours.models[key], (j) => cell(key, followed, j))));
    }
    draw(id, traces, Object.assign({ boxmode: "group", xaxis: { type: "category", categoryarray: layers,
      categoryorder: "array", title: { text: "layer" } }, yaxis: { title: { text: difference
      ? "tuned − pre-trained CKA" : "CKA with the specialist" }, zeroline: difference } }, bands()));
  }

  function drawLayers() {
    const value = at("layers-task").value;
    boxes("chart-layers", rows((task) => !task.held_out), at("layers-show").value === "difference",
      value === "" ? -1 : Number(value));
  }

  function drawHeatmap() {
    const show = at("heatmap-show").value, sort = at("heatmap-sort").value;
    const cell = (i, j) => (show === "difference"
      ? minus(data.cells.tuned[estimator].cka[i][j], data.cells.pretrained[estimator].cka[i][j])
      : data.cells[show][estimator].cka[i][j]);
    const mean = (i) => {
      const defined = layers.map((_, j) => cell(i, j)).filter((v) => v !== null);
      return defined.length ? defined.reduce((a, b) => a + b, 0) / defined.length : -9;
    };
    const order = rows(() => true);
    if (sort === "name") order.sort((a, b) => (data.tasks[a].name < data.tasks[b].name ? -1 : 1));
    if (sort === "mean") order.sort((a, b) => mean(b) - mean(a));
    const reasons = {};
    for (const model of show === "difference" ? ["pretrained", "tuned"] : [show])
      for (const [i, j, reason] of data.undefined[model]) reasons[i + "," + j] = reason;
    const z = order.map((i) => layers.map((_, j) => cell(i, j)));
    const text = order.map((i) => layers.map((_, j) => (show === "difference"
      ? about(i, j, "pretrained", estimator) + "<br>" + about(i, j, "tuned", estimator).split("<br>").slice(2, 4).join("<br>")
        + "<br>difference: <b>" + shown(cell(i, j)) + "</b>" : about(i, j, show, estimator))));
    const missing = order.map((i) => layers.map((_, j) => (cell(i, j) === null ? 1 : null)));
    const why = order.map((i) => layers.map((_, j) => safe(data.tasks[i].name) + "<br>layer " + data.layers[j]
      + ": undefined<br>" + safe(reasons[i + "," + j] || "no such cell")));
    const most = Math.max(0.05, ...z.flat().filter((v) => v !== null).map(Math.abs));
    const y = order.map((_, i) => i);
    const common = { type: "heatmap", x: layers, y, hovertemplate: "%{text}<extra></extra>", xgap: 1, ygap: 1 };
    const scale = show === "difference" ? { zmin: -most, zmax: most, colorscale: [[0, "#5e3c99"], [0.25, "#b2abd2"], [0.5, "#f7f7f7"], [0.75, "#fdb863"], [1, "#b35806"]] }
      : { zmin: 0, zmax: 1, colorscale: "Cividis" };
    const lines = [];
    if (sort === "cluster") order.forEach((i, k) => {
      if (k && data.tasks[i].cluster !== data.tasks[order[k - 1]].cluster)
        lines.push({ type: "line", xref: "paper", x0: 0, x1: 1, yref: "y", y0: k - 0.5, y1: k - 0.5,
          line: { color: colour("--ink"), width: 1 } });
    });
    draw("chart-heatmap", [
      Object.assign({}, common, scale, { z, text, colorbar: { thickness: 12, len: Math.min(1, 0.5 + 5 / order.length) } }),
      Object.assign({}, common, { z: missing, text: why, showscale: false,
        colorscale: [[0, data.colours.undefined], [1, data.colours.undefined]] }),
    ], { height: 130 + 17 * order.length, shapes: lines, margin: { l: 60, r: 20, t: 36, b: 50 },
      xaxis: { type: "category", title: { text: "layer" }, showgrid: false, tickfont: { size: 11 }, tickangle: 0 },
      yaxis: { tickvals: y, ticktext: order.map((i) => brief(data.tasks[i].cluster, 20) + " · "
        + brief(data.tasks[i].name, 36) + (data.tasks[i].held_out ? " (held out)" : "")),
        autorange: "reversed", tickfont: { size: 11 }, showgrid: false } });
  }

  function drawClusters() {
    const ranking = data.ranking.filter((row) => row.pretrained.mean !== null);
    const y = ranking.map((row, i) => i);
    const traces = models.map(([key, name]) => ({ type: "scatter", mode: "markers", name, y,
      x: ranking.map((row) => row[key].mean), marker: { color: data.colours.models[key], size: 11,
      symbol: key === "tuned" ? "square" : "circle" },
      text: ranking.map((row) => safe(row.cluster) + "<br>" + name + ": <b>" + shown(row[key].mean) + "</b><br>"
        + (row[key].low === null ? safe(row.reason || "no interval") : "95 % " + shown(row[key].low) + " to " + shown(row[key].high))
        + "<br>" + row.n_tasks + " tasks"), hovertemplate: "%{text}<extra></extra>",
      error_x: { type: "data", symmetric: false, thickness: 1.4, width: 4,
        array: ranking.map((row) => (row[key].high === null ? 0 : row[key].high - row[key].mean)),
        arrayminus: ranking.map((row) => (row[key].low === null ? 0 : row[key].mean - row[key].low)) } }));
    draw("chart-ranking", ranking.length ? traces : [], { height: 110 + 30 * ranking.length,
      xaxis: { title: { text: "mean CKA (debiased)" } },
      yaxis: { tickvals: y, ticktext: ranking.map((row) => brief(row.cluster, 34)),
        range: [ranking.length - 0.4, -0.6] } });
    const row = data.ranking[Number(at("cluster-pick").value)];
    if (row) boxes("chart-cluster", rows((task) => row.tasks.includes(task.name)), false, -1);
  }

  function drawEstimators() {
    const every = rows(() => true), traces = [];
    for (const [key, name] of models) {
      const x = [], y = [], text = [], n = [], cells = data.cells[key];
      for (const i of every) layers.forEach((_, j) => {
        const a = cells.debiased.cka[i][j], b = cells.biased.cka[i][j];
        if (a === null || b === null) return;
        x.push(a); y.push(b); n.push(data.tasks[i].n);
        text.push(about(i, j, key, "debiased") + "<br>biased: " + shown(b));
      });
      if (x.length) traces.push({ type: "scatter", mode: "markers", name, x, y, text,
        hovertemplate: "%{text}<extra></extra>", marker: { size: 4, opacity: 0.5, color: data.colours.models[key],
        symbol: key === "tuned" ? "square" : "circle" } });
    }
    if (traces.length) traces.push({ type: "scatter", mode: "lines", x: [0, 1], y: [0, 1], name: "equal",
      line: { color: colour("--quiet"), dash: "dash", width: 1 }, hoverinfo: "skip" });
    draw("chart-estimators", traces, { xaxis: { title: { text: "debiased CKA" } }, yaxis: { title: { text: "biased CKA" } } });
  }

  function drawTraining() {
    const traces = Object.entries(data.training).map(([model, curve]) => ({ type: "scatter", mode: "lines",
      x: curve.step, y: curve.loss, showlegend: model === "tuned", name: model === "tuned" ? "multi-task model" : brief(model, 40),
      opacity: model === "tuned" ? 1 : 0.4, line: { width: model === "tuned" ? 3 : 1,
      color: data.colours.scores[/^tuned($|[.]seed)/.test(model) ? "tuned" : "control"] } }));
    traces.sort((a, b) => a.line.width - b.line.width);
    const first = traces.find((trace) => trace.line.color === data.colours.scores.control);
    if (first) traces.push({ type: "scatter", mode: "lines", x: [null], y: [null], name: "specialists (one line each)",
      line: { width: 1, color: data.colours.scores.control } });
    draw("chart-training", traces, { xaxis: { title: { text: "training step" } },
      yaxis: { title: { text: "loss per answer token (nats)" }, rangemode: "tozero" } });
    const measured = rows((task, i) => Object.values(data.scores).some((column) => column[i] !== null));
    const y = measured.map((_, k) => k);
    const names = { base: "pre-trained", tuned: "multi-task (E)", control: "specialist (C_t)" };
    draw("chart-scores", measured.length ? Object.keys(names).map((key, k) => ({ type: "scatter", mode: "markers",
      name: names[key], y, x: measured.map((i) => data.scores[key][i]), text: measured.map((i) => safe(data.tasks[i].name)),
      hovertemplate: "%{text}<br>" + names[key] + ": <b>%{x:.3f}</b><extra></extra>",
      marker: { size: 8, color: data.colours.scores[key], symbol: ["circle", "square", "diamond"][k] } })) : [],
    { height: 130 + 17 * measured.length, xaxis: { title: { text: "exact match" }, range: [-0.03, 1.03] },
      yaxis: { tickvals: y, ticktext: measured.map((i) => brief(data.tasks[i].cluster, 20) + " · " + brief(data.tasks[i].name, 36)),
        range: [measured.length - 0.4, -0.6], tickfont: { size: 11 } } });
  }

  function drawHeldOut() { boxes("chart-held-out", rows((task) => task.held_out), false, -1); }

  function saveCsv() {
    // A leading quote keeps spreadsheets from reading a task's name as a formula.
    const quoted = (text) => '"' + String(text).replace(/^[=+\-@]/, "'$&").replace(/"/g, '""') + '"';
    const lines = ["experimental,estimator,task,cluster,held_out,layer,cka,low,high,n"];
    for (const [model] of models) for (const name of ["debiased", "biased"]) data.tasks.forEach((task, i) => {
      const cells = data.cells[model][name];
      data.layers.forEach((layer, j) => lines.push([model, name, quoted(task.name), quoted(task.cluster), task.held_out,
        layer, cells.cka[i][j] ?? "", cells.low[i][j] ?? "", cells.high[i][j] ?? "", task.n].join(",")));
    });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
    link.download = "cells.csv";
    link.click();
    URL.revokeObjectURL(link.href);
  }

  function drawEstimated() { drawLayers(); drawHeatmap(); drawClusters(); drawHeldOut(); }
  function drawAll() { drawEstimated(); drawEstimators(); drawTraining(); }

  document.querySelectorAll(".estimator").forEach((select) => select.addEventListener("change", () => {
    estimator = select.value;
    document.querySelectorAll(".estimator").forEach((other) => { other.value = estimator; });
    drawEstimated();
  }));
  for (const [id, redraw] of [["layers-show", drawLayers], ["layers-task", drawLayers], ["heatmap-show", drawHeatmap],
    ["heatmap-sort", drawHeatmap], ["cluster-pick", drawClusters]]) at(id).addEventListener("change", redraw);
  at("save-csv").addEventListener("click", saveCsv);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  drawAll();
  document.documentElement.dataset.drawn = "yes";
})();
