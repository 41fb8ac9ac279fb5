/** What is drawn over the image: masks, prompts, the one that is being drawn, and the cursor. */

import { BY_PROCESSOR } from "./masks.js";

const INSIDE = "#16a34a";
const OUTSIDE = "#dc2626";
const MARK = 7; // CSS pixels, the radius of a click

export class Overlay {
  #due;
  #others = { place: [], layers: [], canvas: null }; // the objects that are not active

  /**
   * @param {HTMLElement} host
   * @param {() => object} scene what to draw: `matrix` from pixels of the slice to CSS pixels,
   *   `frame` [left, top, width, height] that holds all of it, `layers` of `{mask, color, isActive,
   *   isFilled}`,
   *   `marks` (prompts), `draft` (a prompt) or null, `cursor` {x, y} or null
   */
  constructor(host, scene) {
    this.canvas = document.createElement("canvas");
    this.canvas.className = "overlay";
    host.append(this.canvas);
    this.scene = scene;
  }

  /** Draw before the next frame; resolves when it is drawn. */
  redraw() {
    this.#due ??= new Promise((resolve) => {
      requestAnimationFrame(() => {
        this.#due = undefined;
        this.#draw();
        resolve();
      });
    });
    return this.#due;
  }

  #draw() {
    const { canvas } = this;
    const ratio = window.devicePixelRatio;
    canvas.width = Math.round(canvas.clientWidth * ratio);
    canvas.height = Math.round(canvas.clientHeight * ratio);
    const scene = this.scene();
    if (!scene) return;
    const context = canvas.getContext("2d", BY_PROCESSOR);
    const others = this.#othersOf(scene, ratio);
    if (others) context.drawImage(others, 0, 0);
    clip(context, scene.frame, ratio);
    for (const layer of scene.layers) {
      if (layer.isActive) drawMask(context, layer, scene.matrix, ratio);
    }
    for (const mark of scene.marks) drawPrompt(context, mark, scene.matrix);
    if (scene.draft) drawPrompt(context, scene.draft, scene.matrix);
    if (scene.cursor) drawCursor(context, scene.matrix.transformPoint(scene.cursor));
  }

  /** A canvas with the objects that are not active; those that are new are drawn on top. */
  #othersOf({ layers, matrix, frame }, ratio) {
    const shown = layers.filter((layer) => !layer.isActive);
    const { width, height } = this.canvas;
    if (!shown.length || !width || !height) return null;
    const place = [width, height, ratio, ...frame, ...matrix.toFloat64Array()];
    const others = this.#others;
    const isSame = ({ mask, color, isFilled }, at) =>
      mask === shown[at]?.mask && color === shown[at].color && isFilled === shown[at].isFilled;
    if (!others.place.every((one, at) => one === place[at]) || !others.layers.every(isSame)) {
      others.canvas = null;
    }
    if (!others.canvas) {
      others.canvas = new OffscreenCanvas(width, height);
      clip(others.canvas.getContext("2d", BY_PROCESSOR), frame, ratio);
      others.place = place;
      others.layers = [];
    }
    const context = others.canvas.getContext("2d", BY_PROCESSOR);
    for (const layer of shown.slice(others.layers.length)) {
      drawMask(context, layer, matrix, ratio);
    }
    others.layers = shown;
    return others.canvas;
  }
}

function clip(context, frame, ratio) {
  context.scale(ratio, ratio);
  context.beginPath();
  context.rect(...frame);
  context.clip();
}

function drawMask(context, { mask, color, isActive, isFilled }, matrix, ratio) {
  if (!mask.pixels) return;
  if (isFilled) {
    const [x0, y0] = mask.bounds;
    context.save();
    context.setTransform(new DOMMatrix().scale(ratio).multiply(matrix));
    context.imageSmoothingEnabled = false;
    context.globalAlpha = isActive ? 0.4 : 0.28;
    context.drawImage(mask.picture(color), x0, y0);
    context.restore();
  }
  // The outline is brought to the screen before it is drawn, so that its line is of even width.
  const outline = new Path2D();
  outline.addPath(mask.outline, matrix);
  context.lineCap = "square";
  context.strokeStyle = `rgb(${color})`;
  context.lineWidth = isActive ? 2 : 1.2;
  context.stroke(outline);
}

function drawPrompt(context, prompt, matrix) {
  const at = ([x, y]) => matrix.transformPoint({ x, y });
  const color = prompt.inside === false ? OUTSIDE : INSIDE;
  if (prompt.kind === "box") {
    const [x0, y0, x1, y1] = prompt.box;
    line(context, [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]].map(at), color);
  } else if (prompt.kind === "scribble") {
    line(context, prompt.points.map(at), color);
  } else if (prompt.kind === "points") {
    for (const point of prompt.points) drawClick(context, at(point), color, prompt.inside);
  }
}

/** Draw a line that is seen on dark and on light images. */
function line(context, places, color) {
  context.lineJoin = context.lineCap = "round";
  for (const [width, style] of [[4.5, "rgb(255 255 255 / 80%)"], [2.2, color]]) {
    context.beginPath();
    places.forEach(({ x, y }) => context.lineTo(x, y));
    context.lineWidth = width;
    context.strokeStyle = style;
    context.stroke();
  }
}

/** A disc with a plus in the object, and with a minus in the background. */
function drawClick(context, { x, y }, color, inside) {
  context.beginPath();
  context.arc(x, y, MARK, 0, 2 * Math.PI);
  context.fillStyle = color;
  context.fill();
  context.strokeStyle = "white";
  context.lineWidth = 1.8;
  context.stroke();
  context.beginPath();
  context.moveTo(x - 3.5, y);
  context.lineTo(x + 3.5, y);
  if (inside !== false) {
    context.moveTo(x, y - 3.5);
    context.lineTo(x, y + 3.5);
  }
  context.stroke();
}

function drawCursor(context, { x, y }) {
  for (const [width, style] of [[3, "rgb(0 0 0 / 60%)"], [1.2, "white"]]) {
    context.beginPath();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      context.moveTo(x + 4 * dx, y + 4 * dy);
      context.lineTo(x + 16 * dx, y + 16 * dy);
    }
    context.lineWidth = width;
    context.strokeStyle = style;
    context.stroke();
  }
}
