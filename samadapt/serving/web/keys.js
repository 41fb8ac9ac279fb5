/** The keys of the page: one table, which handles them and is shown under `?`. */

/** Rows of [keys, what they do, name of the command]; keys are those of KeyboardEvent.key. */
export const KEYS = [
  [["o"], "Open a file", "open"],
  [["c"], "Tool: click", "points"],
  [["b"], "Tool: box", "box"],
  [["s"], "Tool: scribble", "scribble"],
  [["m"], "Tool: move the image", "move"],
  [["x"], "Mark the background instead of the object", "background"],
  [["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"],
    "Move the cursor; with Shift by 10 pixels", "cursor"],
  [[" "], "Click at the cursor (with Shift: background); begin and end a box or scribble", "press"],
  [["PageUp", "."], "Next slice", "next"],
  [["PageDown", ","], "Previous slice", "previous"],
  [["Home"], "First slice", "first"],
  [["End"], "Last slice", "last"],
  [["u", "Ctrl+z"], "Undo", "undo"],
  [["r"], "Take all prompts of the object back", "reset"],
  [["n"], "New object", "add"],
  [["]"], "Next object", "nextObject"],
  [["["], "Previous object", "previousObject"],
  [["Delete"], "Remove the object", "remove"],
  [["v"], "Carry the object through the volume", "carry"],
  [["a"], "Next adapter", "nextModel"],
  [["d"], "Compare two adapters side by side", "compare"],
  [["l"], "All planes and 3D", "planes"],
  [["h"], "Hide or show the masks", "hide"],
  [["+", "="], "Zoom in", "zoomIn"],
  [["-"], "Zoom out", "zoomOut"],
  [["0"], "Fit the image into the window", "fit"],
  [["Enter"], "Accept the masks", "accept"],
  [["w", "Ctrl+s"], "Save the masks", "save"],
  [["Escape"], "Stop what is being drawn", "cancel"],
  [["?"], "This list", "help"],
];

const NAMES = {
  " ": "Space", ArrowLeft: "\u2190", ArrowRight: "\u2192", ArrowUp: "\u2191", ArrowDown: "\u2193",
};
const byKey = new Map(KEYS.flatMap(([keys, , command]) => keys.map((key) => [key, command])));

/** Fill a table with the keys. */
export function list(table) {
  for (const [keys, text] of KEYS) {
    const row = table.insertRow();
    const cell = row.insertCell();
    for (const key of keys) {
      const shown = document.createElement("kbd");
      shown.textContent = NAMES[key] ?? (key.length === 1 ? key.toUpperCase() : key);
      cell.append(shown, " ");
    }
    row.insertCell().textContent = text;
  }
}

/** Call commands by their keys, unless the key belongs to what has the focus. */
export function listen(commands) {
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.isComposing || document.querySelector("dialog[open]")) return;
    const control = event.ctrlKey || event.metaKey;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const command = byKey.get(control ? `Ctrl+${key}` : key);
    const { target } = event;
    const isField = target.matches("input, select, textarea");
    const isPressed = target.matches("button, a") && [" ", "Enter"].includes(key);
    if (!command || isPressed || (isField && !control)) return;
    event.preventDefault();
    commands[command](event);
  });
}
