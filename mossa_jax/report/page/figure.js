"use strict";

// A view of a chart as plotly's traces and layout; charts/grammar.py says what its panels and marks mean.

const figureOf = (function () {
  const CHAR = 6.4, ROW = 17, INCH = 88, FONT = 12, TICKS = 22, LEGEND_ROW = 20, BAR = 54;
  const SYMBOLS = { triangle: "triangle-up", bar: "line-ns-open", dash: "line-ew-open" };
  const DASHES = { solid: "solid", dash: "dash", dot: "dot" };

  const isNumber = (value) => value !== null && value !== undefined;
  const most = (values) => values.reduce((a, b) => Math.max(a, b), 0);
  const same = (values) => values.every((value) => JSON.stringify(value) === JSON.stringify(values[0]));

  // Breaks a text at spaces into lines of at most `limit` characters; a word of names may be longer.
  function broken(text, limit) {
    const lines = [""];
    for (const word of String(text).split(" ")) {
      const last = lines[lines.length - 1];
      if (last && last.length + 1 + word.length > limit) lines.push(word);
      else lines[lines.length - 1] = last ? last + " " + word : word;
    }
    return lines;
  }
  const label = (text, limit) => broken(text, limit).map(safe).join("<br>");
  const hovers = (texts, limit) => texts.map((text) =>
    String(text).split("\n").map((line) => label(line, limit)).join("<br>"));

  // ---------------------------------------------------------------- traces of marks

  // A mark becomes traces; `panel` holds the names of its axes, `names` what the legend already has.
  function Traces(limit) {
    const traces = [], shapes = [], annotations = [], names = new Set();

    function entry(mark, name = mark.name) {
      // Everything faint means the same, whatever its colour would be.
      const key = name + "|" + (mark.faint ? "faint" : mark.role || "ink");
      const isNew = Boolean(name) && !names.has(key);
      names.add(key);
      return { name: safe(name || ""), legendgroup: key, showlegend: isNew };
    }
    const hueOf = (mark) => (mark.faint ? theme.readable(colour("--faint")) : theme.readable(mark.role || "ink"));
    const hover = (mark) => (mark.hover && mark.hover.length
      ? { text: hovers(mark.hover, limit), hovertemplate: "%{text}<extra></extra>" } : { hoverinfo: "skip" });

    function marker(mark, hue) {
      let symbol = SYMBOLS[mark.symbol] || mark.symbol || "circle";
      if (mark.hollow && !symbol.endsWith("-open")) symbol += "-open";
      const isStroke = symbol.startsWith("line-");
      const size = (mark.size || 6) * 1.25;
      return { symbol, color: hue, size, opacity: (mark.opacity ?? 1) * (mark.faint ? 0.6 : 1),
        line: { width: isStroke ? 2 : mark.hollow ? 1.5 : 0, color: hue } };
    }

    function interval(values, low, high, hue) {
      if (!low || !low.length) return undefined;
      const reach = (end, sign) => values.map((value, i) =>
        (isNumber(value) && isNumber(end[i]) ? sign * (end[i] - value) : 0));
      return { type: "data", symmetric: false, array: reach(high, 1), arrayminus: reach(low, -1), color: hue,
        thickness: 1.2, width: 0 };
    }

    function band(mark, axes, hue, group) {
      const x = [], y = [];
      const close = (rows) => {
        if (!rows.length) return;
        const back = [...rows].reverse();
        x.push(...rows.map((i) => mark.x[i]), ...back.map((i) => mark.x[i]), mark.x[rows[0]], null);
        y.push(...rows.map((i) => mark.high[i]), ...back.map((i) => mark.low[i]), mark.high[rows[0]], null);
      };
      let run = [];
      mark.x.forEach((value, i) => {
        if (isNumber(mark.low[i]) && isNumber(mark.high[i])) run.push(i);
        else { close(run); run = []; }
      });
      close(run);
      traces.push({ type: "scatter", mode: "lines", x, y, fill: "toself", fillcolor: faded(hue, 0.18), line: { width: 0 },
        hoverinfo: "skip", showlegend: false, legendgroup: group, ...axes });
    }

    const kinds = {
      line(mark, axes) {
        const hue = hueOf(mark);
        const place = entry(mark);
        if (mark.low && mark.low.length) band(mark, axes, hue, place.legendgroup);
        traces.push({ type: "scatter", mode: mark.symbol ? "lines+markers" : "lines", x: mark.x, y: mark.y,
          connectgaps: false, opacity: mark.faint ? 0.6 : 1,
          line: { color: hue, width: (mark.width || 1.8) * 1.1, dash: DASHES[mark.dash] || "solid" },
          marker: marker(mark, hue), ...place, ...hover(mark), ...axes });
      },

      points(mark, axes) {
        const hue = hueOf(mark);
        traces.push({ type: "scatter", mode: "markers", x: mark.x, y: mark.y, marker: marker(mark, hue),
          error_x: interval(mark.x, mark.x_low, mark.x_high, hue),
          error_y: interval(mark.y, mark.y_low, mark.y_high, hue), ...entry(mark), ...hover(mark), ...axes });
      },

      boxes(mark, axes) {
        const hue = hueOf(mark), shift = mark.shift || 0, width = mark.width || 0.34;
        const boxes = mark.boxes.filter((one) => one.is_box), few = mark.boxes.filter((one) => !one.is_box);
        const place = entry(mark);
        if (boxes.length) {
          traces.push({ type: "box", x: boxes.map((one) => one.at + shift), q1: boxes.map((one) => one.quartiles[0]),
            median: boxes.map((one) => one.quartiles[1]), q3: boxes.map((one) => one.quartiles[2]),
            lowerfence: boxes.map((one) => one.whiskers[0]), upperfence: boxes.map((one) => one.whiskers[1]), width,
            boxpoints: false, fillcolor: faded(hue, 0.22), line: { color: hue, width: 1.6 }, whiskerwidth: 0.5,
            hoverinfo: "skip", ...place, ...axes });
        }
        if (few.length) {
          const ends = (one, sign) => one.at + shift + sign * width / 2;
          traces.push({ type: "scatter", mode: "lines", x: few.flatMap((one) => [ends(one, -1), ends(one, 1), null]),
            y: few.flatMap((one) => [one.quartiles[1], one.quartiles[1], null]), line: { color: hue, width: 2.2 },
            hoverinfo: "skip", ...place, showlegend: place.showlegend && !boxes.length, ...axes });
        }
        // Values lie side by side in the box, the same way every time.
        const spread = (one, i) => one.at + shift + width * 0.7 * (((i * 0.618) % 1) - 0.5);
        const points = mark.boxes.flatMap((one) => one.values.map((value, i) =>
          ({ x: spread(one, i), y: value, text: (one.hover || [])[i] || "", few: !one.is_box })));
        traces.push({ type: "scatter", mode: "markers", x: points.map((point) => point.x), y: points.map((point) => point.y),
          ...hover({ hover: points.map((point) => point.text) }),
          marker: few.length ? { size: points.map((point) => (point.few ? 6 : 4)), color: hue,
            opacity: points.map((point) => (point.few ? 0.9 : 0.55)) } : { size: 4, color: hue, opacity: 0.55 },
          legendgroup: place.legendgroup, showlegend: false, ...axes });
        traces.push({ type: "scatter", mode: "markers", x: mark.boxes.map((one) => one.at + shift),
          y: mark.boxes.map((one) => one.quartiles[1]), marker: { size: 7, color: hue, opacity: 0 },
          ...hover({ hover: mark.summaries }),
          legendgroup: place.legendgroup, showlegend: false, ...axes });
      },

      bars(mark, axes) {
        const hue = hueOf(mark), values = mark.level ? mark.x : mark.y;
        const lengths = mark.base && mark.base.length ? values.map((value, i) => value - mark.base[i]) : values;
        const ends = interval(values, mark.low, mark.high, colour("--ink"));
        traces.push({ type: "bar", orientation: mark.level ? "h" : "v", x: mark.level ? lengths : mark.x,
          y: mark.level ? mark.y : lengths, base: mark.base && mark.base.length ? mark.base : undefined,
          width: mark.width || 0.8, textposition: "none", marker: { color: hue, opacity: mark.faint ? 0.5 : 0.9 },
          [mark.level ? "error_x" : "error_y"]: ends, ...entry(mark), ...hover(mark), ...axes });
      },

      heat(mark, axes, panel) {
        const rows = mark.values.map((row, i) => i), columns = (mark.values[0] || []).map((value, j) => j);
        const text = rows.map((i) => hovers(columns.map((j) =>
          [(mark.hover || [])[i], ((mark.cells || [])[i] || [])[j]].filter(Boolean).join("\n")), limit));
        const gap = panel.cell > 7 ? 1 : 0;
        const common = { type: "heatmap", x: columns, y: rows, text, xgap: gap, ygap: gap, hoverongaps: false,
          hovertemplate: "%{text}<extra></extra>", ...axes };
        const values = mark.values.flat().filter(isNumber);
        const isChange = mark.scale === "change";
        const largest = mark.high ?? Math.max(1e-6, most(values.map(Math.abs)));
        const zmin = isChange ? mark.low ?? -largest : mark.low ?? 0, zmax = isChange ? largest : mark.high ?? 1;
        traces.push({ ...common, z: mark.values, zmin, zmax, colorscale: theme.scale(mark.scale || "share"),
          colorbar: panel.bar && { ...panel.bar.place, title: { text: label(mark.bar || "", panel.bar.room / CHAR), side: "top", font: { size: FONT } } },
          showscale: Boolean(panel.bar) });
        if (values.length < rows.length * columns.length) {
          const hue = theme.raw("undefined");
          traces.push({ ...common, z: mark.values.map((row) => row.map((value) => (isNumber(value) ? null : 1))),
            colorscale: [[0, hue], [1, hue]], showscale: false });
          key("undefined", { symbol: "square", color: hue, size: 11 }, axes);
        }
        if (mark.hatched) hatch(mark, axes);
        if (mark.groups && panel.parted) part(mark, axes);
      },

      span(mark, axes, panel) {
        const [across, along] = mark.axis === "y" ? ["y", "x"] : ["x", "y"];
        shapes.push({ type: "rect", layer: "below", line: { width: 0 }, fillcolor: theme.raw(mark.role || "ink"),
          opacity: mark.opacity ?? 0.15, [across + "ref"]: axes[across + "axis"], [along + "ref"]: axes[along + "axis"] + " domain",
          [across + "0"]: mark.low, [across + "1"]: mark.high, [along + "0"]: 0, [along + "1"]: 1 });
        if (mark.name) key(mark.name, { symbol: "square", color: theme.raw(mark.role || "ink"), size: 11, opacity: 0.5 }, axes);
        if (!mark.label) return;
        if (mark.axis === "y") {
          write(mark.label, axes, { x: 1, xref: axes.xaxis + " domain", xanchor: "right", y: mark.high, yref: axes.yaxis,
            yanchor: "bottom" });
        } else {
          const room = Math.abs(mark.high - mark.low) * panel.unit, isNarrow = room < CHAR * mark.label.length;
          write(mark.label, axes, { x: (mark.low + mark.high) / 2, xref: axes.xaxis, y: 1, yref: axes.yaxis + " domain",
            yanchor: isNarrow ? "top" : "bottom", textangle: isNarrow ? -90 : 0 });
        }
      },

      rule(mark, axes, panel) {
        const line = { color: hueOf(mark), width: 1.4, dash: DASHES[mark.dash] || "solid" };
        if (mark.axis === "diagonal") {
          const [low, high] = panel.diagonal;
          traces.push({ type: "scatter", mode: "lines", x: [low, high], y: [low, high], line, hoverinfo: "skip",
            ...entry(mark), ...axes });
          return;
        }
        const [across, along] = mark.axis === "x" ? ["x", "y"] : ["y", "x"];
        const at = mark.at || 0;
        shapes.push({ type: "line", line, [across + "ref"]: axes[across + "axis"], [across + "0"]: at, [across + "1"]: at,
          [along + "ref"]: axes[along + "axis"] + " domain", [along + "0"]: 0, [along + "1"]: 1 });
        if (mark.name) {
          traces.push({ type: "scatter", mode: "lines", x: [null], y: [null], line, ...entry(mark), ...axes });
        }
        if (!mark.label) return;
        write(mark.label, axes, across === "y"
          ? { x: 1, xref: axes.xaxis + " domain", xanchor: "right", y: at, yref: axes.yaxis, yanchor: "bottom" }
          : { x: at, xref: axes.xaxis, xanchor: "left", y: 1, yref: axes.yaxis + " domain", yanchor: "top" });
      },
    };

    function write(text, axes, place, size = FONT - 1, hue = colour("--quiet")) {
      annotations.push({ text: safe(text), showarrow: false, font: { size, color: hue }, ...place });
    }

    // An entry of the legend for what no trace stands for.
    function key(name, mark, axes) {
      const place = entry({ name, role: "key" });
      if (place.showlegend) {
        traces.push({ type: "scatter", mode: "markers", x: [null], y: [null], marker: mark, hoverinfo: "skip", ...place, ...axes });
      }
    }

    // A stroke with a halo, so that it is seen on every colour, and which the pointer does not find.
    function hatch(mark, axes) {
      const x = [], y = [];
      mark.hatched.forEach((row, i) => row.forEach((is, j) => {
        if (!is || !isNumber(mark.values[i][j])) return;
        x.push(j - 0.3, j + 0.3, null);
        y.push(i + 0.3, i - 0.3, null);
      }));
      const place = entry({ name: mark.hatched_name || "", role: "hatch" });
      const common = { type: "scatter", mode: "lines", x, y, hoverinfo: "skip", legendgroup: place.legendgroup, ...axes };
      traces.push({ ...common, line: { color: colour("--plot"), width: 2.6 }, opacity: 0.75, showlegend: false });
      traces.push({ ...common, line: { color: colour("--ink"), width: 1 }, name: place.name, showlegend: place.showlegend });
    }

    // Lines between the groups of rows, and the names of groups at their right where there is room.
    function part(mark, axes) {
      let start = 0;
      mark.groups.forEach((group, i) => {
        if (i + 1 < mark.groups.length && mark.groups[i + 1] === group) return;
        if (i + 1 < mark.groups.length) {
          shapes.push({ type: "line", xref: axes.xaxis + " domain", x0: 0, x1: 1, yref: axes.yaxis, y0: i + 0.5, y1: i + 0.5,
            line: { color: colour("--ink"), width: 1 } });
        }
        write(cut(group, 22), axes, { x: 1, xref: axes.xaxis + " domain", xanchor: "left", xshift: 4, y: (start + i) / 2,
          yref: axes.yaxis, yanchor: "middle" }, FONT - 2);
        start = i + 1;
      });
    }

    return { traces, shapes, annotations, write, add: (mark, axes, panel) => kinds[mark.kind](mark, axes, panel) };
  }

  // ---------------------------------------------------------------- ends of axes

  function extent(panels, side) {
    let low = Infinity, high = -Infinity;
    const take = (values) => (values || []).forEach((value) => {
      if (!isNumber(value)) return;
      low = Math.min(low, value);
      high = Math.max(high, value);
    });
    for (const { marks } of panels) {
      for (const mark of marks) {
        if (mark.kind === "boxes") {
          if (side === "y") mark.boxes.forEach((one) => take(one.values));
          else mark.boxes.forEach((one) => take([one.at - 0.5, one.at + 0.5]));
        } else if (mark.kind === "bars") {
          const isValue = (side === "x") === Boolean(mark.level);
          take(mark[side]);
          if (isValue) [mark.low, mark.high, mark.base && mark.base.length ? mark.base : [0]].forEach(take);
          else mark[side].forEach((value) => take([value - (mark.width || 0.8) / 2, value + (mark.width || 0.8) / 2]));
        } else if (mark.kind === "heat") {
          take([-0.5, (side === "y" ? mark.values.length : (mark.values[0] || []).length) - 0.5]);
        } else if (mark.kind === "span" || mark.kind === "rule") {
          if ((mark.axis || (mark.kind === "span" ? "x" : "y")) === side) take(mark.kind === "span" ? [mark.low, mark.high] : [mark.at || 0]);
        } else {
          take(mark[side]);
          take(mark[side + "_low"]);
          take(mark[side + "_high"]);
          if (side === "y" && mark.kind === "line") [mark.low, mark.high].forEach(take);
        }
      }
    }
    return low <= high ? [low, high] : null;
  }

  // Panels whose axes measure the same have the same ends, so that they can be compared.
  function ends(panels, panel, side) {
    const axis = panel[side];
    let range;
    if (axis.names && axis.names.length) {
      range = [axis.low ?? -0.5, axis.high ?? axis.names.length - 0.5];
    } else {
      const group = panels.filter((other) => other[side].label === axis.label && !(other[side].names || []).length);
      range = extent(group, side) || [axis.low ?? 0, axis.high ?? 1];
      if (axis.log) {
        const floor = Math.max(range[0], 1e-12);
        const [low, high] = [Math.log10(floor), Math.log10(Math.max(range[1], floor * 1.0001))], pad = 0.04 * (high - low) + 0.02;
        range = [isNumber(axis.low) ? Math.log10(axis.low) : low - pad, isNumber(axis.high) ? Math.log10(axis.high) : high + pad];
      } else {
        const pad = 0.04 * (range[1] - range[0] || Math.abs(range[0]) || 1);
        range = [axis.low ?? range[0] - pad, axis.high ?? range[1] + pad];
      }
    }
    return axis.reverse ? [range[1], range[0]] : range;
  }

  // ---------------------------------------------------------------- the places of panels

  const isHeat = (panel) => panel.marks.some((mark) => mark.kind === "heat");
  const nameLimit = (panel, width) => Math.max(8, Math.floor(Math.min(300, width * (width < 560 ? 0.36 : 0.3)) / CHAR));
  const nameWidth = (panel, width) =>
    Math.min(nameLimit(panel, width), most((panel.y.names || []).map((name) => name.length))) * CHAR + 8;

  function places(spec, view, room) {
    const panels = view.panels;
    const hasNames = panels.some((panel) => (panel.y.names || []).length);
    const least = hasNames ? 320 : 165;
    const columns = Math.max(1, Math.min(view.columns || 1, panels.length, Math.floor(room / least)));
    const isShared = columns > 1 && same(panels.map(({ y }) => [y.label, y.names, y.percent, y.log, y.low, y.high]));
    const isSharedX = same(panels.map(({ x }) => [x.label, x.names]));
    const isParted = panels.some((panel) => panel.marks.some((mark) => mark.kind === "heat" && mark.groups)) && room >= 560;
    const right = isParted ? 150 : 14;
    const left = (panel) => 4 + ((panel.y.names || []).length ? nameWidth(panel, room) : panel.y.ticks === false ? 6 : 44);
    const gaps = Array.from({ length: columns }, (_, column) => (isShared && column
      ? 14 : most(panels.filter((panel, i) => i % columns === column).map((panel) => left(panel) + (panel.y.label ? 20 : 0)))));
    const gapsWidth = gaps.reduce((a, b) => a + b, 0) + right * (isParted ? columns : 1) + (isParted ? 0 : 10 * (columns - 1));
    const needed = most(panels.map((panel) => (panel.x.names || []).length * (isHeat(panel) ? 8 : 9)));
    const plotWidth = Math.max((room - gapsWidth) / columns, columns === 1 ? Math.min(needed, 1400) : 60, 60);
    const width = Math.max(room, plotWidth * columns + gapsWidth);
    const isNarrow = room < 560;

    const rows = Math.ceil(panels.length / columns), boxes = [];
    let top = 0;
    for (let row = 0; row < rows; row += 1) {
      const line = panels.slice(row * columns, (row + 1) * columns);
      const hasTitle = line.some((panel) => panel.title || panel.note);
      const hasLabels = line.some((panel) => panel.marks.some((mark) => mark.kind === "span" && mark.label && mark.axis !== "y"));
      const hasBar = line.some((panel) => panel.marks.some((mark) => mark.kind === "heat"));
      const bar = hasBar ? BAR + (isNarrow ? 14 : 0) : 0;
      const head = (hasTitle ? 22 : 4) + (hasLabels ? 16 : 0) + bar;
      const feet = line.map((panel, column) => {
        const isLast = row * columns + column + columns >= panels.length;
        const title = panel.x.label && (isLast || !isSharedX) ? 6 + 15 * broken(panel.x.label, plotWidth / CHAR).length : 4;
        return tickHeight(panel, plotWidth) + title;
      });
      const heights = line.map((panel) => {
        const names = (panel.y.names || []).length;
        if (isHeat(panel)) return names * ROW;
        const wanted = (spec.height || 4.2) * INCH - head - most(feet);
        return Math.max(110, isNarrow ? Math.min(wanted, names ? wanted : 300) : wanted, names * ROW);
      });
      const height = most(heights), foot = most(feet);
      line.forEach((panel, column) => {
        const start = gaps.slice(0, column + 1).reduce((a, b) => a + b, 0) + column * (plotWidth + (isParted ? right : 10));
        const isLast = row * columns + column + columns >= panels.length;
        boxes.push({ left: start, top: top + head, width: plotWidth, height: isHeat(panel) ? heights[column] : height,
          head: (hasLabels ? 16 : 0) + bar, showsX: isLast || !isSharedX, showsY: !isShared || column === 0,
          isParted });
      });
      top += head + height + foot + 8;
    }
    return { boxes, width, height: top };
  }

  function tickHeight(panel, plotWidth) {
    const names = panel.x.names || [];
    if (!names.length) return panel.x.ticks === false ? 4 : TICKS;
    return isTurned(names, plotWidth) ? Math.min(24, most(names.map((name) => name.length))) * CHAR * 0.72 + 14 : TICKS;
  }
  const isTurned = (names, plotWidth) => most(names.map((name) => name.length)) > 5
    && most(names.map((name) => name.length)) * CHAR + 6 > plotWidth / names.length;

  function ticks(axis, side, box, panel, room) {
    const names = axis.names || [];
    if (axis.ticks === false) return { showticklabels: false, showgrid: false, ticks: "" };
    if (!names.length) return axis.percent ? { tickformat: ".0%" } : { nticks: Math.max(3, Math.round((side === "x" ? box.width / 70 : box.height / 45))) };
    if (side === "y") {
      const faint = new Set(panel.marks.flatMap((mark) => mark.faint_rows || []));
      const limit = nameLimit(panel, room);
      const step = Math.max(1, Math.ceil(11 * names.length / box.height));
      const kept = names.map((_, i) => i).filter((i) => i % step === 0);
      const text = (i) => (faint.has(i) ? `<span style="color:${colour("--faint")}">${brief(names[i], limit)}</span>` : brief(names[i], limit));
      return { tickvals: kept, ticktext: kept.map(text), showgrid: false };
    }
    const turned = isTurned(names, box.width);
    const slot = box.width / names.length, size = turned ? 13 : most(names.map((name) => name.length)) * CHAR + 6;
    const step = [1, 2, 4, 5, 8, 10, 20, 40].find((one) => one * slot >= size) || 40;
    const kept = names.map((_, i) => i).filter((i) => i % step === 0);
    return { tickvals: kept, ticktext: kept.map((i) => brief(names[i], 24)), tickangle: turned ? -45 : 0, showgrid: false };
  }

  // ---------------------------------------------------------------- the whole

  function legendHeight(traces, width) {
    const entries = traces.filter((trace) => trace.showlegend && trace.name);
    if (entries.length < 1) return 0;
    const sizes = entries.map((trace) => 44 + 6.3 * trace.name.length);
    const total = sizes.reduce((a, b) => a + b, 0);
    const rows = total <= width ? 1 : Math.ceil(entries.length / Math.max(1, Math.floor(width / most(sizes))));
    return rows * LEGEND_ROW + 10;
  }

  // Small multiples name an axis once; on a narrow screen another panel may begin a row.
  function named(panels) {
    const labels = (side) => [...new Set(panels.map((panel) => panel[side].label || ""))].filter(Boolean);
    const [x, y] = [labels("x"), labels("y")];
    const axis = (panel, side, list) => (list.length === 1 ? { ...panel[side], label: list[0] } : panel[side]);
    return panels.map((panel) => ({ ...panel, x: axis(panel, "x", x), y: axis(panel, "y", y) }));
  }

  function figureOf(spec, asked, room, marked) {
    const view = { ...asked, panels: named(asked.panels) };
    const { boxes, width, height } = places(spec, view, room);
    const made = Traces(room < 560 ? 38 : 64);
    const layout = {};
    const before = view.panels.map((panel, i) => {
      const box = boxes[i], number = i ? String(i + 1) : "";
      const axes = { xaxis: "x" + number, yaxis: "y" + number };
      const [xRange, yRange] = [ends(view.panels, panel, "x"), ends(view.panels, panel, "y")];
      const diagonal = [Math.max(Math.min(...xRange), Math.min(...yRange)), Math.min(Math.max(...xRange), Math.max(...yRange))];
      const about = { cell: box.width / Math.max(1, (panel.x.names || []).length), unit: box.width / Math.abs(xRange[1] - xRange[0]),
        diagonal, parted: box.isParted && !spec.sorted, bar: null };
      return { panel, box, axes, number, xRange, yRange, about };
    });
    // The legend's height is known when all marks are there, and the colour bars' places when the legend's height is.
    const draft = Traces(64);
    for (const { panel, axes, about } of before) for (const mark of panel.marks) draft.add(mark, axes, about);
    const top = legendHeight(draft.traces, width), whole = height + top;
    for (const { panel, box, axes, number, xRange, yRange, about } of before) {
      const upper = 1 - (box.top + top) / whole, lower = 1 - (box.top + top + box.height) / whole;
      const start = box.left / width, end = (box.left + box.width) / width;
      const length = Math.min(320, box.width);
      const place = { orientation: "h", thickness: 9, x: start, xanchor: "left", len: length / width,
        y: upper + 6 / whole, yanchor: "bottom", xpad: 0, ypad: 0, outlinewidth: 0, tickfont: { size: FONT - 2 }, nticks: 5 };
      about.bar = { place, room: length };
      for (const mark of panel.marks) made.add(mark, axes, about);
      const base = { gridcolor: colour("--line"), linecolor: colour("--line"), zeroline: false, automargin: false,
        tickfont: { size: FONT - 1 }, showline: true };
      const zero = { zeroline: true, zerolinecolor: colour("--quiet"), zerolinewidth: 1.2 };
      layout["xaxis" + number] = { ...base, ...(panel.x.zero ? zero : {}), type: panel.x.log ? "log" : "linear", domain: [start, end],
        anchor: axes.yaxis, range: xRange, ...ticks(panel.x, "x", box, panel, room),
        title: box.showsX ? { text: label(panel.x.label || "", box.width / CHAR), font: { size: FONT }, standoff: 4 } : undefined };
      layout["yaxis" + number] = { ...base, ...(panel.y.zero ? zero : {}), type: panel.y.log ? "log" : "linear", domain: [lower, upper],
        anchor: axes.xaxis, range: yRange, ...ticks(panel.y, "y", box, panel, room),
        title: box.showsY ? { text: label(panel.y.label || "", box.height / CHAR), font: { size: FONT }, standoff: 4 } : undefined };
      if (!box.showsY) layout["yaxis" + number].showticklabels = false;
      const above = { yref: "paper", y: upper, yanchor: "bottom", yshift: box.head + 2, xref: "paper" };
      const half = Math.floor(box.width / CHAR);
      const title = panel.title || "", hasNote = panel.note && title.length + panel.note.length + 6 <= half;
      if (title) made.write(cut(title, half), axes, { ...above, x: start, xanchor: "left" }, FONT, colour("--ink"));
      if (hasNote) made.write(panel.note, axes, { ...above, x: end, xanchor: "right" });
      if (!panel.has_data) {
        made.annotations.push({ text: label(panel.empty || "Nothing is defined here.", box.width / CHAR), showarrow: false, xanchor: "center", x: (start + end) / 2,
          y: (upper + lower) / 2, xref: "paper", yref: "paper", font: { color: colour("--quiet") } });
      }
      const names = (panel.x.names || []);
      if (marked && names.length) {
        const [low, high] = marked.map((name) => names.indexOf(name));
        if (low >= 0 && high >= low) {
          made.shapes.push({ type: "rect", xref: axes.xaxis, x0: low - 0.5, x1: high + 0.5, yref: axes.yaxis + " domain", y0: 0, y1: 1,
            line: { color: colour("--ink"), width: 2, dash: "dot" }, fillcolor: "rgba(0,0,0,0)" });
        }
      }
    }
    Object.assign(layout, {
      width, height: whole, margin: { l: 0, r: 0, t: 0, b: 0 }, shapes: made.shapes, annotations: made.annotations,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: colour("--plot"), barmode: "overlay", boxmode: "overlay", hovermode: "closest",
      font: { family: "system-ui, sans-serif", size: FONT, color: colour("--ink") },
      hoverlabel: { align: "left", namelength: -1 }, hoverdistance: 14,
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1, yanchor: "top", font: { size: FONT }, bgcolor: "rgba(0,0,0,0)", tracegroupgap: 0,
        // The entries of small points would hardly be seen.
        itemsizing: made.traces.every((trace) => !trace.showlegend || trace.mode === "markers") ? "constant" : "trace" },
      showlegend: top > 0, dragmode: matchMedia("(pointer: fine)").matches ? "zoom" : false,
    });
    return { data: made.traces, layout };
  }
  return figureOf;
})();
