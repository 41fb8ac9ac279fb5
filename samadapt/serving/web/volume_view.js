/**
 * A volume in NiiVue: the plane that the model sees, alone or beside the other planes and the object
 * in 3D. NiiVue gets no events of its own: the page moves it, so that clicks are prompts.
 */

const NIIVUE = "page/vendor/niivue.umd.js";
const PLANES = ["SAGITTAL", "CORONAL", "AXIAL"]; // by the axis of RAS+ across the plane
const RENDERING = 4; // NiiVue's number of the tile in 3D
let loading;

/** Load NiiVue when the first volume is opened. */
function loadNiivue() {
  loading ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = NIIVUE;
    script.onload = () => resolve(window.niivue);
    script.onerror = () => {
      loading = undefined;
      reject(new Error("NiiVue, which draws volumes, could not be loaded from the server."));
    };
    document.head.append(script);
  });
  return loading;
}

export class VolumeView {
  #axes; // of the slices' x, y and z: the axis of RAS+, its side, and whether it runs the other way

  /**
   * @param {HTMLElement} host
   * @param {File} file the NIfTI file
   * @param {object} about what the server says of the image: its axes and grey values
   */
  static async open(host, file, about) {
    const { Niivue, SLICE_TYPE } = await loadNiivue();
    const view = new VolumeView();
    view.canvas = document.createElement("canvas");
    host.replaceChildren(view.canvas);
    view.niivue = new Niivue({
      interactive: false,
      isRadiologicalConvention: true,
      sagittalNoseLeft: true,
      isSliceMM: false, // the planes of the file's voxels, as the model sees them
      backColor: [0.04, 0.04, 0.05, 1],
      fontColor: [0.6, 0.6, 0.65, 1],
      crosshairColor: [0.45, 0.65, 1, 0.7],
      crosshairWidth: 0,
      crosshairWidthUnit: "percent",
      isCornerOrientationText: false,
      isNearestInterpolation: true,
      logLevel: "error",
      loadingText: "",
    });
    await view.niivue.attachToCanvas(view.canvas, true);
    // Its name says how it is read, whatever the user calls it.
    const name = /\.gz$/i.test(file.name) ? "image.nii.gz" : "image.nii";
    await view.niivue.loadFromArrayBuffer(await file.arrayBuffer(), name);
    const [image] = view.niivue.volumes;
    if (!image) throw new Error(`NiiVue cannot draw ${file.name}.`);
    if (about.window) {
      [image.cal_min, image.cal_max] = about.window;
      view.niivue.updateGLVolume();
    }
    view.#axes = axesOf(about.axes, image.permRAS);
    view.plane = SLICE_TYPE[PLANES[view.#axes.z.ras]];
    view.types = SLICE_TYPE;
    view.height = about.height;
    view.width = about.width;
    view.setPlanes(false);
    return view;
  }

  /** Show all planes and the object in 3D, or the plane of the model alone. */
  setPlanes(all) {
    const { niivue } = this;
    this.hasPlanes = all;
    niivue.opts.crosshairWidth = all ? 0.4 : 0;
    if (all) {
      const { AXIAL, CORONAL, SAGITTAL, RENDER } = this.types;
      const others = [AXIAL, CORONAL, SAGITTAL].filter((plane) => plane !== this.plane);
      niivue.setCustomLayout([
        { sliceType: this.plane, position: [0, 0, 0.66, 1] },
        ...[...others, RENDER].map((sliceType, row) => (
          { sliceType, position: [0.67, row / 3, 0.33, 1 / 3] })),
      ]);
    } else {
      niivue.clearCustomLayout();
      niivue.setSliceType(this.plane);
    }
  }

  async show(slice) {
    this.slice = slice;
    const { ras, side, reversed } = this.#axes.z;
    const place = (slice + 0.5) / side;
    this.niivue.scene.crosshairPos[ras] = reversed ? 1 - place : place;
    this.draw();
  }

  draw() {
    this.niivue.drawScene();
  }

  resize() {
    this.niivue.resizeListener();
  }

  /** From pixels of the slice to CSS pixels of the window. */
  matrix() {
    const tile = this.#tile(this.plane);
    if (tile < 0) return new DOMMatrix();
    // The way back is what NiiVue gives; it is affine, so three places say all of it.
    const [left, top, width, height] = this.niivue.screenSlices[tile].leftTopWidthHeight;
    const ratio = this.#ratio();
    const [x0, y0] = [(left + width / 2) / ratio, (top + height / 2) / ratio];
    const step = Math.min(Math.abs(width), Math.abs(height)) / 4 / ratio;
    const [a, b, c] = [[x0, y0], [x0 + step, y0], [x0, y0 + step]].map((at) =>
      this.#pixelOf(this.#frac(...at, tile)));
    const back = new DOMMatrix([
      (b.x - a.x) / step, (b.y - a.y) / step, (c.x - a.x) / step, (c.y - a.y) / step, 0, 0,
    ]);
    const origin = back.transformPoint({ x: x0, y: y0 });
    return new DOMMatrix().translate(a.x - origin.x, a.y - origin.y).multiply(back).inverse();
  }

  /** The part of the window in which the plane of the model lies, in CSS pixels. */
  frame() {
    const tile = this.#tile(this.plane);
    if (tile < 0) return [0, 0, 0, 0];
    const [left, top, width, height] = this.niivue.screenSlices[tile].leftTopWidthHeight;
    const sides = width < 0 ? [left + width, top, -width, height] : [left, top, width, height];
    return sides.map((side) => side / this.#ratio());
  }

  zoom(factor, { x, y }) {
    if (!this.placeAt(x, y).isPlane) return;
    const pan = this.niivue.scene.pan2Dxyzmm;
    const zoom = Math.min(32, Math.max(0.25, pan[3] * factor));
    const place = this.#millimetres(x, y);
    const kept = [0, 1, 2].map((axis) => pan[axis] + place[axis] * (pan[3] - zoom));
    this.niivue.setPan2Dxyzmm([...kept, zoom]);
  }

  pan(dx, dy) {
    const [left, top, width, height] = this.frame();
    const [x, y] = [left + width / 2, top + height / 2];
    const [from, to] = [this.#millimetres(x, y), this.#millimetres(x + dx, y + dy)];
    const pan = this.niivue.scene.pan2Dxyzmm;
    const moved = [0, 1, 2].map((axis) => pan[axis] + pan[3] * (to[axis] - from[axis]));
    this.niivue.setPan2Dxyzmm([...moved, pan[3]]);
  }

  fit() {
    this.niivue.setPan2Dxyzmm([0, 0, 0, 1]);
  }

  /**
   * What lies at a place of the window: the plane of the model, another plane (and the slice that
   * goes through the place), or the object in 3D.
   */
  placeAt(x, y) {
    const [left, top, width, height] = this.frame();
    if (x >= left && x < left + width && y >= top && y < top + height) return { isPlane: true };
    const ratio = this.#ratio();
    const frac = this.niivue.canvasPos2frac([x * ratio, y * ratio]);
    if (frac[0] < 0) return { isRendering: this.#tile(RENDERING) >= 0 };
    return { slice: this.#sliceOf(frac), frac };
  }

  /** Move the other planes to a place of `placeAt`. */
  goTo(frac) {
    this.niivue.scene.crosshairPos = [...frac];
  }

  turn(dx, dy) {
    const { renderAzimuth, renderElevation } = this.niivue.scene;
    this.niivue.setRenderAzimuthElevation(renderAzimuth - dx / 2, renderElevation + dy / 2);
  }

  /**
   * Show masks in the other planes and in 3D.
   * @param {{masks: Map<number, Mask>, color: number[]}[]} layers later ones cover earlier ones
   */
  setMasks(layers) {
    if (!this.hasPlanes) return;
    const { niivue } = this;
    if (!niivue.drawBitmap) niivue.createEmptyDrawing();
    const bitmap = niivue.drawBitmap.fill(0);
    const colors = [[0, 0, 0], ...layers.map((layer) => layer.color)];
    const channel = (index) => colors.map((color) => color[index]);
    niivue.setDrawColormap({
      R: channel(0), G: channel(1), B: channel(2), A: colors.map((_, index) => (index ? 255 : 0)),
      I: colors.map((_, index) => index), labels: colors.map(() => ""),
    });
    const { x, y, z } = this.#axes;
    const sides = [];
    for (const axis of [x, y, z]) sides[axis.ras] = axis.side;
    const steps = [1, sides[0], sides[0] * sides[1]];
    const offset = ({ ras, side, reversed }, index) =>
      steps[ras] * (reversed ? side - 1 - index : index);
    layers.forEach(({ masks }, index) => {
      for (const [slice, mask] of masks) {
        const [x0, y0, x1, y1] = mask.bounds;
        for (let row = y0; row < y1; row += 1) {
          const start = offset(z, slice) + offset(y, row);
          for (let column = x0; column < x1; column += 1) {
            if (mask.bits[row * mask.width + column]) bitmap[start + offset(x, column)] = index + 1;
          }
        }
      }
    });
    niivue.setDrawOpacity(0.5);
    niivue.refreshDrawing(true);
  }

  close() {
    this.niivue.cleanup();
    this.niivue.gl.getExtension("WEBGL_lose_context")?.loseContext();
    this.canvas.remove();
  }

  #ratio() {
    return this.canvas.width / this.canvas.clientWidth;
  }

  #tile(plane) {
    return this.niivue.screenSlices.findIndex((one) => one.axCorSag === plane);
  }

  #frac(x, y, tile) {
    const ratio = this.#ratio();
    return this.niivue.screenXY2TextureFrac(x * ratio, y * ratio, tile, false);
  }

  #millimetres(x, y) {
    const tile = this.#tile(this.plane);
    return this.niivue.frac2mm(this.#frac(x, y, tile));
  }

  #along({ ras, side, reversed }, frac) {
    return side * (reversed ? 1 - frac[ras] : frac[ras]);
  }

  #pixelOf(frac) {
    return { x: this.#along(this.#axes.x, frac), y: this.#along(this.#axes.y, frac) };
  }

  #sliceOf(frac) {
    const { z } = this.#axes;
    return Math.min(z.side - 1, Math.max(0, Math.floor(this.#along(z, frac))));
  }
}

/**
 * Where rows, columns and slices lie in NiiVue's axes, which run to the right, anterior, superior.
 * @param {{axis: number, reversed: boolean, side: number}[]} described rows, columns and slices in
 *   the axes of the file
 * @param {number[]} permutation for each axis of RAS+ the one of the file, counted from 1, and
 *   negative if it runs the other way
 */
export function axesOf(described, permutation) {
  const [y, x, z] = described.map(({ axis, reversed, side }) => {
    const ras = permutation.findIndex((one) => Math.abs(one) === axis + 1);
    return { ras, side, reversed: reversed !== permutation[ras] < 0 };
  });
  return { x, y, z };
}
