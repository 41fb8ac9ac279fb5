/** Says how far the server has encoded the image. */

import { Refusal } from "./api.js";

const EVERY = 300; // ms
const bar = document.getElementById("progress");
const [progress, label] = [bar.querySelector("progress"), bar.querySelector("span")];
let watched;

/** Show a bar without an end, such as while a file is sent; null: hide it. */
export function showBusy(text) {
  watched = undefined;
  bar.hidden = text === null;
  label.textContent = text ?? "";
  progress.removeAttribute("value");
}

/** Show the progress of an image for models until all its slices are encoded. */
export async function watch(study, models) {
  const turn = {};
  watched = turn;
  while (watched === turn) {
    let about;
    try {
      about = await study.api.about();
    } catch (refusal) {
      if (!(refusal instanceof Refusal)) throw refusal;
      break; // the next action of the user says why
    }
    if (watched !== turn) return;
    const rows = models.map((model) => about.encoded[model]).filter(Boolean);
    const [done, all] = ["slices", "of"].map((key) => rows.reduce((sum, row) => sum + row[key], 0));
    if (done >= all) break;
    bar.hidden = false;
    label.textContent = all > 1 ? `Encoding: ${done} of ${all} slices` : "Encoding the picture";
    progress.max = all;
    if (done) progress.value = done;
    else progress.removeAttribute("value");
    await new Promise((resolve) => setTimeout(resolve, EVERY));
  }
  if (watched === turn) bar.hidden = true;
}
