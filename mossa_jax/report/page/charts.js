"use strict";

// Draws the charts of the page with plotly, whatever they show: each is packed beside its place (interactive.py says what
// it holds, charts/grammar.py what it means). A chart is drawn when it comes near the screen. What it shows stands in the
// address: "#layers?estimator=biased&task=t05&mark=17-32".

// ------------------------------------------------------------------ packed texts

async function unpacked(element) {
  const bytes = Uint8Array.from(atob(element.textContent.trim()), (char) => char.charCodeAt(0));
  element.textContent = "";
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

// ------------------------------------------------------------------ colours

const theme = (function () {
  const channels = (hue) => [1, 3, 5].map((start) => parseInt(hue.slice(start, start + 2), 16));
  const luminance = (hue) => {
    const [red, green, blue] = channels(hue).map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const contrast = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const mixed = (one, other, share) => "#" + channels(one).map((value, i) =>
    Math.round(value + share * (channels(other)[i] - value)).toString(16).padStart(2, "0")).join("");
  const isHex = (hue) => /^#[0-9a-f]{6}$/i.test(hue);

  // The colour of a role, or a colour of its own, at least 3:1 against the ground of the charts.
  function readable(role) {
    let hue = raw(role);
    const ground = colour("--plot"), ink = colour("--ink");
    for (let step = 0; step < 10 && contrast(hue, ground) < 3; step += 1) hue = mixed(hue, ink, 0.15);
    return hue;
  }

  // The same without that, for areas.
  function raw(role) {
    const hue = isHex(role) ? role : colour(role === "ink" ? "--ink" : "--role-" + role);
    return isHex(hue) ? hue : colour("--ink");
  }

  const isDark = () => luminance(colour("--plot")) < 0.2;

  // Scales without red beside green, whose middle or lower end is the ground of the page.
  const scales = {
    share: {
      light: ["#f4f8fc", "#c3dbee", "#74b2d7", "#2b7bba", "#0a3d78"],
      dark: ["#1d2731", "#1f4e79", "#2f86bd", "#7fc0e8", "#e3f3ff"],
    },
    change: {
      light: ["#542788", "#998ec3", "#f4f4f4", "#f1a340", "#994a00"],
      dark: ["#c4b2ff", "#7a66b3", "#252d36", "#b9702a", "#ffc27a"],
    },
  };
  function scale(name) {
    const colours = scales[name][isDark() ? "dark" : "light"];
    return colours.map((hue, i) => [i / (colours.length - 1), hue]);
  }
  return { readable, raw, scale };
})();

// ------------------------------------------------------------------ a view as plotly's traces and layout

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

// ------------------------------------------------------------------ files

const files = (function () {
  function save(parts, type, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(parts, { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  function crc(bytes) {
    let sum = 0xffffffff;
    for (const byte of bytes) {
      sum ^= byte;
      for (let bit = 0; bit < 8; bit += 1) sum = (sum >>> 1) ^ (sum & 1 ? 0xedb88320 : 0);
    }
    return (sum ^ 0xffffffff) >>> 0;
  }

  // A PNG that says how large it wants to be printed: a chunk pHYs behind the header, which ends at byte 33.
  function withResolution(png, dotsPerInch) {
    const chunk = new DataView(new ArrayBuffer(21)), dots = Math.round(dotsPerInch / 0.0254);
    chunk.setUint32(0, 9);
    [..."pHYs"].forEach((char, i) => chunk.setUint8(4 + i, char.charCodeAt(0)));
    chunk.setUint32(8, dots);
    chunk.setUint32(12, dots);
    chunk.setUint8(16, 1);
    chunk.setUint32(17, crc(new Uint8Array(chunk.buffer, 4, 13)));
    return [png.subarray(0, 33), new Uint8Array(chunk.buffer), png.subarray(33)];
  }

  // The state shown, with its title, on the ground of the page.
  async function picture(format, figure, spec) {
    const { width, height } = figure.layout, head = 34;
    const layout = { ...figure.layout, height: height + head, margin: { l: 0, r: 0, b: 0, t: head }, paper_bgcolor: colour("--card"),
      legend: { ...figure.layout.legend },
      title: { text: safe(spec.title), x: 0.01, xanchor: "left", y: 1 - 17 / (height + head), yanchor: "middle", font: { size: 15 } } };
    const scale = format === "png" ? 300 / 96 : 1;
    const uri = await Plotly.toImage({ data: figure.data, layout }, { format, width, height: height + head, scale });
    const body = uri.slice(uri.indexOf(",") + 1);
    if (format === "svg") save([decodeURIComponent(body)], "image/svg+xml", spec.file + ".svg");
    else save(withResolution(Uint8Array.from(atob(body), (char) => char.charCodeAt(0)), 300), "image/png", spec.file + ".png");
  }

  // The numbers of a chart, row by row, the names of the columns first.
  function rows(spec) {
    const columns = spec.table.map((column) => [column.name, ...cellsOf(column)]);
    return columns[0].map((_, i) => columns.map((column) => column[i]));
  }

  function csv(spec) {
    const cell = (text) => (/[",\r\n]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text);
    return rows(spec).map((row) => row.map(cell).join(",") + "\n").join("");
  }
  return { save, picture, rows, csv };
})();

// ------------------------------------------------------------------ packed texts

// The cells of a column that `interactive.py` packed: every text, or every text once and the place of each cell's.
const cellsOf = (column) => (column.rows ? column.rows.map((place) => column.texts[place]) : column.texts);

// Puts the hover texts of a chart together again, which are packed line by line.
function unfolded(spec) {
  const texts = ({ lines }) => {
    const columns = lines.map(cellsOf);
    return (columns[0] || []).map((_, i) => columns.map((column) => column[i]).filter((line) => line !== null).join("\n"));
  };
  const rows = (flat, width) => Array.from({ length: width ? flat.length / width : 0 }, (_, i) => flat.slice(i * width, (i + 1) * width));
  const marks = spec.views.flatMap((view) => view.panels.flatMap((panel) => panel.marks || []));
  for (const one of marks.flatMap((mark) => [mark, ...(mark.boxes || [])])) {
    if (one.hover) one.hover = texts(one.hover);
    if (one.cells) one.cells = rows(texts(one.cells), one.cells.width);
  }
  return spec;
}

// ------------------------------------------------------------------ the charts of the page

const mossa = (function () {
  const SHARED = "estimator", TABLE_ROWS = 3000;
  const charts = new Map();
  let plotly = null;

  // Plotly is unpacked once, when the first chart needs it.
  function ready() {
    plotly = plotly || unpacked(at("plotly")).then((code) => {
      const script = document.createElement("script");
      script.textContent = code;
      document.head.append(script);
    });
    return plotly;
  }

  const specOf = (chart) => (chart.spec = chart.spec
    || unpacked(chart.figure.querySelector(".packed")).then((text) => unfolded(JSON.parse(text))));

  // ---------------------------------------------------------------- what a chart shows

  function viewOf(spec, values) {
    const agreement = (view) => Object.entries(view.choices || {}).filter(([name, value]) => values[name] === value).length;
    const best = spec.views.reduce((a, b) => (agreement(b) > agreement(a) ? b : a));
    const marks = (panel) => panel.marks.filter((mark) => !mark.on_request || mark.on_request === values.task);
    return { ...best, panels: best.panels.map((panel) => arranged({ ...panel, marks: marks(panel) }, values)) };
  }

  // The rows of a heat map that a reader asks for, in the order asked for.
  function arranged(panel, values) {
    const heat = panel.marks.find((mark) => mark.kind === "heat");
    if (!heat || !(values.rows || values.group || values.sort)) return panel;
    const names = panel.y.names || [], groups = heat.groups || [];
    const wanted = (values.rows || "").toLowerCase();
    const text = (i) => (names[i] + " " + (groups[i] || "")).toLowerCase();
    const order = names.map((_, i) => i).filter((i) => text(i).includes(wanted) && (!values.group || groups[i] === values.group));
    const mean = (i) => {
      const defined = heat.values[i].filter((value) => value !== null && value !== undefined);
      return defined.length ? defined.reduce((a, b) => a + b, 0) / defined.length : -Infinity;
    };
    if (values.sort === "name") order.sort((a, b) => (names[a] < names[b] ? -1 : names[a] > names[b] ? 1 : 0));
    if (values.sort === "mean") order.sort((a, b) => mean(b) - mean(a));
    const taken = (list) => list && list.length ? order.map((i) => list[i]) : list;
    const marks = panel.marks.map((mark) => (mark.kind !== "heat" ? mark : { ...mark, values: taken(mark.values), hover: taken(mark.hover),
      cells: taken(mark.cells), hatched: taken(mark.hatched), groups: values.sort ? undefined : taken(mark.groups),
      faint_rows: order.map((row, i) => [row, i]).filter(([row]) => (mark.faint_rows || []).includes(row)).map(([, i]) => i) }));
    if (!order.length) return { ...panel, y: { ...panel.y, names: [] }, marks: [], has_data: false, empty: "No row has this name." };
    return { ...panel, y: { ...panel.y, names: taken(names) }, marks };
  }

  const controls = (chart) => [...chart.figure.querySelectorAll("[data-key]")];
  const valuesOf = (chart) => Object.fromEntries(controls(chart).map((control) => [control.dataset.key, control.value]));
  const defaultOf = (control) => (control.options ? control.options[0].value : "");

  // ---------------------------------------------------------------- drawing

  function draw(chart) {
    chart.drawing = (chart.drawing || Promise.resolve()).then(async () => {
      const [spec] = await Promise.all([specOf(chart), ready()]);
      const place = chart.place;
      if (!place.clientWidth) return;
      chart.width = place.clientWidth;
      chart.shown = figureOf(spec, viewOf(spec, valuesOf(chart)), chart.width, chart.mark);
      await Plotly.react(place, chart.shown.data, chart.shown.layout, { ...OFFLINE, displayModeBar: false, responsive: false, scrollZoom: false });
      place.style.minHeight = "";
      if (!chart.isDrawn && chart.figure.querySelector("[data-key=rows]")) place.on("plotly_click", askForCard);
      chart.isDrawn = true;
      chart.reading = null;
    });
    return chart.drawing;
  }
  // A row of a list of tasks leads to the task's card (task_cards.js), whose name begins the text at the pointer.
  function askForCard({ points }) {
    const words = document.createElement("template");
    words.innerHTML = points[0].text.replace(/<br>/g, "\n");
    document.dispatchEvent(new CustomEvent("open-task", { detail: words.content.textContent }));
  }

  const redraw = (chart) => (chart.isDrawn ? draw(chart) : Promise.resolve());

  // ---------------------------------------------------------------- reading with keys

  // The points of a chart in rows: one per trace, or per row of a heat map.
  function rowsOf(place) {
    const rows = [];
    const speaks = (trace) => trace.text && trace.hoverinfo !== "skip" && trace.visible !== "legendonly";
    place.data.forEach((trace, curveNumber) => {
      if (!speaks(trace)) return;
      if (trace.type === "heatmap") {
        const next = place.data[curveNumber + 1];
        const other = next && next.type === "heatmap" && next.xaxis === trace.xaxis && next.z.length === trace.z.length ? curveNumber + 1 : null;
        if (curveNumber && trace.showscale === false && trace.colorscale[0][1] === trace.colorscale[1][1]) return;
        trace.text.forEach((texts, i) => rows.push(texts.map((text, j) => ({ text, pointNumber: [i, j],
          curveNumber: trace.z[i][j] === null && other !== null ? other : curveNumber }))));
      } else {
        rows.push(trace.text.map((text, pointNumber) => ({ text, pointNumber, curveNumber }))
          .filter((point) => point.text && trace.y[point.pointNumber] !== null && trace.x[point.pointNumber] !== null));
      }
    });
    return rows.filter((row) => row.length);
  }

  function read(chart, event) {
    const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
    if (!steps[event.key] || !chart.isDrawn) return;
    event.preventDefault();
    const reading = chart.reading || { rows: rowsOf(chart.place), row: 0, column: -1 };
    if (!reading.rows.length) return;
    const within = (value, length) => Math.max(0, Math.min(length - 1, value));
    const [down, right] = steps[event.key];
    reading.row = within(reading.row + down, reading.rows.length);
    reading.column = within(reading.column + right, reading.rows[reading.row].length);
    chart.reading = reading;
    const point = reading.rows[reading.row][reading.column], trace = chart.place.data[point.curveNumber];
    Plotly.Fx.hover(chart.place, [{ curveNumber: point.curveNumber, pointNumber: point.pointNumber }], [trace.xaxis + trace.yaxis]);
    const words = document.createElement("template");
    words.innerHTML = point.text.replace(/<br>/g, "; ");
    chart.figure.querySelector(".reading").textContent = words.content.textContent;
  }

  // ---------------------------------------------------------------- the table of numbers

  async function fillTable(chart) {
    const body = chart.figure.querySelector(".numbers tbody");
    if (body.rows.length) return;
    const spec = await specOf(chart), [, ...rows] = files.rows(spec);
    const number = (text) => {
      if (text === "" || !Number.isFinite(Number(text))) return text.replace(/^'/, "");
      const value = Number(text);
      const written = Number.isInteger(value) ? String(value) : Math.abs(value) < 1e-4 ? value.toExponential(1) : value.toFixed(4);
      return written.replace("-", "−");
    };
    for (const row of rows.slice(0, TABLE_ROWS)) {
      const line = body.insertRow();
      for (const text of row) line.insertCell().textContent = number(text);
    }
    if (rows.length > TABLE_ROWS) {
      const cell = body.insertRow().insertCell();
      cell.colSpan = rows[0].length;
      cell.textContent = `${rows.length - TABLE_ROWS} further rows are in the CSV.`;
    }
  }

  // ---------------------------------------------------------------- the address

  function address(chart) {
    const query = new URLSearchParams();
    for (const control of controls(chart)) {
      if (control.value !== defaultOf(control)) query.set(control.dataset.key, control.value);
    }
    if (chart.mark) query.set("mark", chart.mark.join("-"));
    const text = query.toString();
    return "#" + chart.figure.id + (text ? "?" + text : "");
  }

  function share(value) {
    for (const chart of charts.values()) {
      const control = controls(chart).find((one) => one.dataset.key === SHARED);
      if (!control || control.value === value) continue;
      control.value = value;
      redraw(chart);
    }
  }

  // Charts above, drawn on the way, change the height of the page: the figure stays at the top until the reader moves on.
  let leave = () => {};
  function arrive(figure) {
    leave();
    const top = () => figure.scrollIntoView({ behavior: "instant" });
    const watch = new ResizeObserver(top), moves = ["wheel", "touchmove", "keydown", "pointerdown"];
    leave = () => {
      watch.disconnect();
      moves.forEach((move) => removeEventListener(move, leave));
    };
    moves.forEach((move) => addEventListener(move, leave, { passive: true }));
    watch.observe(document.body);
    setTimeout(leave, 3000);
    top();
  }

  // Shows what an address asks for: the chart, its state, and the layers that it marks.
  async function go() {
    const [name, query] = location.hash.slice(1).split("?");
    const chart = charts.get(decodeURIComponent(name));
    if (!chart || query === undefined) return;
    const wanted = new URLSearchParams(query);
    for (const control of controls(chart)) {
      const { key } = control.dataset, value = wanted.get(key);
      if (value === null && key === SHARED) continue;
      control.value = value ?? defaultOf(control);
      // A value that there is not leaves a menu empty.
      if (control.options && control.selectedIndex < 0) control.value = defaultOf(control);
      if (key === SHARED) share(control.value);
    }
    const mark = wanted.get("mark");
    chart.mark = mark ? mark.split("-").slice(0, 2) : null;
    if (chart.mark && chart.mark.length === 1) chart.mark.push(chart.mark[0]);
    for (let place = chart.figure.closest("details"); place; place = place.parentElement.closest("details")) place.open = true;
    arrive(chart.figure);
    await draw(chart);
    chart.figure.classList.remove("arrived");
    void chart.figure.offsetWidth;
    chart.figure.classList.add("arrived");
    setTimeout(() => chart.figure.classList.remove("arrived"), 2500);
  }

  // ---------------------------------------------------------------- events

  function listen(chart) {
    for (const control of controls(chart)) {
      control.addEventListener(control.type === "search" ? "input" : "change", () => {
        if (control.dataset.key === SHARED) share(control.value);
        history.replaceState(history.state, "", address(chart));
        draw(chart);
      });
    }
    chart.place.addEventListener("keydown", (event) => read(chart, event));
    for (const button of chart.figure.querySelectorAll("[data-save]")) {
      button.addEventListener("click", async () => {
        const spec = await specOf(chart), { save } = button.dataset;
        if (save === "csv") {
          files.save([files.csv(spec)], "text/csv", spec.file + ".csv");
          return;
        }
        await (chart.isDrawn ? chart.drawing : draw(chart));
        await files.picture(save, chart.shown, spec);
      });
    }
    const numbers = chart.figure.querySelector("details.numbers");
    if (numbers) numbers.addEventListener("toggle", () => numbers.open && fillTable(chart));
  }

  const drawAll = async () => { for (const chart of charts.values()) await draw(chart); };

  function start() {
    for (const figure of document.querySelectorAll("figure.chart")) {
      const chart = { figure, place: figure.querySelector(".drawing"), mark: null };
      charts.set(figure.id, chart);
      listen(chart);
    }
    for (const link of document.querySelectorAll("a[data-view]")) {
      link.href = link.getAttribute("href").split("?")[0] + "?" + link.dataset.view;
      // A link to the address that is shown already changes nothing in it.
      link.addEventListener("click", () => { if (link.hash === location.hash) go(); });
    }
    let isFirst = true;
    const seen = new IntersectionObserver(async (entries) => {
      const near = entries.filter((entry) => entry.isIntersecting).map((entry) => charts.get(entry.target.closest("figure").id));
      const wasFirst = isFirst;
      isFirst = false;
      for (const chart of near) {
        if (!chart.isDrawn) await draw(chart);
      }
      if (wasFirst) document.documentElement.dataset.drawn = "yes";
    }, { rootMargin: "500px" });
    for (const chart of charts.values()) seen.observe(chart.place);
    if (!charts.size) document.documentElement.dataset.drawn = "yes";
    let waiting = 0;
    addEventListener("resize", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => {
        for (const chart of charts.values()) if (chart.place.clientWidth !== chart.width) redraw(chart);
      }, 150);
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach(redraw));
    addEventListener("hashchange", go);
    go();
  }

  if (window.DecompressionStream) start();
  return { drawAll, charts };
})();
window.mossa = mossa;
