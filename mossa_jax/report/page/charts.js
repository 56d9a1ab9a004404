"use strict";

// Draws the interactive charts of the page from the JSON in #data (chart_data.py says what it holds), with drawing.js.
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const layers = data.layer_labels;
  const models = Object.entries(data.names.models);
  let estimator = "debiased";

  // ---------------------------------------------------------------- values and words

  const minus = (a, b) => (a === null || b === null ? null : a - b);
  const taskLabel = (task) => brief(task.cluster, 20) + " · " + brief(task.name, 36);

  // Indices of the tasks that `keep` accepts.
  const rows = (keep) => data.tasks.map((task, i) => i).filter((i) => keep(data.tasks[i], i));
  const cka = (model, i, j) => data.cells[model][estimator].cka[i][j];
  const change = (i, j) => minus(cka("tuned", i, j), cka("pretrained", i, j));

  const taskLines = (i) => {
    const task = data.tasks[i];
    const lines = [safe(task.name), safe(task.cluster) + (task.held_out ? " (held out)" : "")];
    return task.left_out ? [...lines, "left out: " + wrapped(task.left_out)] : lines;
  };

  // Breaks a long sentence, since a label beside the pointer has no width of its own.
  const wrapped = (text) => safe(text).replace(/(.{40}\S*) /g, "$1<br>");

  const cellLines = (i, j, model, name) => {
    const cells = data.cells[model][name];
    return [
      "layer " + data.layers[j] + ", " + data.names.models[model] + ", " + name +
        ": <b>" + shown(cells.cka[i][j]) + "</b>",
      "95 % " + shown(cells.low[i][j]) + " to " + shown(cells.high[i][j]),
    ];
  };

  // The test of one change, if it was made.
  function changeLines(i, j) {
    if (!data.change) return [];
    const { low, high, p, q } = data.change[estimator];
    const lines = [];
    if (low[i][j] !== null) lines.push("95 % of the difference " + shown(low[i][j]) + " to " + shown(high[i][j]));
    if (p[i][j] === null) return [...lines, "not tested"];
    const verdict = isInsignificant(i, j) ? " (not significant: q > 0.05)" : "";
    return [...lines, "p = " + small(p[i][j]) + ", q = " + small(q[i][j]) + verdict];
  }

  const small = (value) => (value === null ? "unknown" : value < 0.001 ? value.toExponential(0) : value.toFixed(3));

  function isInsignificant(i, j) {
    const q = data.change && data.change[estimator].q[i][j];
    return q !== null && q > 0.05;
  }

  const promptsLine = (i) => data.tasks[i].n + " prompts";

  // The label of a task's row; grey for a task that the findings leave out.
  function rowLabel(i) {
    const task = data.tasks[i];
    const label = taskLabel(task) + (task.held_out ? " (held out)" : "");
    return task.left_out ? '<span style="color:' + colour("--faint") + '">' + label + " (left out)</span>" : label;
  }

  function about(i, j, model, name) {
    return [...taskLines(i), ...cellLines(i, j, model, name), promptsLine(i)].join("<br>");
  }

  function aboutBoth(i, j, lastLines) {
    const cells = models.flatMap(([model]) => cellLines(i, j, model, estimator));
    return [...taskLines(i), ...cells, ...lastLines, promptsLine(i)].join("<br>");
  }

  // ---------------------------------------------------------------- drawing

  // Shaded bands behind the sections of the network; none without a transition.
  function bands() {
    const shapes = [], annotations = [];
    if (!data.sections.is_transition) return { shapes, annotations };
    for (const name of ["shared", "transition", "refinement"]) {
      const section = data.sections[name];
      if (!section) continue;
      const [low, high] = section.map((layer) => data.layers.indexOf(String(layer)));
      if (low < 0 || high < 0) continue;
      shapes.push({
        type: "rect", xref: "x", yref: "paper", x0: low - 0.5, x1: high + 0.5, y0: 0, y1: 1,
        fillcolor: data.colours.sections[name], opacity: 0.17, line: { width: 0 }, layer: "below",
      });
      annotations.push({
        x: (low + high) / 2, y: 0.01, xref: "x", yref: "paper", text: name, showarrow: false,
        yanchor: "bottom", font: { size: 12, color: colour("--quiet") },
      });
    }
    return { shapes, annotations };
  }

  // One trace of boxes: a box per layer over the tasks in `picked`.
  function box(name, hue, picked, value, text) {
    const x = [], y = [], labels = [];
    for (const i of picked) {
      data.layers.forEach((_, j) => {
        const v = value(i, j);
        if (v === null) return;
        x.push(layers[j]);
        y.push(v);
        labels.push(text(i, j));
      });
    }
    return {
      type: "box", name, x, y, text: labels, hovertemplate: "%{text}<extra></extra>",
      boxpoints: "all", jitter: 0.5, pointpos: 0,
      marker: { color: hue, size: 3, opacity: 0.45 }, line: { width: 1.3 },
    };
  }

  // A dotted line that follows one task through the boxes.
  function followLine(task, hue, value) {
    return {
      type: "scatter", mode: "lines+markers", x: layers, y: layers.map((_, j) => value(j)),
      line: { color: hue, width: 2.5, dash: "dot" }, name: brief(data.tasks[task].name, 40), hoverinfo: "skip",
    };
  }

  // The ceiling over layers; nothing if it was not measured.
  function ceilingLine() {
    if (!data.ceiling) return [];
    return [{
      type: "scatter", mode: "lines", x: layers, y: data.ceiling[estimator], name: "ceiling",
      line: { color: colour("--ceiling"), width: 2, dash: "dash" },
      hovertemplate: "ceiling, two seeds of one specialist: <b>%{y:.3f}</b><extra></extra>",
    }];
  }

  // Boxes of both models, or of their difference. `followed` is the index of a task, or -1 for none.
  function boxes(id, picked, difference, followed, ceiling) {
    let traces;
    if (difference) {
      traces = [box("tuned minus pre-trained", data.colours.scores.control, picked, change,
        (i, j) => aboutBoth(i, j, changeLines(i, j)))];
    } else {
      traces = models.map(([key, name]) => box(name, data.colours.models[key], picked,
        (i, j) => cka(key, i, j), (i, j) => about(i, j, key, estimator)));
    }
    traces = traces.filter((trace) => trace.y.length);
    if (traces.length && ceiling && !difference) traces.push(...ceilingLine());
    if (followed >= 0 && traces.length) {
      if (difference) {
        traces.push(followLine(followed, colour("--ink"), (j) => change(followed, j)));
      } else {
        for (const [key] of models) {
          traces.push(followLine(followed, data.colours.models[key], (j) => cka(key, followed, j)));
        }
      }
    }
    const title = difference ? "tuned − pre-trained CKA" : "CKA with the specialist";
    draw(id, traces, Object.assign({
      boxmode: "group",
      xaxis: { type: "category", categoryarray: layers, categoryorder: "array", title: { text: "layer" } },
      yaxis: { title: { text: title }, zeroline: difference },
    }, bands()));
  }

  // ---------------------------------------------------------------- the charts, in the order of the page

  function drawLayers() {
    const followed = at("layers-task").value;
    boxes("chart-layers", rows((task) => !task.held_out && !task.left_out), at("layers-show").value === "difference",
      followed === "" ? -1 : Number(followed), true);
  }

  function drawHeatmap() {
    const show = at("heatmap-show").value, sort = at("heatmap-sort").value;
    const difference = show === "difference";
    const value = (i, j) => (difference ? change(i, j) : cka(show, i, j));
    const mean = (i) => {
      const defined = layers.map((_, j) => value(i, j)).filter((v) => v !== null);
      return defined.length ? defined.reduce((a, b) => a + b, 0) / defined.length : -9;
    };
    const order = rows(() => true);
    if (sort === "name") order.sort((a, b) => (data.tasks[a].name < data.tasks[b].name ? -1 : 1));
    if (sort === "mean") order.sort((a, b) => mean(b) - mean(a));

    const reasons = {};
    for (const model of difference ? ["pretrained", "tuned"] : [show]) {
      for (const [i, j, reason] of data.undefined[model]) reasons[i + "," + j] = reason;
    }
    const grid = (cell) => order.map((i) => layers.map((_, j) => cell(i, j)));
    const z = grid(value);
    const text = grid((i, j) => (difference
      ? aboutBoth(i, j, ["difference: <b>" + shown(value(i, j)) + "</b>", ...changeLines(i, j)])
      : about(i, j, show, estimator)));
    const missing = grid((i, j) => (value(i, j) === null ? 1 : null));
    const why = grid((i, j) => safe(data.tasks[i].name) + "<br>layer " + data.layers[j] + ": undefined<br>" +
      safe(reasons[i + "," + j] || "no such cell"));

    const most = Math.max(0.05, ...z.flat().filter((v) => v !== null).map(Math.abs));
    const y = order.map((_, i) => i);
    const common = { type: "heatmap", x: layers, y, hovertemplate: "%{text}<extra></extra>", xgap: 1, ygap: 1 };
    const purpleToOrange = [[0, "#5e3c99"], [0.25, "#b2abd2"], [0.5, "#f7f7f7"], [0.75, "#fdb863"], [1, "#b35806"]];
    const scale = difference
      ? { zmin: -most, zmax: most, colorscale: purpleToOrange }
      : { zmin: 0, zmax: 1, colorscale: "Cividis" };
    const colorbar = { thickness: 12, len: Math.min(1, 0.5 + 5 / order.length) };
    const grey = [[0, data.colours.undefined], [1, data.colours.undefined]];

    // Lines between clusters.
    const lines = [];
    if (sort === "cluster") {
      order.forEach((i, k) => {
        if (!k || data.tasks[i].cluster === data.tasks[order[k - 1]].cluster) return;
        lines.push({
          type: "line", xref: "paper", x0: 0, x1: 1, yref: "y", y0: k - 0.5, y1: k - 0.5,
          line: { color: colour("--ink"), width: 1 },
        });
      });
    }
    // A veil over tasks that the findings leave out. The labels beneath it still answer the pointer.
    order.forEach((i, k) => {
      if (!data.tasks[i].left_out) return;
      lines.push({
        type: "rect", xref: "paper", x0: 0, x1: 1, yref: "y", y0: k - 0.5, y1: k + 0.5,
        fillcolor: colour("--card"), opacity: 0.65, line: { width: 0 },
      });
    });
    const labels = order.map((i) => rowLabel(i));
    const traces = [
      Object.assign({}, common, scale, { z, text, colorbar }),
      Object.assign({}, common, { z: missing, text: why, showscale: false, colorscale: grey }),
    ];
    const dots = order.flatMap((i, k) => layers.map((_, j) => [i, j, k]));
    const marked = difference ? dots.filter(([i, j]) => isInsignificant(i, j)) : [];
    if (marked.length) {
      traces.push({
        type: "scatter", mode: "markers", name: "q > 0.05", showlegend: false, hoverinfo: "skip",
        x: marked.map(([, j]) => layers[j]), y: marked.map(([, , k]) => k), marker: { size: 3.5, color: "#555555" },
      });
    }
    draw("chart-heatmap", traces, {
      height: 130 + 17 * order.length,
      shapes: lines,
      margin: { l: 60, r: 20, t: 36, b: 50 },
      xaxis: {
        type: "category", title: { text: "layer" }, showgrid: false, tickfont: { size: 11 }, tickangle: 0,
        range: [-0.5, layers.length - 0.5],
      },
      yaxis: {
        tickvals: y, ticktext: labels, range: [order.length - 0.5, -0.5], tickfont: { size: 11 }, showgrid: false,
      },
    });
  }

  function drawClusters() {
    const ranking = data.ranking.filter((row) => row.pretrained.mean !== null);
    const y = ranking.map((row, i) => i);
    const interval = ({ low, high }, reason) => (low === null
      ? safe(reason || "no interval")
      : "99 % " + shown(low) + " to " + shown(high));
    const traces = models.map(([key, name]) => ({
      type: "scatter", mode: "markers", name, y,
      x: ranking.map((row) => row[key].mean),
      marker: { color: data.colours.models[key], size: 11, symbol: key === "tuned" ? "square" : "circle" },
      text: ranking.map((row) => [
        safe(row.cluster),
        name + ": <b>" + shown(row[key].mean) + "</b>",
        interval(row[key], row.reason),
        row.n_tasks + " tasks",
      ].join("<br>")),
      hovertemplate: "%{text}<extra></extra>",
      error_x: {
        type: "data", symmetric: false, thickness: 1.4, width: 4,
        array: ranking.map((row) => (row[key].high === null ? 0 : row[key].high - row[key].mean)),
        arrayminus: ranking.map((row) => (row[key].low === null ? 0 : row[key].mean - row[key].low)),
      },
    }));
    draw("chart-ranking", ranking.length ? traces : [], {
      height: 110 + 30 * ranking.length,
      xaxis: { title: { text: "mean CKA (debiased)" } },
      yaxis: {
        tickvals: y, ticktext: ranking.map((row) => brief(row.cluster, 34)), range: [ranking.length - 0.4, -0.6],
      },
    });
    const picked = data.ranking[Number(at("cluster-pick").value)];
    if (picked) boxes("chart-cluster", rows((task) => picked.tasks.includes(task.name)), false, -1, true);
  }

  function drawHeldOut() {
    boxes("chart-held-out", rows((task) => task.held_out && !task.left_out), false, -1, false);
  }

  function drawSpecificity() {
    const traces = [];
    for (const [kind, curve] of Object.entries(data.specificity)) {
      const name = data.names.foreign[kind], hue = data.colours.foreign[kind];
      const x = curve.map((row) => row.layer);
      const bounds = curve.filter((row) => row.low !== null);
      traces.push({
        type: "scatter", mode: "lines", hoverinfo: "skip", showlegend: false, line: { width: 0 }, fill: "toself",
        fillcolor: faded(hue, 0.2), x: [...bounds, ...[...bounds].reverse()].map((row) => row.layer),
        y: [...bounds.map((row) => row.high), ...[...bounds].reverse().map((row) => row.low)],
      }, {
        type: "scatter", mode: "lines+markers", name, x, y: curve.map((row) => row.mean),
        line: { color: hue, width: 2 }, marker: { size: 5 }, hovertemplate: "%{text}<extra></extra>",
        text: curve.map((row) => [
          "layer " + row.layer + ", " + name + ": <b>" + shown(row.mean) + "</b>",
          "95 % " + shown(row.low) + " to " + shown(row.high),
          row.n_tasks + " tasks",
        ].join("<br>")),
      });
    }
    draw("chart-specificity", traces, {
      xaxis: { type: "category", title: { text: "layer" } },
      yaxis: {
        title: { text: "difference of CKA (tuned model)" }, rangemode: "tozero", zeroline: true,
        zerolinecolor: colour("--quiet"),
      },
    });
  }

  function drawEstimators() {
    const traces = [];
    for (const [key, name] of models) {
      const x = [], y = [], text = [], cells = data.cells[key];
      for (const i of rows(() => true)) {
        layers.forEach((_, j) => {
          const debiased = cells.debiased.cka[i][j], biased = cells.biased.cka[i][j];
          if (debiased === null || biased === null) return;
          x.push(debiased);
          y.push(biased);
          text.push(about(i, j, key, "debiased") + "<br>biased: " + shown(biased));
        });
      }
      if (!x.length) continue;
      const symbol = key === "tuned" ? "square" : "circle";
      traces.push({
        type: "scatter", mode: "markers", name, x, y, text, hovertemplate: "%{text}<extra></extra>",
        marker: { size: 4, opacity: 0.5, color: data.colours.models[key], symbol },
      });
    }
    if (traces.length) {
      traces.push({
        type: "scatter", mode: "lines", x: [0, 1], y: [0, 1], name: "equal", hoverinfo: "skip",
        line: { color: colour("--quiet"), dash: "dash", width: 1 },
      });
    }
    draw("chart-estimators", traces, {
      xaxis: { title: { text: "debiased CKA" } },
      yaxis: { title: { text: "biased CKA" } },
    });
  }

  function drawTraining() {
    const specialist = data.colours.scores.control;
    const traces = Object.entries(data.training).map(([model, curve]) => {
      const isTuned = model === "tuned";
      // Further seeds of the multi-task model share its colour.
      const hue = /^tuned($|[.]seed)/.test(model) ? data.colours.scores.tuned : specialist;
      return {
        type: "scatter", mode: "lines", x: curve.step, y: curve.loss, showlegend: isTuned,
        name: isTuned ? "multi-task model" : brief(model, 40),
        opacity: isTuned ? 1 : 0.4, line: { width: isTuned ? 3 : 1, color: hue },
      };
    });
    // The thick line is drawn last, on top of the others.
    traces.sort((a, b) => a.line.width - b.line.width);
    if (traces.some((trace) => trace.line.color === specialist)) {
      traces.push({
        type: "scatter", mode: "lines", x: [null], y: [null], name: "specialists (one line each)",
        line: { width: 1, color: specialist },
      });
    }
    draw("chart-training", traces, {
      xaxis: { title: { text: "training step" } },
      yaxis: { title: { text: "loss per answer token (nats)" }, rangemode: "tozero" },
    });
  }

  function drawScores() {
    const metric = at("scores-show").value;
    const scores = data.scores[metric] || {};
    const measured = rows((task, i) => Object.values(scores).some((column) => column[i] !== null));
    const y = measured.map((_, k) => k);
    const symbols = { base: "circle", tuned: "square", control: "diamond", majority: "line-ns-open" };
    const traces = Object.entries(scores).map(([key, column]) => ({
      type: "scatter", mode: "markers", name: data.names.scores[key], y,
      x: measured.map((i) => column[i]),
      text: measured.map((i) => taskLines(i).join("<br>")),
      hovertemplate: "%{text}<br>" + data.names.scores[key] + ": <b>%{x:.3f}</b><extra></extra>",
      marker: { size: key === "majority" ? 12 : 8, color: data.colours.scores[key], symbol: symbols[key] },
    }));
    const axis = { title: { text: data.names.metrics[metric] || "" }, zeroline: true, zerolinecolor: colour("--quiet") };
    if (metric === "exact_match") axis.range = [-0.03, 1.03];
    draw("chart-scores", measured.length ? traces : [], {
      height: 130 + 17 * measured.length,
      xaxis: axis,
      yaxis: {
        tickvals: y, ticktext: measured.map(rowLabel), range: [measured.length - 0.4, -0.6], tickfont: { size: 11 },
      },
    });
  }

  function saveCsv() {
    // An apostrophe keeps spreadsheets from running a task's name as a formula, as in `files/csv_text.py`.
    const formula = /^(?:[\s'"\x00-\x1f\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20]|['"]*[\t\r\n\x00])/;
    const plain = /^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$/;
    const guarded = (text) => (formula.test(text) && !plain.test(text) ? "'" + text : text);
    const quoted = (text) => '"' + guarded(String(text)).replace(/"/g, '""') + '"';
    const lines = ["experimental,estimator,task,cluster,held_out,left_out,layer,cka,low,high,n"];
    for (const [model] of models) {
      for (const [name, cells] of Object.entries(data.cells[model])) {
        data.tasks.forEach((task, i) => data.layers.forEach((layer, j) => {
          const values = [cells.cka, cells.low, cells.high].map((column) => column[i][j] ?? "");
          const labels = [model, name, quoted(task.name), quoted(task.cluster), task.held_out, Boolean(task.left_out), layer];
          lines.push([...labels, ...values, task.n].join(","));
        }));
      }
    }
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
    link.download = "cells.csv";
    link.click();
    URL.revokeObjectURL(link.href);
  }

  // ---------------------------------------------------------------- the controls

  function drawByEstimator() {
    drawLayers();
    drawHeatmap();
    drawClusters();
    drawHeldOut();
  }

  function drawAll() {
    drawByEstimator();
    drawSpecificity();
    drawEstimators();
    drawTraining();
    drawScores();
  }

  // All selects of the estimator change together.
  document.querySelectorAll(".estimator").forEach((select) => select.addEventListener("change", () => {
    estimator = select.value;
    document.querySelectorAll(".estimator").forEach((other) => { other.value = estimator; });
    drawByEstimator();
  }));
  const redraws = {
    "layers-show": drawLayers,
    "layers-task": drawLayers,
    "heatmap-show": drawHeatmap,
    "heatmap-sort": drawHeatmap,
    "cluster-pick": drawClusters,
    "scores-show": drawScores,
  };
  for (const [id, redraw] of Object.entries(redraws)) at(id).addEventListener("change", redraw);
  at("save-csv").addEventListener("click", saveCsv);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  drawAll();
  document.documentElement.dataset.drawn = "yes";
})();
