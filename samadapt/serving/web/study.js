/**
 * An opened image with its objects. An object is a list of actions; each model that is shown answers
 * to the same actions, so that switching the model, or comparing two, needs no new clicks.
 */

import { ImageApi, Refusal, addImage } from "./api.js";
import { Mask } from "./masks.js";

/** The action that carries an object through the volume; the others are prompts of the server. */
export const carrying = () => ({ kind: "carry" });

/** What one model answers to the actions of one object. */
class Answer {
  constructor(api) {
    this.api = api;
    this.done = []; // actions that the server has carried out
    this.masks = new Map(); // by slice
    this.predictedIou = new Map(); // by prompted slice
  }

  take(slice, runs, iou) {
    const mask = new Mask(runs);
    if (mask.pixels) this.masks.set(slice, mask);
    else this.masks.delete(slice);
    if (iou === null || iou === undefined) this.predictedIou.delete(slice);
    else this.predictedIou.set(slice, iou);
  }

  async refresh() {
    const { masks, predicted_iou: ious } = await this.api.masks();
    const read = (value) => ([slice, one]) => [Number(slice), value(one)];
    this.masks = new Map(Object.entries(masks).map(read((runs) => new Mask(runs))));
    this.predictedIou = new Map(Object.entries(ious).map(read((iou) => iou)));
  }

  async perform(action) {
    if (action.kind === "carry") {
      await this.api.carry();
      await this.refresh();
    } else {
      const found = await this.api.prompt(action);
      this.take(found.slice, found.mask, found.predicted_iou);
    }
    this.done.push(action);
  }

  async undo() {
    await this.api.undo();
    this.done.pop();
    await this.refresh();
  }
}

/** An object that the user segments. */
export class SegmentedObject {
  constructor(name, label, color) {
    this.name = name;
    this.label = label;
    this.color = color;
    this.actions = [];
    this.answers = new Map(); // by the name of the model
  }

  mask(model, slice) {
    return this.answers.get(model)?.masks.get(slice);
  }
}

export class Study {
  #queue = Promise.resolve();

  /** Send a file to the server and return the study of its image. */
  static async open(file, model) {
    const study = new Study();
    study.file = file;
    await study.send(model);
    return study;
  }

  /** Send the file (again); the server encodes it for a model. */
  async send(model) {
    const { image, ...about } = await addImage(this.file, model);
    this.api = new ImageApi(image);
    this.about = new Map([[model, about]]); // what each model sees
    for (const one of this.objects ?? []) one.answers.clear();
    this.objects ??= [];
  }

  get isVolume() {
    return this.about.values().next().value.axes !== null;
  }

  /** Let the server encode the image for another model; returns what that model sees. */
  async seenBy(model) {
    if (!this.about.has(model)) this.about.set(model, await this.api.encode(model));
    return this.about.get(model);
  }

  /** Run steps one after the other, in the order of the user's actions. */
  inTurn(step) {
    const turn = this.#queue.then(step);
    this.#queue = turn.catch(() => {});
    return turn;
  }

  /**
   * Add an action to an object and let models answer.
   * @throws {Refusal} the action is taken back if the first model refuses it
   */
  act(object, action, models) {
    object.actions.push(action);
    return this.inTurn(async () => {
      if (!object.actions.includes(action)) return; // undone while it waited
      try {
        await this.#bring(object, models);
      } catch (refusal) {
        const mistake = refusal instanceof Refusal && [409, 413, 422].includes(refusal.status);
        if (mistake) object.actions.splice(object.actions.indexOf(action), 1);
        throw refusal;
      }
    });
  }

  /** Take the last actions of an object back. */
  undo(object, count, models) {
    object.actions.splice(object.actions.length - count, count);
    return this.inTurn(() => this.#bring(object, models));
  }

  /** Let models answer to the actions that they have not seen yet. */
  bring(objects, models) {
    return this.inTurn(async () => {
      for (const object of objects) await this.#bring(object, models);
    });
  }

  relabel(object, label) {
    object.label = label;
    return this.inTurn(async () => {
      for (const answer of object.answers.values()) await answer.api.relabel(label);
    });
  }

  remove(object) {
    this.objects.splice(this.objects.indexOf(object), 1);
    return this.inTurn(async () => {
      for (const answer of object.answers.values()) await answer.api.drop();
    });
  }

  /** Numbers of the objects on the server that a model has found something of. */
  found(model) {
    return this.objects
      .map((object) => object.answers.get(model))
      .filter((answer) => answer?.masks.size)
      .map((answer) => answer.api.number);
  }

  async #bring(object, models) {
    for (const model of models) {
      let answer = object.answers.get(model);
      if (answer && !(await this.#undone(answer, object.actions))) {
        await answer.api.drop();
        object.answers.delete(model);
        answer = undefined;
      }
      if (!object.actions.length && !answer) continue;
      if (!answer) {
        answer = new Answer(await this.api.addObject(model, object.label));
        object.answers.set(model, answer);
      }
      const wanted = [...object.actions]; // what comes meanwhile has its own turn
      for (const action of wanted.slice(answer.done.length)) await answer.perform(action);
    }
  }

  /** Undo on the server what was taken back; false: it is too long ago, and all is done again. */
  async #undone(answer, actions) {
    const isKept = (action, step) => action === actions[step];
    try {
      while (!answer.done.every(isKept)) await answer.undo();
      return true;
    } catch (refusal) {
      if (refusal.status === 409) return false;
      throw refusal;
    }
  }
}
