/** One line for the user: what happened, or what was refused, with a button if something helps. */

const element = document.getElementById("messages");
let timer;

/**
 * @param {string} text
 * @param {{isError?: boolean, action?: string, do?: () => void}} options the text of a button, and
 *   what it does
 */
export function say(text, { isError = false, action, do: act } = {}) {
  clearTimeout(timer);
  const line = document.createElement("span");
  line.textContent = text;
  element.replaceChildren(line);
  element.className = isError ? "error" : "";
  if (action) {
    const button = document.createElement("button");
    button.textContent = action;
    button.addEventListener("click", () => {
      element.replaceChildren();
      act();
    });
    element.append(button);
  } else if (!isError) {
    timer = setTimeout(() => element.replaceChildren(), 8000);
  }
}

export function clear() {
  clearTimeout(timer);
  element.replaceChildren();
  element.className = "";
}
