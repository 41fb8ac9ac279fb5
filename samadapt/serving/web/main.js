/** The page: what the user does, and what is shown. */

import { Refusal, adapters } from "./api.js";
import { showBusy, watch } from "./encoding.js";
import * as keys from "./keys.js";
import { clear, say } from "./messages.js";
import { showObjects } from "./objects_panel.js";
import { Pane } from "./pane.js";
import { PictureView } from "./picture_view.js";
import { formatsOf, save } from "./save.js";
import { SegmentedObject, Study, carrying } from "./study.js";
import { TOOLS } from "./tools.js";
import { VolumeView } from "./volume_view.js";

// Okabe and Ito's colours, which people with colour blindness tell apart as well.
const COLORS = [
  [86, 180, 233], [230, 159, 0], [204, 121, 167], [0, 158, 115], [240, 228, 66], [213, 94, 0],
  [0, 114, 178],
];
const get = (id) => document.getElementById(id);

class App {
  study = null;
  active = null; // the object that prompts change
  slice = 0;
  tool = "points";
  isBackground = false;
  isHidden = false;
  hasPlanes = false;
  panes = [];
  #made = 0; // objects
  #opening = 0;
  #pending = 0; // what the server has not answered

  async start() {
    this.#bind();
    this.setTool("points");
    try {
      this.adapters = await adapters();
    } catch (refusal) {
      this.report(refusal);
      return;
    }
    for (const id of ["model", "other"]) {
      get(id).append(...this.adapters.map((one) => {
        const option = new Option(one.name, one.name);
        option.disabled = !one.takes_prompts;
        option.title = one.notes.join("; ");
        return option;
      }));
    }
    const usable = this.adapters.filter((one) => one.takes_prompts).map((one) => one.name);
    if (!usable.length) {
      const [{ notes }] = this.adapters;
      say(`No adapter here takes clicks: ${notes.join("; ")}.`, { isError: true });
    }
    get("model").value = usable[0] ?? "";
    get("other").value = usable.find((one) => one === "base" && one !== usable[0]) ?? usable[1] ?? "";
    get("compare").disabled = usable.length < 2;
    this.#showNotes();
    this.#showState();
  }

  /** Names of the models that are shown, the one whose masks are saved first. */
  models() {
    const first = get("model").value;
    const other = get("other").value;
    return this.isComparing && other !== first ? [first, other] : [first];
  }

  get isComparing() {
    return get("compare").getAttribute("aria-pressed") === "true";
  }

  // Files

  async open(file) {
    if (!file) return;
    clear();
    this.#opening += 1;
    const turn = this.#opening;
    showBusy(`Sending ${file.name}`);
    try {
      this.#close();
      const study = await Study.open(file, get("model").value);
      if (turn !== this.#opening) {
        study.api.drop().catch(() => {});
        return;
      }
      this.study = study;
      this.#made = 0;
      this.add();
      const { slices } = this.#about();
      this.slice = Math.floor(slices / 2);
      get("file-name").textContent = file.name;
      get("timing").value = "";
      get("slices").hidden = slices === 1;
      get("slice").max = slices - 1;
      const options = Object.entries(formatsOf(study)).map(([key, name]) => new Option(name, key));
      get("save").replaceChildren(new Option("as ...", ""), ...options);
      document.body.classList.add("opened");
      await this.#showPanes();
      watch(study, this.models());
    } catch (error) {
      showBusy(null);
      this.report(error, () => this.open(file));
      if (!this.study) document.body.classList.remove("opened");
    }
  }

  /** Send an image again that the server has dropped, with all prompts. */
  async #resend() {
    const { study } = this;
    showBusy(`Sending ${study.file.name} again`);
    await this.#do(async () => {
      await study.send(get("model").value);
      for (const model of this.models()) await study.seenBy(model);
      watch(study, this.models());
      await study.bring(study.objects, this.models());
    });
  }

  #close() {
    this.study?.api.drop().catch(() => {}); // it expires by itself
    this.study = this.active = null;
    for (const pane of this.panes) pane.close();
    this.panes = [];
  }

  #about(model = get("model").value) {
    return this.study.about.get(model);
  }

  // Views

  async #showPanes() {
    const { study } = this;
    const models = this.models();
    for (const model of models) await study.seenBy(model);
    for (const pane of this.panes) pane.close();
    get("panes").classList.toggle("two", models.length > 1);
    this.panes = models.map((model) => new Pane(get("panes"), model, this));
    for (const [index, pane] of this.panes.entries()) {
      const about = this.#about(pane.model);
      // Beside NiiVue, a second model's slices are shown as that model sees them.
      if (study.isVolume && index === 0) {
        pane.setView(await VolumeView.open(pane.images, study.file, about));
        pane.view.setPlanes(this.hasPlanes);
      } else {
        const size = { ...about, spacing: about.spacing_mm };
        const load = (slice) => study.api.picture(slice, pane.model);
        pane.setView(new PictureView(pane.images, size, load));
      }
    }
    await this.goTo(this.slice);
  }

  async goTo(slice) {
    if (!this.study) return;
    const { slices } = this.#about();
    this.slice = Math.min(slices - 1, Math.max(0, slice));
    get("slice").value = this.slice;
    get("slice-name").value = `${this.slice + 1} / ${slices}`;
    await this.#do(() => Promise.all(this.panes.map((pane) => pane.show(this.slice))));
  }

  /** Show other models, for which the prompts are answered anew. */
  async changeModels() {
    this.#showNotes();
    const { study } = this;
    if (!study) return;
    await this.#do(async () => {
      const [first, ...others] = this.models();
      const axes = [];
      for (const model of [first, ...others]) axes.push((await study.seenBy(model)).axes);
      const known = this.#about(this.panes[0].model).axes;
      if (axes.some((one) => JSON.stringify(one) !== JSON.stringify(known))) {
        get("model").value = this.panes[0].model;
        this.#press("compare", false);
        throw new Error("These adapters slice volumes along different axes; open the file anew.");
      }
      const isSame = this.panes.map((pane) => pane.model).join() === this.models().join();
      if (!isSame) await this.#showPanes();
      watch(study, this.models());
      await study.bring(study.objects, this.models());
    });
    get("other-label").hidden = !this.isComparing;
  }

  setTool(tool) {
    this.tool = tool;
    for (const button of document.querySelectorAll("[data-tool]")) {
      button.setAttribute("aria-checked", button.dataset.tool === tool);
    }
    for (const pane of this.panes) pane.cancel();
    get("panes").classList.toggle("moving", tool === "move");
  }

  #toggle(id, now) {
    this.#press(id, now);
    for (const pane of this.panes) pane.refresh();
  }

  #press(id, isOn) {
    get(id).setAttribute("aria-pressed", isOn);
  }

  toggleBackground() {
    this.isBackground = !this.isBackground;
    this.#toggle("background", this.isBackground);
  }

  toggleHidden() {
    this.isHidden = !this.isHidden;
    this.#toggle("hide", this.isHidden);
  }

  togglePlanes() {
    if (!this.study?.isVolume) return;
    this.hasPlanes = !this.hasPlanes;
    this.panes[0].view.setPlanes(this.hasPlanes);
    this.#toggle("planes", this.hasPlanes);
  }

  // Objects and prompts

  add() {
    if (!this.study) return;
    const unused = this.study.objects.find((one) => !one.actions.length);
    if (unused) {
      this.activate(unused);
      return;
    }
    const color = COLORS[this.#made % COLORS.length];
    this.#made += 1;
    const label = this.active?.label ?? this.#classes()[0] ?? "";
    const object = new SegmentedObject(`Object ${this.#made}`, label, color);
    this.study.objects.push(object);
    this.activate(object);
  }

  activate(object) {
    this.active = object;
    this.#refresh();
  }

  activateNext(step) {
    const objects = this.study?.objects ?? [];
    const index = objects.indexOf(this.active) + step;
    if (objects[index]) this.activate(objects[index]);
  }

  async remove(object) {
    if (!object) return;
    const { study } = this;
    const removed = study.remove(object);
    if (object === this.active) this.active = study.objects.at(-1) ?? null;
    if (!this.active) this.add();
    await this.#do(() => removed);
  }

  async relabel(object, label) {
    await this.#do(() => this.study.relabel(object, label));
  }

  /** A prompt of the user on the shown slice; `time` is when it was given, in ms. */
  async prompt(prompt, time) {
    clear();
    const { study, active } = this;
    const answered = study.act(active, prompt, this.models());
    for (const pane of this.panes) pane.overlay.redraw();
    if (!(await this.#do(() => answered))) return;
    const { duration } = performance.measure("click-to-mask", { start: time });
    get("timing").value = `mask in ${Math.round(duration)} ms`;
  }

  hint() {
    say("Mark a place within the image.");
  }

  async undo() {
    if (!this.active?.actions.length) {
      say("There is nothing to undo.");
      return;
    }
    await this.#do(() => this.study.undo(this.active, 1, this.models()));
  }

  async reset() {
    const { active } = this;
    if (!active?.actions.length) return;
    await this.#do(() => this.study.undo(active, active.actions.length, this.models()));
  }

  async carry() {
    if (!this.study?.isVolume) return;
    if (!this.active.actions.some((action) => action.kind !== "carry")) {
      say("Mark the object on a slice first; then it is carried to the others.");
      return;
    }
    showBusy(`Carrying ${this.active.name} through the volume`);
    const isDone = await this.#do(() => this.study.act(this.active, carrying(), this.models()));
    showBusy(null);
    if (isDone) watch(this.study, this.models());
  }

  // Results

  async save(format) {
    get("save").value = "";
    if (!this.study || !format) return;
    const objects = this.#found();
    if (!objects) return;
    await this.#do(async () => {
      await this.study.inTurn(() => {});
      say(`Saved as ${await save(this.study, format, objects)}.`);
    });
  }

  async accept() {
    if (!this.study) return;
    const objects = this.#found();
    if (!objects) return;
    await this.#do(async () => {
      const { file } = await this.study.inTurn(() => this.study.api.accept(objects));
      say(`Accepted: ${file} is in the folder of corrections, for samadapt engine accept.`);
    });
  }

  #found() {
    const objects = this.study.found(this.models()[0]);
    if (objects.length) return objects;
    say("There is no mask yet: mark an object first.");
    return null;
  }

  // What is shown around the image

  async #refresh() {
    this.#showState();
    await Promise.all(this.panes.map((pane) => pane.refresh()));
  }

  #showState() {
    const { study } = this;
    showObjects(this, this.#classes());
    const hasMask = Boolean(study?.found(this.models()[0]).length);
    get("save").disabled = get("accept").disabled = !hasMask;
    get("undo").disabled = get("reset").disabled = !this.active?.actions.length;
    get("carry").disabled = get("planes").disabled = !study?.isVolume;
    for (const id of ["add", "fit", "hide"]) get(id).disabled = !study;
  }

  #adapter(name) {
    return this.adapters.find((one) => one.name === name);
  }

  /** Names of the classes of the first model; the base has those of the first adapter. */
  #classes() {
    const own = this.#adapter(get("model").value)?.classes ?? [];
    return own.length ? own : this.adapters?.[0].classes ?? [];
  }

  #showNotes() {
    const rows = this.models().map((name) => [name, this.#adapter(name)?.notes ?? []]);
    get("model-notes").textContent = rows
      .filter(([, notes]) => notes.length)
      .map(([name, notes]) => `${name}: ${notes.join("; ")}.`)
      .join("\n");
  }

  /** Do something that the server may refuse, and show the result; returns whether it was done. */
  async #do(what) {
    this.#pending += 1;
    get("stage").setAttribute("aria-busy", true);
    let isDone = true;
    try {
      await what();
    } catch (error) {
      isDone = false;
      this.report(error);
    }
    await this.#refresh();
    this.#pending -= 1;
    if (!this.#pending) get("stage").setAttribute("aria-busy", false);
    return isDone;
  }

  /** Say why something was not done; `again` does it once more. */
  report(error, again) {
    const isRefusal = error instanceof Refusal;
    if (isRefusal && error.status === 410 && this.study) {
      const action = { action: "Send it again", do: () => this.#resend() };
      say(error.message, { isError: true, ...action });
    } else if (again && isRefusal && [0, 408, 503].includes(error.status)) {
      say(error.message, { isError: true, action: "Try again", do: again });
    } else {
      say(error.message, { isError: true });
      if (!isRefusal) console.warn(error);
    }
  }

  // Events

  #bind() {
    const choose = () => get("file").click();
    const onClick = {
      open: choose, "open-here": choose, help: () => get("help-dialog").showModal(),
      background: () => this.toggleBackground(), hide: () => this.toggleHidden(),
      planes: () => this.togglePlanes(), undo: () => this.undo(), reset: () => this.reset(),
      carry: () => this.carry(), add: () => this.add(), accept: () => this.accept(),
      fit: () => this.panes.forEach((pane) => pane.fit()),
      compare: () => this.#compare(),
      "slice-down": () => this.goTo(this.slice - 1), "slice-up": () => this.goTo(this.slice + 1),
    };
    for (const [id, act] of Object.entries(onClick)) get(id).addEventListener("click", act);
    for (const button of document.querySelectorAll("[data-tool]")) {
      button.addEventListener("click", () => this.setTool(button.dataset.tool));
    }
    get("file").addEventListener("change", ({ target }) => {
      this.open(target.files[0]);
      target.value = ""; // so that the same file can be opened again
    });
    get("slice").addEventListener("input", ({ target }) => this.goTo(Number(target.value)));
    get("model").addEventListener("change", () => this.changeModels());
    get("other").addEventListener("change", () => this.changeModels());
    get("save").addEventListener("change", ({ target }) => this.save(target.value));
    for (const select of document.querySelectorAll("header select")) {
      select.addEventListener("change", () => select.blur()); // the next key is one of the page
    }
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      this.open(event.dataTransfer.files[0]);
    });
    window.addEventListener("pagehide", () => this.study?.api.drop().catch(() => {}));
    keys.list(get("keys"));
    keys.listen(this.#commands(onClick));
  }

  #compare() {
    this.#press("compare", !this.isComparing);
    get("other-label").hidden = !this.isComparing;
    this.changeModels();
  }

  #commands(onClick) {
    const tools = TOOLS.map((tool) => [tool, () => this.setTool(tool)]);
    const last = () => this.#about().slices - 1;
    const zoom = (factor) => () => this.panes.forEach((pane) => pane.zoom(factor));
    return {
      ...onClick,
      ...Object.fromEntries(tools),
      cursor: (event) => this.#moveCursor(event),
      press: (event) => this.#focused()?.press(event.shiftKey, event.timeStamp),
      next: () => this.goTo(this.slice + 1),
      previous: () => this.goTo(this.slice - 1),
      first: () => this.goTo(0),
      last: () => this.study && this.goTo(last()),
      nextObject: () => this.activateNext(1),
      previousObject: () => this.activateNext(-1),
      remove: () => this.remove(this.active),
      nextModel: () => this.#nextModel(),
      zoomIn: zoom(1.25),
      zoomOut: zoom(0.8),
      save: () => this.save(Object.keys(this.study ? formatsOf(this.study) : {})[0]),
      cancel: () => this.panes.forEach((pane) => pane.cancel()),
    };
  }

  #focused() {
    const { activeElement } = document;
    return this.panes.find((one) => one.overlay.canvas === activeElement) ?? this.panes[0];
  }

  #moveCursor({ key, shiftKey }) {
    const pane = this.#focused();
    if (!pane) return;
    const step = shiftKey ? 10 : 1;
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const [x, y] = moves[key];
    pane.overlay.canvas.focus({ preventScroll: true });
    pane.moveCursor(step * x, step * y);
  }

  #nextModel() {
    const names = this.adapters.filter((one) => one.takes_prompts).map((one) => one.name);
    const select = get("model");
    select.value = names[(names.indexOf(select.value) + 1) % names.length];
    this.changeModels();
  }
}

new App().start();
