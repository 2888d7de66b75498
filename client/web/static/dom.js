/* Makes elements. Text goes in as text nodes only: nothing here or elsewhere parses a string as HTML. */

const SVG = "http://www.w3.org/2000/svg";

const ICONS = {
  copy: ["M9 9h10v11H9z", "M5 15V4h10"],
  check: ["M5 12.5l4.5 4.5L19 7"],
  again: ["M20 11a8 8 0 1 0-2.3 6.2", "M20 4v7h-7"],
  edit: ["M4 20h4L19 9l-4-4L4 16z", "M13 7l4 4"],
  trash: ["M4 7h16", "M9 7V4h6v3", "M6 7l1 13h10l1-13"],
  left: ["M14 6l-6 6 6 6"],
  right: ["M10 6l6 6-6 6"],
  more: ["M6 12h12", "M13 7l5 5-5 5"],
  route: ["M5 19a2 2 0 1 0 0-.01", "M19 5a2 2 0 1 0 0-.01", "M7 19h7a4 4 0 0 0 0-8h-4a4 4 0 0 1 0-8h7"],
};

/** An element. `given`: attributes; `text` and `on` (listeners by event) are special; null and false leave one out. */
export function el(tag, given = {}, ...children) {
  return fill(document.createElement(tag), given, children);
}

/** The same for a part of a picture. */
export function svg(tag, given = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), given, children);
}

/** A line drawing of 24 by 24, without meaning for screen readers. */
export function icon(name) {
  const paths = ICONS[name].map((d) => svg("path", { d }));
  return svg("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true" }, ...paths);
}

/** A button that is a picture; `label` is its name. */
export function iconButton(name, label, onClick, given = {}) {
  const attributes = { type: "button", class: "ghost", "aria-label": label, title: label, ...given };
  return el("button", { ...attributes, on: { click: onClick } }, icon(name));
}

/** Copies `text()` and shows for a moment that it did. */
export function copyButton(label, text) {
  const button = iconButton("copy", label, async () => {
    const done = await copy(text());
    button.replaceChildren(icon(done ? "check" : "copy"));
    say(done ? "Copied" : "The browser did not allow copying");
    setTimeout(() => button.replaceChildren(icon("copy")), 1500);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text); // pages without TLS have no clipboard
  }
}

function copyBySelection(text) {
  const area = el("textarea", { class: "sr", "aria-hidden": "true" });
  const before = document.activeElement;
  area.value = text;
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  before?.focus();
  return done;
}

/** Tell screen readers something, once. */
export function say(text) {
  const live = document.getElementById("say");
  if (!live) return;
  live.append(el("p", { text }));
  while (live.childNodes.length > 8) live.firstChild.remove();
}

function fill(element, given, children) {
  for (const [name, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}
