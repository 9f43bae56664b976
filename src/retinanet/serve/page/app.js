// The page: images come in, their detections are shown, filtered and saved.

import { detect, listModels, ServerError, useToken } from "./api.js";
import { saveCsv, saveImage, saveJson } from "./downloads.js";
import { drawDetections } from "./drawing.js";
import { counted, showClasses, showObjects, showThumbnails, showViews } from "./views.js";

const element = (id) => document.getElementById(id);

/** Everything that the page shows. `images` have name, file, bitmap and, by the name of a model, results or errors. */
const state = { models: [], images: [], current: 0, hidden: new Set(), marked: null };

// Detections with lower scores are not asked for.
const LOWEST = 0.05;

async function start() {
  try {
    state.models = await listModels();
  } catch (error) {
    say(error.message, true);
    element("token-form").hidden = !(error instanceof ServerError && error.status === 401);
    return;
  }
  element("token-form").hidden = true;
  for (const { name } of state.models) {
    element("model").add(new Option(name, name));
    element("other").add(new Option(name, name));
  }
  for (const setting of document.querySelectorAll(".models")) {
    setting.hidden = state.models.length < 2;
  }
  const [first] = state.models;
  useScore(first);
  say(`Ready. ${state.models.length === 1 ? `The model ${first.name} finds` : "The first model finds"}: ${listed(first.classes)}.`);
}

function listed(classes) {
  return classes.length <= 6 ? classes.join(", ") : `${classes.slice(0, 5).join(", ")} and ${classes.length - 5} more classes`;
}

/** Set the slider to the threshold of a model. */
function useScore(model) {
  element("score").min = String(lowest(model));
  element("score").value = String(model.score);
}

function named(name) {
  return state.models.find((model) => model.name === name);
}

function lowest(model) {
  return Math.max(LOWEST, model.lowest_score);
}

function say(text, bad = false) {
  element("status").textContent = text;
  element("status").classList.toggle("bad", bad);
}

/** The names of the models that are shown. */
function chosen() {
  return [...new Set([element("model").value, element("other").value])].filter(Boolean);
}

async function add(files) {
  await ready;
  const added = [];
  for (const file of files) {
    const bitmap = await createImageBitmap(file).catch(() => null); // the server reads more formats than a browser
    added.push({ name: file.name || "pasted image", file, bitmap, results: {}, errors: {} });
  }
  if (!added.length || !state.models.length) {
    return;
  }
  state.current = state.images.length;
  state.images.push(...added);
  element("workspace").hidden = false;
  await detectMissing();
}

/** Ask for the detections that are shown and not known yet, a few images at a time. */
async function detectMissing() {
  const missing = state.images.flatMap((image) => chosen().map((model) => ({ image, model })))
    .filter(({ image, model }) => !(model in image.results) && !(model in image.errors));
  let left = missing.length;
  show();
  const work = async () => {
    for (let job = missing.shift(); job; job = missing.shift()) {
      say(left === 1 ? "Detecting …" : `Detecting, ${left} left …`);
      await detectIn(job.image, job.model);
      left -= 1;
      show();
    }
  };
  await Promise.all([work(), work(), work()]);
  summarize();
}

async function detectIn(image, model) {
  image.results[model] = null; // is being computed
  try {
    image.results[model] = await detect(image.file, model, lowest(named(model)));
  } catch (error) {
    delete image.results[model];
    image.errors[model] = error.message;
  }
}

/** The detections of an image that the settings let through, for each chosen model. */
function shown(image) {
  const score = Number(element("score").value);
  return chosen().map((model) => {
    const result = image.results[model] ?? null;
    const all = (result?.detections ?? []).filter((each) => each.score >= score);
    const size = result ?? image.bitmap ?? { width: 640, height: 480 };
    const detections = all.filter((each) => !state.hidden.has(each.class_name));
    return { model, result, all, detections, size, error: image.errors[model] };
  });
}

function show() {
  element("score-value").textContent = Number(element("score").value).toFixed(2);
  const image = state.images[state.current];
  if (!image) {
    return;
  }
  const views = shown(image);
  showThumbnails(state, (index) => {
    state.current = index;
    state.marked = null;
    show();
    summarize();
  });
  showClasses(views.flatMap(({ all }) => all), state.hidden, () => {
    show();
    summarize();
  });
  element("result-title").textContent = image.name;
  showViews(image, views, state.marked, mark);
  showObjects(image, views, mark);
  for (const id of ["save-json", "save-csv", "save-image"]) {
    element(id).disabled = !views[0].result;
  }
}

/** Emphasize a detection in the image; null: none. */
function mark(detection) {
  state.marked = detection;
  const image = state.images[state.current];
  for (const [index, view] of shown(image).entries()) {
    drawDetections(document.querySelectorAll(".view canvas")[index], image.bitmap, view.size, view.detections, detection);
  }
}

function summarize() {
  const image = state.images[state.current];
  if (!image) {
    return;
  }
  const problem = Object.values(image.errors)[0];
  const counts = shown(image).map(({ model, detections }) => `${counted(detections.length)} by ${model}`);
  say(problem ? `${image.name}: ${problem}` : `${image.name}: ${counts.join(", ")}.`, Boolean(problem));
}

/** The results of all images as they are shown, for downloads. */
function results() {
  return state.images.flatMap((image) => shown(image).filter(({ result }) => result)
    .map(({ model, result, detections }) => (
      { name: image.name, model, width: result.width, height: result.height, detections })));
}

function listen() {
  for (const id of ["files", "camera"]) {
    element(id).addEventListener("change", async (event) => {
      const files = [...event.target.files];
      event.target.value = ""; // the same file may be chosen again
      await add(files);
    });
  }
  document.addEventListener("paste", (event) => add([...event.clipboardData.files]));
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      element("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
    });
  }
  document.addEventListener("drop", (event) => add([...event.dataTransfer.files]));
  element("score").addEventListener("input", show);
  element("score").addEventListener("change", summarize);
  element("model").addEventListener("change", () => {
    useScore(named(element("model").value));
    detectMissing();
  });
  element("other").addEventListener("change", detectMissing);
  element("save-json").addEventListener("click", () => saveJson(results()));
  element("save-csv").addEventListener("click", () => saveCsv(results()));
  element("save-image").addEventListener("click", () => {
    const image = state.images[state.current];
    const [view] = shown(image);
    saveImage(image.name, image.bitmap, view.size, view.detections);
  });
  element("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    useToken(element("token").value);
    ready = start();
  });
}

listen();
let ready = start();
