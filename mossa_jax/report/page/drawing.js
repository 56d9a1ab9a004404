"use strict";

// What the charts of every page share: colours of the page and texts for plotly.

const at = (id) => document.getElementById(id);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Plotly reads a small markup in labels. Names are data, so their signs are written as entities.
const safe = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
// By characters, not by halves of one.
const cut = (text, limit) => {
  const characters = [...text];
  return characters.length > limit ? characters.slice(0, Math.max(1, limit - 1)).join("") + "…" : text;
};
const brief = (text, limit) => safe(cut(text, limit));

// "#rrggbb" with an opacity.
const faded = (hue, opacity) => hue + Math.round(255 * opacity).toString(16).padStart(2, "0");

// The page stays offline: plotly's own buttons would upload a chart's data.
const OFFLINE = { displaylogo: false, showLink: false, showSendToCloud: false, plotlyServerURL: "" };
