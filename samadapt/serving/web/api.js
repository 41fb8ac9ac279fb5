/** Requests to the server. All addresses are relative to the page, so a path prefix may come first. */

/** The server refused a request, or did not answer: `status` is 0 then. */
export class Refusal extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

const HINTS = {
  0: "The server does not answer. Is `samadapt serve` still running?",
  401: "The token is no longer valid. Open the address that `samadapt serve` printed last.",
  403: "The server refuses this address. Open the one that `samadapt serve` printed.",
  410: "The server has dropped the image, because nobody used it for a while.",
};

async function send(method, path, { body, json, query, keepalive } = {}) {
  const url = new URL(path, document.baseURI);
  for (const [name, value] of Object.entries(query ?? {})) {
    if (value !== undefined && value !== null) url.searchParams.set(name, value);
  }
  const headers = json === undefined ? {} : { "Content-Type": "application/json" };
  let answer;
  try {
    answer = await fetch(url, {
      method, headers, keepalive, body: json === undefined ? body : JSON.stringify(json),
    });
  } catch {
    throw new Refusal(0, HINTS[0]);
  }
  if (answer.ok) return answer;
  const detail = await answer.json().then((one) => one.detail, () => "");
  throw new Refusal(
    answer.status, HINTS[answer.status] ?? detail ?? `The server answers ${answer.status}.`,
  );
}

const sendJson = async (...request) => (await send(...request)).json();

export const adapters = () => sendJson("GET", "api/adapters");

/** Send a file; returns the key of its image and what the model sees of it. */
export const addImage = (file, adapter) =>
  sendJson("POST", "api/images", { body: file, query: { name: file.name, adapter } });

/** One image on the server. */
export class ImageApi {
  constructor(key) {
    this.path = `api/images/${key}`;
  }

  about = () => sendJson("GET", this.path);
  drop = () => send("DELETE", this.path, { keepalive: true });
  encode = (adapter) => sendJson("POST", `${this.path}/encode`, { json: { adapter } });
  accept = (objects) => sendJson("POST", `${this.path}/accept`, { json: { objects } });

  async picture(index, adapter) {
    return (await send("GET", `${this.path}/slices/${index}`, { query: { adapter } })).blob();
  }

  async file(format, objects) {
    const query = { format, objects: objects.join(",") };
    return (await send("GET", `${this.path}/labels`, { query })).blob();
  }

  async addObject(adapter, label) {
    const { object } = await sendJson("POST", `${this.path}/objects`, { json: { adapter, label } });
    return new ObjectApi(`${this.path}/objects/${object}`, object);
  }
}

/** One object of one model in an image on the server. */
export class ObjectApi {
  constructor(path, number) {
    this.path = path;
    this.number = number;
  }

  prompt = (prompt) => sendJson("POST", `${this.path}/prompts`, { json: prompt });
  carry = () => sendJson("POST", `${this.path}/carry`);
  undo = () => sendJson("POST", `${this.path}/undo`);
  masks = () => sendJson("GET", `${this.path}/masks`);
  relabel = (label) => send("PATCH", this.path, { json: { label } });
  drop = () => send("DELETE", this.path);
}
