"use strict";

// The colours of charts, by role and by scale, on a light and on a dark page.

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
