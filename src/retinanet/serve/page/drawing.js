// Boxes on canvases: the image with its detections, thumbnails and close-ups.

// The colors of retinanet.detection.draw, so that a class has the same color everywhere.
const COLORS = ["#56B4E9", "#E69F00", "#33C59A", "#F0E442", "#D98BB8", "#E8743B", "#8FA8FF", "#B7E07A", "#C9C9C9", "#FF9DA7"];

// Least and largest longest side of a canvas on the page: small images are enlarged. Downloads have the image's size.
const LEAST = 640;
const LONGEST = 1600;

// With more boxes than this, labels would hide each other.
const CROWDED = 40;

/** Return the color of a class. */
export function colorOf(classId) {
  return COLORS[classId % COLORS.length];
}

/**
 * Draw an image with its boxes.
 * @param canvas where; its size is changed.
 * @param image an ImageBitmap, or null if the browser cannot show the file.
 * @param size {width, height} of the image in pixels; boxes refer to it.
 * @param detections the detections to draw, best first.
 * @param marked the detection that is emphasized, or null.
 * @param longest longest side of the canvas; left out: chosen for the page.
 */
export function drawDetections(canvas, image, size, detections, marked = null, longest = null) {
  const own = Math.max(size.width, size.height);
  const scale = (longest ?? Math.min(LONGEST, Math.max(LEAST, own))) / own;
  canvas.width = Math.max(1, Math.round(size.width * scale));
  canvas.height = Math.max(1, Math.round(size.height * scale));
  const pen = canvas.getContext("2d");
  if (image) {
    pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  }
  const line = Math.max(1.5, Math.min(canvas.width, canvas.height) / 250);
  for (const each of detections.toReversed()) { // the best on top
    drawBox(pen, each, scale, each === marked ? 2.5 * line : line);
  }
  if (detections.length <= CROWDED) {
    for (const each of detections.toReversed()) {
      drawLabel(pen, each, scale, line, canvas);
    }
  } else if (marked) {
    drawLabel(pen, marked, scale, line, canvas);
  }
}

function drawBox(pen, detection, scale, line) {
  const [x1, y1, x2, y2] = detection.box.map((side) => side * scale);
  pen.lineWidth = line + 2;
  pen.strokeStyle = "rgb(0 0 0 / 60%)"; // visible on images of the color of the class
  pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
  pen.lineWidth = line;
  pen.strokeStyle = colorOf(detection.class_id);
  pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
}

function drawLabel(pen, detection, scale, line, canvas) {
  const height = Math.max(12, Math.min(36, Math.min(canvas.width, canvas.height) / 30));
  pen.font = `${height}px system-ui, sans-serif`;
  const text = `${detection.class_name} ${detection.score.toFixed(2)}`;
  const width = pen.measureText(text).width + 2 * line;
  const x = Math.max(0, Math.min(detection.box[0] * scale, canvas.width - width));
  const y = Math.max(0, detection.box[1] * scale - 1.3 * height);
  pen.fillStyle = colorOf(detection.class_id);
  pen.fillRect(x, y, width, 1.3 * height);
  pen.fillStyle = "#000";
  pen.textBaseline = "middle";
  pen.fillText(text, x + line, y + 0.65 * height);
}

/** Draw a detection and its surroundings, enlarged. */
export function drawCloseup(canvas, image, size, detection) {
  const [x1, y1, x2, y2] = detection.box;
  const side = Math.max(16, 1.3 * Math.max(x2 - x1, y2 - y1));
  const start = (middle, length) => (side >= length ? (length - side) / 2 : Math.max(0, Math.min(middle - side / 2, length - side)));
  const left = start((x1 + x2) / 2, size.width);
  const top = start((y1 + y2) / 2, size.height);
  const scale = canvas.width / side;
  const pen = canvas.getContext("2d");
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.setTransform(scale, 0, 0, scale, -left * scale, -top * scale);
  if (image) {
    pen.drawImage(image, 0, 0, size.width, size.height);
  }
  pen.lineWidth = 3 / scale;
  pen.strokeStyle = colorOf(detection.class_id);
  pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
}

/** Return the detection whose box is the smallest at a point of a canvas, or null. */
export function detectionAt(canvas, size, detections, event) {
  const place = canvas.getBoundingClientRect();
  const x = ((event.clientX - place.left) / place.width) * size.width;
  const y = ((event.clientY - place.top) / place.height) * size.height;
  const area = ({ box }) => (box[2] - box[0]) * (box[3] - box[1]);
  const inside = detections.filter(({ box }) => box[0] <= x && x <= box[2] && box[1] <= y && y <= box[3]);
  return inside.sort((a, b) => area(a) - area(b))[0] ?? null;
}
