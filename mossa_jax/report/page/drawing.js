"use strict";

// What the charts of every page share: values in words, colours of the page, and the drawing itself.

const at = (id) => document.getElementById(id);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const shown = (value) => (value === null || value === undefined ? "undefined" : value.toFixed(3));

// Plotly reads a small markup in labels. Names are data, so their signs are written as entities.
const safe = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const brief = (text, limit) => safe(text.length > limit ? text.slice(0, limit - 1) + "…" : text);

// "#rrggbb" with an opacity.
const faded = (hue, opacity) => hue + Math.round(255 * opacity).toString(16).padStart(2, "0");

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
  Plotly.react(place, traces, layout(extra), {
    // The page stays offline: plotly's own button would upload the chart's data.
    responsive: true,
    displaylogo: false,
    showLink: false,
    showSendToCloud: false,
    plotlyServerURL: "",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
    toImageButtonOptions: { format: "png", scale: 2, filename: id },
  });
}
