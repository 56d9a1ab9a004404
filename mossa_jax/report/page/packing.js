"use strict";

// Texts that `interactive.py` packed.

async function unpacked(element) {
  const bytes = Uint8Array.from(atob(element.textContent.trim()), (char) => char.charCodeAt(0));
  element.textContent = "";
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

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
