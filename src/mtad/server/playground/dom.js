// Small helpers for building the page.

const SVG = "http://www.w3.org/2000/svg"; // a name, not an address

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** The element with an id. */
export const byId = (id) => document.getElementById(id);

/** A new HTML element. */
export const html = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

/** A new SVG element. */
export const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

/** A token's text with its blanks made visible, cut to a length. */
export function visibleText(text, length = 40) {
  const shown = text.replace(/ /g, "\u00b7").replace(/\n/g, "\u21b5").replace(/\t/g, "\u21e5");
  return shown.length > length ? shown.slice(0, length - 1) + "\u2026" : shown || "(empty)";
}

/** A token's text in quotes, for sentences. */
export const quoted = (text) => `\u201c${text.trim().replace(/\n/g, "\u21b5") || visibleText(text)}\u201d`;

/** A number with a true minus sign; null is minus infinity, as the server says it. */
export function signed(value, digits = 2) {
  if (value === null) return "\u2212\u221e";
  return value.toFixed(digits).replace("-", "\u2212");
}

/** A share as per cent. */
export const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)}%`;

/** A count with its noun. */
export const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

/** Calls a function at most once a frame. */
export function oncePerFrame(call) {
  let isWaiting = false;
  return () => {
    if (isWaiting) return;
    isWaiting = true;
    requestAnimationFrame(() => {
      isWaiting = false;
      call();
    });
  };
}
