// From the pixels of a picture to the input of the encoder, and from logits back to a mask.
//
//   RGBA bytes (h, w)          as the browser decodes the file
//     |  grade: the intensity rule
//   RGB bytes (h, w)
//     |  resize: bilinear with antialiasing, rounded to bytes after each axis, as Pillow does
//   RGB bytes (h', w')
//     |  normalise, pad right and below with zeros
//   floats (3, s, s)           model frame
//
// The numbers are those of samadapt, so that the masks are too.

/** Return where a picture lies in the model's square: {width, height} of the resized picture. */
export function frameOf(width, height, model) {
  const side = model.image_size;
  if (model.resize === "squash") return { width: side, height: side };
  const scale = side / Math.max(width, height);
  return {
    width: Math.max(1, Math.floor(width * scale + 0.5)),
    height: Math.max(1, Math.floor(height * scale + 0.5)),
  };
}

/** Return RGB bytes of RGBA bytes, after the intensity rule of the adapter. */
export function grade(rgba, rule) {
  const count = rgba.length / 4;
  const rgb = new Uint8Array(3 * count);
  for (let i = 0; i < count; i++) {
    for (let c = 0; c < 3; c++) rgb[3 * i + c] = rgba[4 * i + c];
  }
  if (rule.kind !== "percentile" && rule.kind !== "all_percentile") return rgb;
  const [low, high] = bounds(rgb, rule);
  const table = new Uint8Array(256);
  for (let value = 0; value < 256 && high > low; value++) {
    const scaled = Math.min(Math.max((255 * (value - low)) / (high - low), 0), 255);
    table[value] = roundHalfEven(scaled);
  }
  return rgb.map((value) => table[value]);
}

/** Return the values that become 0 and 255: percentiles with linear interpolation. */
function bounds(values, rule) {
  const counts = new Float64Array(256);
  for (const value of values) counts[value]++;
  if (rule.kind === "percentile") counts[0] = 0; // 0 is the background
  const total = counts.reduce((sum, n) => sum + n, 0);
  if (total === 0) return [0, 0];
  const at = (rank) => {
    let seen = 0;
    for (let value = 0; value < 256; value++) {
      seen += counts[value];
      if (rank < seen) return value;
    }
    return 255;
  };
  const percentile = (share) => {
    const place = ((total - 1) * share) / 100;
    const below = at(Math.floor(place));
    return below + (place - Math.floor(place)) * (at(Math.ceil(place)) - below);
  };
  const [low, high] = [percentile(rule.low), percentile(rule.high)];
  if (low === high) return high > 0 ? [0, high] : [low, 0]; // 0 and one other value
  return [low, high];
}

function roundHalfEven(value) {
  const whole = Math.round(value);
  return Math.abs(value % 1) === 0.5 && whole % 2 ? whole - 1 : whole;
}

/** Return the first input pixel and the weights of each output pixel along one axis. */
function filter(from, to) {
  const scale = from / to;
  const support = Math.max(scale, 1); // a triangle; it is wider where the axis shrinks
  const places = [];
  for (let x = 0; x < to; x++) {
    const centre = (x + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - support + 0.5));
    const last = Math.min(from, Math.floor(centre + support + 0.5));
    const weights = [];
    for (let k = first; k < last; k++) {
      weights.push(Math.max(0, 1 - Math.abs((k + 0.5 - centre) / support)));
    }
    const sum = weights.reduce((total, weight) => total + weight, 0);
    places.push({ first, weights: weights.map((weight) => weight / sum) });
  }
  return places;
}

/** Resize RGB bytes (h, w, 3), rounding to bytes after each axis. */
export function resize(rgb, width, height, toWidth, toHeight) {
  let source = rgb;
  if (toWidth !== width) {
    const places = filter(width, toWidth);
    const wide = new Uint8Array(3 * toWidth * height);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < toWidth; x++) {
        const { first, weights } = places[x];
        for (let c = 0; c < 3; c++) {
          let sum = 0;
          for (let k = 0; k < weights.length; k++) {
            sum += weights[k] * source[3 * (y * width + first + k) + c];
          }
          wide[3 * (y * toWidth + x) + c] = Math.floor(sum + 0.5);
        }
      }
    }
    source = wide;
  }
  if (toHeight === height) return source;
  const places = filter(height, toHeight);
  const out = new Uint8Array(3 * toWidth * toHeight);
  const row = 3 * toWidth;
  for (let y = 0; y < toHeight; y++) {
    const { first, weights } = places[y];
    for (let x = 0; x < row; x++) {
      let sum = 0;
      for (let k = 0; k < weights.length; k++) sum += weights[k] * source[(first + k) * row + x];
      out[y * row + x] = Math.floor(sum + 0.5);
    }
  }
  return out;
}

/** Return floats (3, s, s) for the encoder, of RGBA bytes. */
export function toInput(rgba, width, height, model) {
  const frame = frameOf(width, height, model);
  const rgb = grade(rgba, model.intensity);
  const small = resize(rgb, width, height, frame.width, frame.height);
  let mean = model.mean;
  let std = model.std;
  if (model.normalization === "min_max") {
    let low = 255;
    let high = 0;
    for (const value of small) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
    mean = [low, low, low];
    std = [0, 0, 0].map(() => Math.max(high - low, 1e-8));
  }
  const side = model.image_size;
  const out = new Float32Array(3 * side * side);
  for (let c = 0; c < 3; c++) {
    for (let y = 0; y < frame.height; y++) {
      for (let x = 0; x < frame.width; x++) {
        const value = small[3 * (y * frame.width + x) + c];
        out[(c * side + y) * side + x] = (value - mean[c]) / std[c];
      }
    }
  }
  return out;
}

/** Return, for each output place along one axis, the two inputs and the share of the second. */
function between(from, to) {
  const first = new Int32Array(to);
  const second = new Int32Array(to);
  const share = new Float32Array(to);
  for (let x = 0; x < to; x++) {
    const place = Math.max(0, ((x + 0.5) * from) / to - 0.5);
    first[x] = Math.min(Math.floor(place), from - 1);
    second[x] = Math.min(first[x] + 1, from - 1);
    share[x] = place - Math.floor(place);
  }
  return { first, second, share };
}

/** Resize a plane to (toHeight, toWidth), bilinear; only the first rows and columns are computed. */
function enlarge(plane, size, to, rows, columns) {
  const across = between(size.width, to.width);
  const down = between(size.height, to.height);
  // Rows of the input that are needed, stretched across.
  const last = down.second[rows - 1] + 1;
  const wide = new Float32Array(last * columns);
  for (let y = 0; y < last; y++) {
    const start = y * size.width;
    for (let x = 0; x < columns; x++) {
      const one = plane[start + across.first[x]];
      wide[y * columns + x] = one + across.share[x] * (plane[start + across.second[x]] - one);
    }
  }
  const out = new Float32Array(rows * columns);
  for (let y = 0; y < rows; y++) {
    const one = down.first[y] * columns;
    const two = down.second[y] * columns;
    const share = down.share[y];
    for (let x = 0; x < columns; x++) {
      out[y * columns + x] = wide[one + x] + share * (wide[two + x] - wide[one + x]);
    }
  }
  return out;
}

/** Bring logits (n, n) of the model's square to the picture: floats (h, w). */
export function toPicture(logits, width, height, model) {
  const frame = frameOf(width, height, model);
  const low = { width: 4 * model.grid, height: 4 * model.grid };
  const square = { width: model.image_size, height: model.image_size };
  const inside = enlarge(logits, low, square, frame.height, frame.width);
  return enlarge(inside, frame, { width, height }, height, width);
}
