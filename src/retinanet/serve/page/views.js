// The parts of the page that show the state: thumbnails, classes, images with boxes, and the table of objects.

import { colorOf, detectionAt, drawCloseup, drawDetections } from "./drawing.js";

const element = (id) => document.getElementById(id);

// The table has at most this number of rows; downloads have all.
const MOST_ROWS = 500;

/** "1 object" or "2 objects". */
export function counted(objects) {
  return `${objects} object${objects === 1 ? "" : "s"}`;
}

function made(tag, text = "", properties = {}) {
  return Object.assign(document.createElement(tag), { textContent: text, ...properties });
}

/** Show a button for each image; `choose` is called with its index. */
export function showThumbnails(state, choose) {
  const list = element("thumbnails");
  list.parentElement.hidden = state.images.length < 2;
  while (list.children.length < state.images.length) {
    const index = list.children.length;
    const image = state.images[index];
    const button = made("button", "", { type: "button" });
    const canvas = made("canvas");
    canvas.setAttribute("aria-hidden", "true");
    drawDetections(canvas, image.bitmap, image.bitmap ?? { width: 96, height: 64 }, [], null, 128);
    button.append(canvas, made("span", image.name));
    button.addEventListener("click", () => choose(index));
    const item = made("li");
    item.append(button);
    list.append(item);
  }
  for (const [index, item] of [...list.children].entries()) {
    item.firstChild.setAttribute("aria-current", String(index === state.current));
  }
}

/** Show a check box for each class that was found, with its count. `hidden` has the classes that are not shown. */
export function showClasses(detections, hidden, changed) {
  const counts = new Map();
  for (const { class_name, class_id } of detections) {
    const entry = counts.get(class_name) ?? { class_id, count: 0 };
    counts.set(class_name, { class_id, count: entry.count + 1 });
  }
  const focused = document.activeElement?.dataset?.class;
  const boxes = element("classes");
  boxes.replaceChildren(boxes.querySelector("legend"));
  boxes.hidden = counts.size === 0;
  for (const [name, { class_id, count }] of [...counts].sort((a, b) => b[1].count - a[1].count)) {
    const label = made("label");
    const box = made("input", "", { type: "checkbox", checked: !hidden.has(name) });
    box.dataset.class = name;
    box.addEventListener("change", () => {
      hidden[box.checked ? "delete" : "add"](name);
      changed();
    });
    const swatch = made("span", "", { className: "swatch" });
    swatch.style.background = colorOf(class_id);
    label.append(box, swatch, `${name} (${count})`);
    boxes.append(label);
    if (name === focused) {
      box.focus();
    }
  }
}

/** Show the image once for each model, with its boxes. `mark` is called with the detection under the pointer. */
export function showViews(image, views, marked, mark) {
  const place = element("views");
  place.replaceChildren();
  for (const { model, result, detections, size, error } of views) {
    const figure = made("figure", "", { className: "view" });
    const canvas = made("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${image.name} with ${detections.length} boxes by ${model}`);
    drawDetections(canvas, image.bitmap, size, detections, marked);
    canvas.addEventListener("pointermove", (event) => mark(detectionAt(canvas, size, detections, event)));
    canvas.addEventListener("pointerleave", () => mark(null));
    const text = error ?? (result ? `${model}: ${counted(detections.length)}` : `${model}: detecting …`);
    figure.append(canvas, made("figcaption", text));
    place.append(figure);
  }
}

/** Show the table of objects; a row that is pointed at or focused is shown enlarged. */
export function showObjects(image, views, mark) {
  const rows = views.flatMap(({ model, detections, size }) => detections.map((each) => ({ model, each, size })));
  const models = views.length > 1;
  element("zoom").hidden = true;
  element("caption").textContent = rows.length > MOST_ROWS
    ? `${rows.length} objects, the first ${MOST_ROWS} are listed`
    : counted(rows.length);
  element("rows").replaceChildren(...rows.slice(0, MOST_ROWS).map(({ model, each, size }) => {
    const [x1, y1, x2, y2] = each.box.map(Math.round);
    const row = made("tr");
    const name = made("td");
    const button = made("button", models ? `${each.class_name} (${model})` : each.class_name, { type: "button" });
    const enlarge = () => showCloseup(image, size, each, row, mark);
    for (const kind of ["mouseenter", "focusin", "click"]) {
      row.addEventListener(kind, enlarge);
    }
    name.append(button);
    row.append(name, made("td", each.score.toFixed(3)), made("td", `${x1}, ${y1}`), made("td", `${x2 - x1} × ${y2 - y1}`));
    return row;
  }));
}

function showCloseup(image, size, detection, row, mark) {
  for (const other of row.parentElement.children) {
    other.classList.toggle("marked", other === row);
  }
  drawCloseup(element("zoom-canvas"), image.bitmap, size, detection);
  const text = `${detection.class_name}, score ${detection.score.toFixed(3)}`;
  element("zoom-canvas").setAttribute("aria-label", `Close-up of ${text}`);
  element("zoom-caption").textContent = text;
  element("zoom").hidden = false;
  mark(detection);
}
