"use strict";

// What a reader saves of a chart: its numbers as CSV, the state shown as SVG and PNG.

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
