/** What is drawn with a tool, in pixels of a slice, becomes a prompt of the server. */

export const TOOLS = ["points", "box", "scribble", "move"];

const SIDE = 1; // pixel; a smaller box is a mistake of the hand
const MOST_POINTS = 2000; // of a scribble

/** A drawing that has begun. */
export class Drawing {
  /**
   * @param {string} tool one of TOOLS, other than "move"
   * @param {{x: number, y: number}} start
   * @param {boolean} inside whether it marks the object, or the background
   * @param {number[]} size [width, height] of the slice
   */
  constructor(tool, start, inside, [width, height]) {
    this.tool = tool;
    this.inside = inside;
    this.size = [width, height];
    this.places = [this.#kept(start)];
    this.startsInside = start.x >= 0 && start.y >= 0 && start.x <= width && start.y <= height;
  }

  move(place) {
    const kept = this.#kept(place);
    const [x, y] = this.places.at(-1);
    if (this.tool === "box") this.places[1] = kept;
    else if (this.tool === "scribble" && Math.hypot(kept[0] - x, kept[1] - y) >= 0.5) {
      this.places.push(kept);
    }
  }

  /** The prompt so far, on a slice; null: there is none, because it lies outside of the image. */
  prompt(slice) {
    const { inside, places } = this;
    if (this.tool === "box") {
      const [[x0, y0], [x1, y1]] = [places[0], places.at(-1)];
      const box = [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
      const isSmall = box[2] - box[0] < SIDE || box[3] - box[1] < SIDE;
      return isSmall ? null : { kind: "box", slice, box, inside };
    }
    if (!this.startsInside) return null;
    if (this.tool === "scribble" && places.length > 1) {
      const every = Math.ceil(places.length / MOST_POINTS);
      const points = places.filter((_, index) => index % every === 0);
      return { kind: "scribble", slice, points, inside };
    }
    return { kind: "points", slice, points: [places[0]], inside };
  }

  #kept({ x, y }) {
    const [width, height] = this.size;
    const round = (value) => Math.round(value * 100) / 100;
    return [round(Math.min(width, Math.max(0, x))), round(Math.min(height, Math.max(0, y)))];
  }
}
