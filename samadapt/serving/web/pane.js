/** One model's view of the image, with what is drawn over it. Two panes compare two models. */

import { Overlay } from "./overlay.js";
import { listen } from "./pointer.js";
import { Drawing } from "./tools.js";

export class Pane {
  #drawing = null;
  #cursor = null;

  /**
   * @param {HTMLElement} host
   * @param {string} model its name
   * @param {object} app the page: its study, objects, tool, and what it does with prompts
   */
  constructor(host, model, app) {
    this.model = model;
    this.app = app;
    this.element = document.createElement("figure");
    this.caption = document.createElement("figcaption");
    this.host = document.createElement("div");
    this.element.append(this.caption, this.host);
    host.append(this.element);
    const images = document.createElement("div");
    this.host.append(images);
    this.images = images;
    this.overlay = new Overlay(this.host, () => this.#scene());
    const { canvas } = this.overlay;
    canvas.tabIndex = 0;
    canvas.setAttribute("aria-label", `Image as ${model} sees it`);
    listen(canvas, this.#gestures());
    canvas.addEventListener("blur", () => this.#setCursor(null));
    this.resizes = new ResizeObserver(() => {
      this.view?.resize();
      this.overlay.redraw();
    });
    this.resizes.observe(this.host);
  }

  /** Show a view, from the first slice that `show` names. */
  setView(view) {
    this.view?.close();
    this.view = view;
  }

  async show(slice) {
    this.#drawing = null;
    await this.view.show(slice);
    await this.refresh();
  }

  /** Draw masks and prompts anew; resolves when they are drawn. */
  refresh() {
    const { study, slice, active } = this.app;
    if (!study || !this.view) return this.overlay.redraw();
    if (this.view.hasPlanes) {
      const shown = this.app.isHidden ? [] : study.objects;
      this.view.setMasks(shown.map((object) => ({
        masks: object.answers.get(this.model)?.masks ?? new Map(), color: object.color,
      })));
    }
    const iou = active?.answers.get(this.model)?.predictedIou.get(slice);
    this.caption.textContent = iou === undefined
      ? this.model : `${this.model}, predicted IoU ${iou.toFixed(2)}`;
    return this.overlay.redraw();
  }

  zoom(factor, place) {
    const [left, top, width, height] = this.view.frame();
    this.view.zoom(factor, place ?? { x: left + width / 2, y: top + height / 2 });
    this.overlay.redraw();
  }

  fit() {
    this.view.fit();
    this.overlay.redraw();
  }

  /** Move the cursor of the keyboard by pixels of the image. */
  moveCursor(dx, dy) {
    const { width, height } = this.view;
    const { x, y } = this.#cursor ?? { x: width / 2, y: height / 2 };
    const kept = (value, side) => Math.min(side - 0.5, Math.max(0.5, value));
    this.#setCursor({ x: kept(x + dx, width), y: kept(y + dy, height) });
    this.#drawing?.move(this.#cursor);
  }

  /** A click at the cursor; a box or a scribble begins with one, and ends with the next. */
  press(isBackground, time) {
    if (!this.#cursor) this.moveCursor(0, 0);
    else if (this.#drawing) this.#finish(time);
    else {
      this.#begin(this.#cursor, isBackground);
      if (this.app.tool === "points") this.#finish(time);
    }
    this.overlay.redraw();
  }

  /** Drop what is being drawn; returns whether there was anything. */
  cancel() {
    const had = this.#drawing !== null;
    this.#drawing = null;
    this.overlay.redraw();
    return had;
  }

  close() {
    this.resizes.disconnect();
    this.view?.close();
    this.element.remove();
  }

  #setCursor(place) {
    this.#cursor = place;
    this.overlay.redraw();
  }

  #begin(place, isBackground) {
    const inside = !(this.app.isBackground || isBackground);
    const size = [this.view.width, this.view.height];
    const tool = this.app.tool === "move" ? "points" : this.app.tool;
    this.#drawing = new Drawing(tool, place, inside, size);
  }

  #finish(time) {
    const prompt = this.#drawing?.prompt(this.app.slice);
    this.#drawing = null;
    if (prompt) this.app.prompt(prompt, time);
    else this.app.hint();
  }

  #pixel({ x, y }) {
    return this.view.matrix().inverse().transformPoint({ x, y });
  }

  #gestures() {
    return {
      begin: (place, isBackground) => {
        if (!this.view) return;
        const found = this.view.placeAt(place.x, place.y);
        this.elsewhere = found.isPlane ? null : found;
        if (found.isPlane) this.#begin(this.#pixel(place), isBackground);
        else if (found.frac) this.#jump(found);
        this.#setCursor(null);
      },
      move: (place) => {
        if (this.elsewhere?.frac) {
          const found = this.view.placeAt(place.x, place.y);
          if (found.frac) this.#jump(found);
        }
        this.#drawing?.move(this.#pixel(place));
        this.overlay.redraw();
      },
      end: (place, time) => {
        if (this.#drawing) this.#finish(time);
        this.overlay.redraw();
      },
      cancel: () => this.cancel(),
      pan: (dx, dy, place) => {
        if (!this.view) return;
        if (this.view.placeAt(place.x, place.y).isRendering) this.view.turn(dx, dy);
        else this.view.pan(dx, dy);
        this.overlay.redraw();
      },
      zoom: (factor, place) => this.view && this.zoom(factor, place),
      wheel: (steps, place) => {
        if (!this.view) return;
        if (this.app.study?.isVolume) this.app.goTo(this.app.slice - steps);
        else this.zoom(Math.exp(-steps / 6), place);
      },
      pans: (place) =>
        this.app.tool === "move" || Boolean(this.view?.placeAt(place.x, place.y).isRendering),
    };
  }

  #jump({ slice, frac }) {
    this.view.goTo(frac);
    this.app.goTo(slice);
  }

  #scene() {
    const { app } = this;
    const { study, slice } = app;
    if (!study || !this.view) return null;
    const layers = app.isHidden ? [] : study.objects.map((object) => ({
      mask: object.mask(this.model, slice),
      color: object.color,
      isActive: object === app.active,
      isFilled: !this.view.hasPlanes, // there, NiiVue fills it in all planes
    })).filter((layer) => layer.mask);
    layers.sort((one, other) => one.isActive - other.isActive);
    const marks = app.isHidden ? [] : (app.active?.actions ?? [])
      .filter((action) => action.kind !== "carry" && action.slice === slice);
    return {
      matrix: this.view.matrix(),
      frame: this.view.frame(),
      layers,
      marks,
      draft: this.#drawing?.prompt(slice),
      cursor: this.#cursor,
    };
  }
}
