/** Mouse, pen and touch, brought to a few gestures in CSS pixels of an element. */

const STILL = 4; // CSS pixels that a finger may move in a click

/**
 * @param {HTMLElement} element
 * @param {object} on called with places {x, y}:
 *   `begin(place, isBackground)`, `move(place)`, `end(place, time)` and `cancel()` of a drawing with
 *   one finger or button; `pan(dx, dy, place)`; `zoom(factor, place)`; `wheel(steps, place)`;
 *   `pans(place)`: whether one finger pans there
 */
export function listen(element, on) {
  const down = new Map(); // places of fingers and buttons
  let gesture = null; // "draw", "pan" or "pinch"
  let start;

  const place = (event) => {
    const { left, top } = element.getBoundingClientRect();
    return { x: event.clientX - left, y: event.clientY - top };
  };

  element.addEventListener("pointerdown", (event) => {
    if (event.button > 2) return;
    event.preventDefault();
    document.activeElement?.blur(); // so that the next key is not one of a field
    element.setPointerCapture(event.pointerId);
    down.set(event.pointerId, place(event));
    if (down.size === 2) {
      if (gesture === "draw") on.cancel();
      gesture = "pinch";
    } else if (down.size === 1) {
      start = place(event);
      gesture = event.button === 1 || on.pans(start) ? "pan" : "draw";
      if (gesture === "draw") on.begin(start, event.shiftKey || event.button === 2);
    }
  });

  element.addEventListener("pointermove", (event) => {
    const last = down.get(event.pointerId);
    if (!last) return;
    const now = place(event);
    if (gesture === "draw") {
      on.move(now);
    } else if (gesture === "pan") {
      on.pan(now.x - last.x, now.y - last.y, start);
    } else if (gesture === "pinch" && down.size === 2) {
      const [other] = [...down].filter(([key]) => key !== event.pointerId).map(([, at]) => at);
      const distance = (at) => Math.hypot(at.x - other.x, at.y - other.y);
      const middle = { x: (now.x + other.x) / 2, y: (now.y + other.y) / 2 };
      on.pan((now.x - last.x) / 2, (now.y - last.y) / 2, middle);
      if (distance(last) > STILL) on.zoom(distance(now) / distance(last), middle);
    }
    down.set(event.pointerId, now);
  });

  const up = (event) => {
    if (!down.delete(event.pointerId)) return;
    if (gesture === "draw") {
      if (event.type === "pointerup") on.end(place(event), event.timeStamp);
      else on.cancel();
    }
    if (!down.size) gesture = null;
    else if (gesture === "draw") gesture = "pinch";
  };
  element.addEventListener("pointerup", up);
  element.addEventListener("pointercancel", up);
  element.addEventListener("contextmenu", (event) => event.preventDefault());

  let scrolled = 0;
  element.addEventListener("wheel", (event) => {
    event.preventDefault();
    const pixels = event.deltaY * (event.deltaMode === 1 ? 33 : 1);
    if (event.ctrlKey) {
      on.zoom(Math.exp(-pixels / 300), place(event));
      return;
    }
    scrolled += pixels;
    const steps = Math.trunc(scrolled / 40);
    if (steps) {
      scrolled -= 40 * steps;
      on.wheel(steps, place(event));
    }
  }, { passive: false });
}
