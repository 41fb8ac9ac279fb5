/** A picture, or one slice of a volume as a model sees it, on a canvas. */

const KEPT = 48; // decoded slices

export class PictureView {
  #bitmaps = new Map();
  #scale = 0; // CSS pixels for a pixel of the image; 0: fits the window
  #middle; // of the window, in pixels of the image

  /**
   * @param {HTMLElement} host
   * @param {{height: number, width: number, spacing: number[] | null}} image spacing of rows and
   *   columns
   * @param {(slice: number) => Promise<Blob>} load the picture of a slice
   */
  constructor(host, { height, width, spacing }, load) {
    this.height = height;
    this.width = width;
    this.load = load;
    this.slice = 0;
    const [row, column] = spacing ?? [1, 1];
    /** Size of a pixel; its shorter side is 1. */
    this.pixel = { x: column / Math.min(row, column), y: row / Math.min(row, column) };
    this.canvas = document.createElement("canvas");
    host.replaceChildren(this.canvas);
    this.#middle = [width / 2, height / 2];
  }

  async show(slice) {
    this.slice = slice;
    if (!this.#bitmaps.has(slice)) {
      this.#bitmaps.set(slice, await createImageBitmap(await this.load(slice)));
      if (this.#bitmaps.size > KEPT) {
        const [oldest] = this.#bitmaps.keys();
        this.#bitmaps.get(oldest).close();
        this.#bitmaps.delete(oldest);
      }
    }
    if (this.slice === slice) this.draw();
  }

  /** From pixels of the slice to CSS pixels of the window. */
  matrix() {
    const { clientWidth, clientHeight } = this.canvas;
    const scale = this.#scale || this.#fitting();
    const [x, y] = this.#middle;
    return new DOMMatrix()
      .translate(clientWidth / 2, clientHeight / 2)
      .scale(scale * this.pixel.x, scale * this.pixel.y)
      .translate(-x, -y);
  }

  #fitting() {
    const { clientWidth, clientHeight } = this.canvas;
    const [width, height] = [this.width * this.pixel.x, this.height * this.pixel.y];
    return Math.max(0.01, 0.96 * Math.min(clientWidth / width, clientHeight / height));
  }

  draw() {
    const ratio = window.devicePixelRatio;
    const { canvas } = this;
    canvas.width = Math.round(canvas.clientWidth * ratio);
    canvas.height = Math.round(canvas.clientHeight * ratio);
    const bitmap = this.#bitmaps.get(this.slice);
    if (!bitmap) return;
    const context = canvas.getContext("2d");
    const matrix = new DOMMatrix().scale(ratio).multiply(this.matrix());
    context.setTransform(matrix);
    context.imageSmoothingEnabled = matrix.a < 3; // larger pixels are shown as squares
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, this.width, this.height);
  }

  zoom(factor, { x, y }) {
    const before = this.matrix().inverse().transformPoint({ x, y });
    this.#scale = Math.min(64, Math.max(0.02, (this.#scale || this.#fitting()) * factor));
    const after = this.matrix().inverse().transformPoint({ x, y });
    this.#middle = [this.#middle[0] + before.x - after.x, this.#middle[1] + before.y - after.y];
    this.draw();
  }

  pan(dx, dy) {
    const matrix = this.matrix();
    this.#scale ||= this.#fitting();
    this.#middle = [this.#middle[0] - dx / matrix.a, this.#middle[1] - dy / matrix.d];
    this.draw();
  }

  fit() {
    this.#scale = 0;
    this.#middle = [this.width / 2, this.height / 2];
    this.draw();
  }

  resize() {
    this.draw();
  }

  /** The part of the window in which the image may lie, in CSS pixels. */
  frame() {
    return [0, 0, this.canvas.clientWidth, this.canvas.clientHeight];
  }

  /** Where a place of the window is; a picture has no other planes. */
  placeAt() {
    return { isPlane: true };
  }

  setMasks() {}

  close() {
    for (const bitmap of this.#bitmaps.values()) bitmap.close();
    this.canvas.remove();
  }
}
