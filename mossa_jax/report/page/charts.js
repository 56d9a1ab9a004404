"use strict";

// The charts of the page and what a reader does with them. Each is packed beside its place (interactive.py says what it
// holds) and drawn when it comes near the screen (figure.js). What it shows stands in the address:
// "#layers?estimator=biased&task=t05&mark=17-32".

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
    // A drawing that failed is no reason not to draw the next state.
    chart.drawing = (chart.drawing || Promise.resolve()).catch(() => {}).then(async () => {
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
