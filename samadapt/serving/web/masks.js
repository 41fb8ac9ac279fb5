/** Masks of one slice: from run lengths to a bitmap, a picture in a colour, and an outline. */

/**
 * Options of a canvas that the processor draws. An outline may have thousands of edges, which a GPU
 * without much power takes seconds for. Copying a picture between the two is slow as well.
 */
export const BY_PROCESSOR = { willReadFrequently: true };

export class Mask {
  #pictures = new Map();
  #outline;

  /**
   * @param {{size: number[], counts: number[]}} runs lengths of runs down the columns, beginning
   *   with background, as COCO and the server write them
   */
  constructor({ size: [height, width], counts }) {
    this.height = height;
    this.width = width;
    this.bits = new Uint8Array(height * width); // row by row
    this.pixels = 0;
    let [x0, y0, x1, y1] = [width, height, 0, 0];
    let position = 0;
    for (let run = 0; run < counts.length; run += 1) {
      const end = position + counts[run];
      if (run % 2) {
        this.pixels += counts[run];
        for (let at = position; at < end; at += 1) {
          const x = Math.floor(at / height);
          const y = at - x * height;
          this.bits[y * width + x] = 1;
          if (x < x0) x0 = x;
          if (x >= x1) x1 = x + 1;
          if (y < y0) y0 = y;
          if (y >= y1) y1 = y + 1;
        }
      }
      position = end;
    }
    /** Columns x0 to x1 and rows y0 to y1, without the last ones, hold the object. */
    this.bounds = [x0, y0, x1, y1];
  }

  /** The object in a colour [r, g, b] on a canvas of the size of its bounds. */
  picture(color) {
    const key = color.join();
    if (!this.#pictures.has(key)) {
      const [x0, y0, x1, y1] = this.bounds;
      const canvas = new OffscreenCanvas(Math.max(1, x1 - x0), Math.max(1, y1 - y0));
      const context = canvas.getContext("2d", BY_PROCESSOR);
      const image = context.createImageData(canvas.width, canvas.height);
      for (let y = y0; y < y1; y += 1) {
        for (let x = x0; x < x1; x += 1) {
          if (this.bits[y * this.width + x]) {
            image.data.set([...color, 255], 4 * ((y - y0) * canvas.width + x - x0));
          }
        }
      }
      context.putImageData(image, 0, 0);
      this.#pictures.set(key, canvas);
    }
    return this.#pictures.get(key);
  }

  /** The edges between the object and its background, along the sides of pixels. */
  get outline() {
    if (!this.#outline) {
      this.#outline = new Path2D();
      const [x0, y0, x1, y1] = this.bounds;
      const inside = (x, y) =>
        x >= 0 && y >= 0 && x < this.width && y < this.height && this.bits[y * this.width + x];
      const edge = (x, y, horizontal) =>
        horizontal ? inside(x, y) !== inside(x, y - 1) : inside(y, x) !== inside(y - 1, x);
      for (const horizontal of [true, false]) {
        const [a0, a1, b0, b1] = horizontal ? [x0, x1, y0, y1] : [y0, y1, x0, x1];
        for (let b = b0; b <= b1; b += 1) {
          for (let a = a0, start = -1; a <= a1; a += 1) {
            const isEdge = a < a1 && Boolean(edge(a, b, horizontal));
            if (isEdge && start < 0) start = a;
            if (!isEdge && start >= 0) {
              this.#outline.moveTo(...(horizontal ? [start, b] : [b, start]));
              this.#outline.lineTo(...(horizontal ? [a, b] : [b, a]));
              start = -1;
            }
          }
        }
      }
    }
    return this.#outline;
  }
}
