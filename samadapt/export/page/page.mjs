// The page: prompts on a picture, the masks that answer them, and saving.

import { frameOf, toInput, toPicture } from "./picture.mjs";

const COLOURS = [[47, 111, 237], [230, 97, 0], [26, 160, 70], [190, 60, 190], [200, 170, 0]];
const DRAG = 4; // pixels on the screen that a pointer moves before a click is a box
const MAX_THREADS = 8;

const byId = (id) => document.getElementById(id);
const [canvas, status, stage] = [byId("picture"), byId("status"), byId("stage")];
const context = canvas.getContext("2d");

let model = null;
let worker = null;
let picture = null; // {bitmap, width, height, rgba}
let prompts = []; // in the order in which they were given: {box} or {point, label}
let answers = []; // after each prompt: the logits of the mask that was shown
let mask = null; // numbers of classes of each pixel, 0 for none
let drag = null;
let busy = Promise.resolve();
let asked = 0; // number of the last task for the worker

/** Ask the worker for a task and return its answer. */
function ask(task, values = {}, transfer = []) {
  const id = ++asked;
  return new Promise((resolve, reject) => {
    const listen = ({ data }) => {
      if (data.id !== id) return;
      worker.removeEventListener("message", listen);
      if (data.error) reject(new Error(data.error));
      else resolve(data.result);
    };
    worker.addEventListener("message", listen);
    worker.postMessage({ id, task, ...values }, transfer);
  });
}

function say(text, { state = "", milliseconds = null } = {}) {
  status.textContent = text;
  status.dataset.state = state;
  if (milliseconds !== null) status.dataset.milliseconds = milliseconds.toFixed(2);
}

/** Run tasks one after another; an error is shown, and the next task runs. */
function queue(task) {
  busy = busy.then(task).catch((error) => say(`Error: ${error.message}`, { state: "error" }));
  return busy;
}

function threadCount() {
  const asked = Number(new URLSearchParams(location.search).get("threads"));
  const most = self.crossOriginIsolated ? navigator.hardwareConcurrency || 1 : 1;
  return Math.max(1, Math.min(asked || most, most, MAX_THREADS));
}

async function start() {
  model = await (await fetch("model.json")).json();
  document.title = byId("title").textContent = model.title;
  byId("about").textContent = model.about;
  byId("help").textContent = model.prompts
    ? "Click: part of the object. Shift-click: not part of it. Drag: a box. " +
      "Keys: u undo, c clear, s save."
    : "This adapter finds classes by itself. Keys: f find classes, c clear, s save.";
  byId("classes").hidden = !model.finds_classes;
  const threads = threadCount();
  byId("threads").textContent = self.crossOriginIsolated
    ? `Threads: ${threads}.`
    : "One thread: the server sends no COOP and COEP headers, which threads need. serve.py does.";
  say("Loading the model…", { state: "loading" });
  worker = new Worker(new URL("./worker.mjs", import.meta.url), { type: "module" });
  await ask("load", { model, threads });
  say("Ready. Open a picture.", { state: "ready" });
}

async function open(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch {
    throw new Error(`${file.name}: expected a picture that browsers show, such as PNG or JPEG`);
  }
  const { width, height } = bitmap;
  [canvas.width, canvas.height] = [width, height];
  canvas.hidden = false;
  byId("hint").hidden = true;
  const whole = new OffscreenCanvas(width, height).getContext("2d");
  whole.drawImage(bitmap, 0, 0);
  picture = { bitmap, width, height, rgba: whole.getImageData(0, 0, width, height).data };
  [prompts, answers, mask] = [[], [], null];
  draw();
  say("Encoding the picture…", { state: "encoding" });
  const began = performance.now();
  const pixels = toInput(picture.rgba, width, height, model);
  await ask("encode", { pixels }, [pixels.buffer]);
  const seconds = (performance.now() - began) / 1000;
  say(`${width} × ${height} pixels, encoded in ${seconds.toFixed(1)} s.`, { state: "encoded" });
}

/** Return points and labels of all prompts in the model's square. */
function modelPoints(given) {
  const frame = frameOf(picture.width, picture.height, model);
  const place = ([x, y]) => [
    (x * frame.width) / picture.width,
    (y * frame.height) / picture.height,
  ];
  const points = [];
  const labels = [];
  for (const prompt of given.filter((one) => one.point)) {
    points.push(place(prompt.point));
    labels.push(prompt.label);
  }
  const box = given.findLast((one) => one.box)?.box;
  if (box) {
    points.push(place(box.slice(0, 2)), place(box.slice(2)));
    labels.push(2, 3);
  } else {
    points.push([0, 0]); // SAM expects a point that is not used where there is no box
    labels.push(-1);
  }
  return { points, labels };
}

/** Return which of the masks answers: the best of several, or the single one. */
function chosenToken(given, iou) {
  const count = given.filter((one) => one.point).length;
  const hasBox = given.some((one) => one.box);
  let several = count ? model.several_for_points : model.several_for_boxes;
  several ??= count + hasBox === 1; // null: for a single prompt alone
  if (!several) return 0;
  let best = 1;
  for (let i = 2; i < iou.length; i++) if (iou[i] > iou[best]) best = i;
  return best;
}

/** Decode all prompts, and show the mask. */
async function answer(began) {
  const { width, height } = picture;
  const { points, labels } = modelPoints(prompts);
  const last = model.clicks_in_turn && prompts.length > 1 ? answers[prompts.length - 2] : null;
  const found = await ask("decode", { points, labels, mask: last });
  const token = chosenToken(prompts, found.iou);
  const count = (4 * model.grid) ** 2;
  const logits = found.logits.slice(token * count, (token + 1) * count);
  answers[prompts.length - 1] = logits;
  const plane = toPicture(logits, width, height, model);
  mask = new Uint8Array(width * height);
  let area = 0;
  for (let i = 0; i < plane.length; i++) {
    if (plane[i] > model.threshold) {
      mask[i] = 1;
      area++;
    }
  }
  draw();
  const milliseconds = performance.now() - began;
  const iou = found.iou[token].toFixed(2);
  say(`${area} pixels, predicted IoU ${iou}, ${milliseconds.toFixed(0)} ms.`, {
    state: "answered",
    milliseconds,
  });
}

/** Predict the classes without a prompt, and show them. */
async function findClasses() {
  const began = performance.now();
  const { width, height } = picture;
  [prompts, answers] = [[], []];
  const found = await ask("decode", { points: [], labels: [], mask: null });
  const count = (4 * model.grid) ** 2;
  const own = found.classes;
  mask = new Uint8Array(width * height);
  const best = new Float32Array(width * height);
  for (let k = 0; k < model.classes.length; k++) {
    // Without tokens of their own, classes are the mask tokens after the first.
    const at = own ? k : k + 1;
    const logits = (own ?? found.logits).slice(at * count, (at + 1) * count);
    if (!own && model.background_token) {
      for (let i = 0; i < count; i++) logits[i] -= found.logits[i];
    }
    const plane = toPicture(logits, width, height, model);
    for (let i = 0; i < plane.length; i++) {
      if (plane[i] > best[i]) {
        best[i] = plane[i];
        mask[i] = k + 1;
      }
    }
  }
  draw();
  const milliseconds = performance.now() - began;
  say(`Classes found in ${milliseconds.toFixed(0)} ms.`, { state: "answered", milliseconds });
}

function draw() {
  if (!picture) return;
  const { width, height } = picture;
  context.drawImage(picture.bitmap, 0, 0);
  if (mask) {
    const shown = context.getImageData(0, 0, width, height);
    for (let i = 0; i < mask.length; i++) {
      if (!mask[i]) continue;
      const colour = COLOURS[(mask[i] - 1) % COLOURS.length];
      for (let c = 0; c < 3; c++) {
        shown.data[4 * i + c] = (shown.data[4 * i + c] + colour[c]) / 2;
      }
    }
    context.putImageData(shown, 0, 0);
  }
  const unit = Math.max(1, width / (canvas.clientWidth || width));
  context.lineWidth = 2 * unit;
  for (const prompt of drag?.box ? [...prompts, { box: drag.box }] : prompts) {
    context.strokeStyle = "#fff";
    if (prompt.box) {
      const [x0, y0, x1, y1] = prompt.box;
      context.strokeRect(x0, y0, x1 - x0, y1 - y0);
      continue;
    }
    context.fillStyle = prompt.label ? "#1aa046" : "#d03030";
    context.beginPath();
    context.arc(...prompt.point, 5 * unit, 0, 2 * Math.PI);
    context.fill();
    context.stroke();
  }
  byId("undo").disabled = !prompts.length;
  byId("clear").disabled = byId("save").disabled = !mask;
  byId("classes").disabled = false;
}

function positionOf(event) {
  const bounds = canvas.getBoundingClientRect();
  const x = ((event.clientX - bounds.left) * canvas.width) / bounds.width;
  const y = ((event.clientY - bounds.top) * canvas.height) / bounds.height;
  return [Math.min(Math.max(x, 0), canvas.width), Math.min(Math.max(y, 0), canvas.height)];
}

canvas.addEventListener("pointerdown", (event) => {
  if (!model.prompts || event.button !== 0) return;
  canvas.setPointerCapture(event.pointerId);
  drag = { from: positionOf(event), at: [event.clientX, event.clientY], box: null };
});

canvas.addEventListener("pointermove", (event) => {
  if (!drag) return;
  const moved = Math.hypot(event.clientX - drag.at[0], event.clientY - drag.at[1]);
  if (moved < DRAG && !drag.box) return;
  const [x, y] = positionOf(event);
  const [x0, y0] = drag.from;
  drag.box = [Math.min(x0, x), Math.min(y0, y), Math.max(x0, x), Math.max(y0, y)];
  draw();
});

canvas.addEventListener("pointerup", (event) => {
  if (!drag) return;
  const began = performance.now();
  const { from, box } = drag;
  drag = null;
  queue(() => {
    // A model takes one box for an object, so a new box begins a new object.
    if (box) [prompts, answers] = [[{ box }], []];
    else prompts.push({ point: from, label: event.shiftKey ? 0 : 1 });
    return answer(began);
  });
});

function undo() {
  const began = performance.now();
  queue(() => {
    prompts.pop();
    answers.length = Math.min(answers.length, prompts.length);
    if (prompts.length) return answer(began);
    mask = null;
    draw();
    return say("No prompts.", { state: "encoded" });
  });
}

function clear() {
  queue(() => {
    [prompts, answers, mask] = [[], [], null];
    draw();
    say("No prompts.", { state: "encoded" });
  });
}

async function save() {
  const { width, height } = picture;
  const sheet = new OffscreenCanvas(width, height);
  const pixels = new ImageData(width, height);
  for (let i = 0; i < mask.length; i++) {
    // One object is white. Several classes keep their numbers.
    const value = model.finds_classes && !prompts.length ? mask[i] : 255 * mask[i];
    pixels.data.set([value, value, value, 255], 4 * i);
  }
  sheet.getContext("2d").putImageData(pixels, 0, 0);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await sheet.convertToBlob({ type: "image/png" }));
  link.download = "mask.png";
  link.click();
  URL.revokeObjectURL(link.href);
}

byId("file").addEventListener("change", ({ target }) => {
  const [file] = target.files;
  target.value = ""; // the same file can be opened again
  if (file) queue(() => open(file));
});
stage.addEventListener("dragover", (event) => event.preventDefault());
stage.addEventListener("drop", (event) => {
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file) queue(() => open(file));
});

const keys = { u: undo, c: clear, s: save, f: () => queue(findClasses) };
const buttons = { u: "undo", c: "clear", s: "save", f: "classes" };
for (const [key, id] of Object.entries(buttons)) byId(id).addEventListener("click", keys[key]);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const id = buttons[event.key];
  if (id && !byId(id).hidden && !byId(id).disabled) keys[event.key]();
});

queue(start);
