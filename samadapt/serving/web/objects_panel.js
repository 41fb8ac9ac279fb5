/** The list of objects: colour, class, predicted IoU and size; one of them is active. */

const list = document.getElementById("objects");

/**
 * @param {object} app the page
 * @param {string[]} classes names that an object may have; empty: there are none
 */
export function showObjects(app, classes) {
  const objects = app.study?.objects ?? [];
  list.replaceChildren(...objects.map((object) => rowOf(app, object, classes)));
}

function rowOf(app, object, classes) {
  const row = document.createElement("li");
  row.className = object === app.active ? "active" : "";

  const choose = document.createElement("button");
  choose.className = "choose";
  choose.setAttribute("aria-pressed", object === app.active);
  const color = document.createElement("span");
  color.className = "color";
  color.style.background = `rgb(${object.color})`;
  const name = document.createElement("span");
  name.textContent = object.name;
  choose.append(color, name);
  choose.addEventListener("click", () => app.activate(object));
  row.append(choose);

  if (classes.length) {
    const select = document.createElement("select");
    select.setAttribute("aria-label", `Class of ${object.name}`);
    select.append(...classes.map((one) => new Option(one, one, false, one === object.label)));
    select.addEventListener("change", () => {
      select.blur(); // so that the next key is one of the page
      app.relabel(object, select.value);
    });
    row.append(select);
  }

  const remove = document.createElement("button");
  remove.textContent = "\u00d7";
  remove.className = "quiet";
  remove.setAttribute("aria-label", `Remove ${object.name}`);
  remove.title = "Remove (Delete)";
  remove.addEventListener("click", () => app.remove(object));
  row.append(remove);

  const facts = document.createElement("p");
  facts.className = "facts muted";
  facts.textContent = app.models().map((model) => factsOf(object, model, app)).join("\n");
  row.append(facts);
  return row;
}

/** What a model found of an object: its size, and the IoU that it predicts. */
function factsOf(object, model, app) {
  const answer = object.answers.get(model);
  const name = app.models().length > 1 ? `${model}: ` : "";
  if (!answer?.done.length) return `${name}no mask yet`;
  if (!answer.masks.size) return `${name}nothing found; mark more of it`;
  let pixels = 0;
  for (const mask of answer.masks.values()) pixels += mask.pixels;
  const size = app.study.isVolume
    ? `${pixels.toLocaleString("en")} voxels, ${answer.masks.size} slices`
    : `${pixels.toLocaleString("en")} pixels`;
  const iou = answer.predictedIou.get(app.slice);
  return `${name}${size}${iou === undefined ? "" : `, predicted IoU ${iou.toFixed(2)}`}`;
}
