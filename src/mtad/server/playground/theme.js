// Light, dark, or as the system says.

import { byId } from "./dom.js";

const NAMES = ["auto", "light", "dark"];
const KEY = "mtad-theme";

function show(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  byId("theme").textContent = `Theme: ${name}`;
}

/** Makes the button go through the themes, and begins with the last one chosen. */
export function startTheme() {
  let current = NAMES.includes(localStorage.getItem(KEY)) ? localStorage.getItem(KEY) : "auto";
  show(current);
  byId("theme").addEventListener("click", () => {
    current = NAMES[(NAMES.indexOf(current) + 1) % NAMES.length];
    localStorage.setItem(KEY, current);
    show(current);
  });
}
