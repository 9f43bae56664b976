// Files that the page offers for download.

import { drawDetections } from "./drawing.js";

/** Save detections as JSON: one object for each image and model. */
export function saveJson(results) {
  save("detections.json", new Blob([JSON.stringify(results, null, 1)], { type: "application/json" }));
}

/** Save detections as CSV, with the columns of `retinanet detect` and the model. */
export function saveCsv(results) {
  const rows = [["path", "x1", "y1", "x2", "y2", "class", "score", "model"]];
  for (const { name, model, detections } of results) {
    for (const { box, class_name, score } of detections) {
      rows.push([name, ...box, class_name, score, model]);
    }
  }
  save("detections.csv", new Blob([rows.map((row) => row.map(field).join(",") + "\n").join("")], { type: "text/csv" }));
}

/** Save an image with its boxes, in its own size. */
export function saveImage(name, image, size, detections) {
  const canvas = document.createElement("canvas");
  drawDetections(canvas, image, size, detections, null, Math.max(size.width, size.height));
  canvas.toBlob((content) => save(`${name.replace(/\.[^.]*$/, "")}-detections.png`, content), "image/png");
}

// A spreadsheet would compute a field that starts with =, +, - or @; numbers are left as they are.
function field(value) {
  const text = String(value);
  const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function save(name, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
