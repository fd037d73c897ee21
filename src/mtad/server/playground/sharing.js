// Settings in the address, and requests as commands.

import { byId } from "./dom.js";

const LONGEST_PROMPT = 120;
const NEVER = new Set(["key", "side"]);

const controls = () =>
  [...byId("form").elements].filter((item) => item.name && !NEVER.has(item.name) && item.type !== "fieldset");

const valueOf = (control) => {
  if (control.type === "checkbox") return control.checked ? "1" : "0";
  if (control.type === "radio") return byId("form").elements[control.name].value;
  return control.value;
};

/** All values by name, as text. */
export const formValues = () => Object.fromEntries(controls().map((control) => [control.name, valueOf(control)]));

/** The settings that are not the page's own, for the address; prompts only while they are short. */
export function hashOf(values, defaults) {
  const changed = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    const isText = name === "prompt" || name === "system";
    if (value !== defaults[name] && !(isText && value.length > LONGEST_PROMPT)) changed.set(name, value);
  }
  return changed.toString();
}

/** Puts an address's settings into the form; unknown names are passed over. */
export function applyHash(hash) {
  const wanted = new URLSearchParams(hash.replace(/^#/, ""));
  for (const control of controls()) {
    const value = wanted.get(control.name);
    if (value === null) continue;
    if (control.type === "checkbox") control.checked = value === "1";
    else if (control.type === "radio") control.checked = control.value === value;
    else if (control.tagName !== "SELECT" || [...control.options].some((item) => item.value === value))
      control.value = value;
  }
}

const shellQuoted = (text) => `'${text.replace(/'/g, "'\\''")}'`;

/** A request as a command; a key is named, never written out. */
export function asCurl({ path, body }, needsKey) {
  const lines = [`curl -N ${new URL(path, document.baseURI).href}`, "-H 'content-type: application/json'"];
  if (needsKey) lines.push('-H "authorization: Bearer $MTAD_API_KEY"');
  return [...lines, `-d ${shellQuoted(JSON.stringify(body))}`].join(" \\\n  ");
}

/** Copies a text and says so on the button for a moment. */
export async function copy(text, button) {
  const label = button.dataset.label ?? button.textContent;
  button.dataset.label = label;
  button.textContent = (await write(text)) ? "Copied" : "Copying is not allowed here";
  setTimeout(() => (button.textContent = label), 1500);
}

async function write(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return writeBySelection(text);
  }
}

/** Pages that come without TLS from another machine have no clipboard but this one. */
function writeBySelection(text) {
  const box = document.createElement("textarea");
  box.value = text;
  document.body.append(box);
  box.select();
  const isDone = document.execCommand("copy");
  box.remove();
  return isDone;
}
