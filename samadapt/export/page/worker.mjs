// The model in a worker, so that the page answers while the encoder runs.

import * as ort from "./onnxruntime-web/ort.wasm.min.mjs";

ort.env.wasm.wasmPaths = new URL("./onnxruntime-web/", import.meta.url).href;
ort.env.logLevel = "error";

let encoder, decoder, model, embedding;

const tensor = (data, dims) => new ort.Tensor("float32", Float32Array.from(data), dims);

const tasks = {
  async load(given) {
    model = given.model;
    ort.env.wasm.numThreads = given.threads;
    const options = { executionProviders: ["wasm"], graphOptimizationLevel: "all" };
    encoder = await ort.InferenceSession.create("encoder.onnx", options);
    decoder = await ort.InferenceSession.create("decoder.onnx", options);
    return {};
  },

  async encode({ pixels }) {
    const side = model.image_size;
    const given = { input_image: new ort.Tensor("float32", pixels, [1, 3, side, side]) };
    embedding = (await encoder.run(given)).image_embeddings;
    return {};
  },

  /** Decode one object; `mask` is the logits of its last mask, or null. */
  async decode({ points, labels, mask }) {
    const low = 4 * model.grid;
    const found = await decoder.run({
      image_embeddings: embedding,
      point_coords: tensor(points.flat(), [1, points.length, 2]),
      point_labels: tensor(labels, [1, labels.length]),
      mask_input: tensor(mask ?? new Float32Array(low * low), [1, 1, low, low]),
      has_mask_input: tensor([mask ? 1 : 0], [1]),
    });
    return {
      logits: found.low_res_masks.data,
      iou: found.iou_predictions.data,
      classes: found.class_logits?.data,
    };
  },
};

self.onmessage = async ({ data }) => {
  try {
    self.postMessage({ id: data.id, result: await tasks[data.task](data) });
  } catch (error) {
    self.postMessage({ id: data.id, error: String(error?.message ?? error) });
  }
};
