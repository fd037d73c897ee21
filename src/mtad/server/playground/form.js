// The form: dials out of the server's facts, requests out of the dials, refusals at their field.

import { Refusal } from "./client.js";
import { byId, html } from "./dom.js";
import { DIALS, METHODS, REQUEST_NAMES } from "./methods.js";

const OWN = "default";
const FIRST = ["method", "threshold"];
const DECADES = 3; // the slider goes from 0.001 to 1
const STEPS = 300;

export const sliderToThreshold = (place) => Number((10 ** (DECADES * (place / STEPS - 1))).toPrecision(2));
export const thresholdToSlider = (value) => Math.round(STEPS * (1 + Math.log10(value) / DECADES));

/** Makes the dials that the server describes. */
export function buildDials(facts) {
  for (const [name, label] of Object.entries(DIALS)) {
    const place = byId(FIRST.includes(name) ? "main-dials" : "more-dials");
    place.append(field(name, label, facts));
  }
  byId("second_method").append(...methodOptions(facts));
  byId("second_method").value = "speculative";
  byId("second_threshold").value = facts.dials.threshold.default;
  linkThreshold();
  byId("method").addEventListener("change", () => showIdle(facts));
  for (const name of ["drafter", "verifier"]) byId(name).addEventListener("change", () => showIdle(facts));
}

function field(name, label, facts) {
  const dial = facts.dials[name];
  const control = dial.choices ? selection(name, dial, facts) : number(name, dial);
  control.setAttribute("aria-describedby", `${name}-hint ${name}-error`);
  const hint = name === "method" ? "" : dial.help;
  return html(
    "div",
    { class: "field", "data-field": name },
    html("label", { for: name }, label),
    name === "threshold" ? html("div", { class: "pair" }, slider(), control) : control,
    html("p", { class: "hint", id: `${name}-hint`, "data-help": hint }, hint),
    html("p", { class: "error", id: `${name}-error`, role: "alert" }),
  );
}

function selection(name, dial, facts) {
  const options =
    name === "method" ? methodOptions(facts) : dial.choices.map((item) => html("option", { value: item }, item));
  if (name !== "method") options.unshift(html("option", { value: "" }, OWN));
  const control = html("select", { id: name, name }, ...options);
  control.value = dial.default ?? "";
  return control;
}

const methodOptions = (facts) => facts.methods.map(({ name }) => html("option", { value: name }, name));

function number(name, dial) {
  const isWhole = Number.isInteger(dial.default) && !["temperature", "top_p", "threshold"].includes(name);
  return html("input", {
    id: name,
    name,
    type: "number",
    value: String(dial.default),
    step: isWhole ? "1" : "any",
    inputmode: isWhole ? "numeric" : "decimal",
  });
}

function slider() {
  return html("input", {
    id: "threshold-slider",
    type: "range",
    min: "0",
    max: String(STEPS),
    "aria-label": "Threshold on a logarithmic slider",
  });
}

function linkThreshold() {
  const [bar, box] = [byId("threshold-slider"), byId("threshold")];
  bar.addEventListener("input", () => {
    box.value = sliderToThreshold(Number(bar.value));
    bar.setAttribute("aria-valuetext", box.value);
    box.dispatchEvent(new Event("change", { bubbles: true }));
  });
  box.addEventListener("input", () => followThreshold());
  followThreshold();
}

function followThreshold() {
  const [bar, value] = [byId("threshold-slider"), Number(byId("threshold").value)];
  if (value > 0) bar.value = thresholdToSlider(Math.min(value, 1));
  bar.setAttribute("aria-valuetext", byId("threshold").value);
}

/** Says at every dial whether the chosen method uses it, and what the method is. */
export function showIdle(facts) {
  const method = byId("method").value;
  const isOwn = !byId("drafter").value && !byId("verifier").value;
  const idle = isOwn ? (METHODS[method]?.idle ?? []) : [];
  const { is_lossless: isLossless } = facts.methods.find(({ name }) => name === method) ?? {};
  const law = isLossless ? "Lossless." : "Lossy by design.";
  byId("method-hint").textContent = isOwn
    ? `${METHODS[method]?.note ?? ""} ${law}`.trim()
    : "With a drafter or rule of your choice, below.";
  for (const name of ["threshold", "beam_width", "gamma"]) {
    const hint = byId(`${name}-hint`);
    hint.textContent = idle.includes(name) ? `Not used by ${method}.` : hint.dataset.help;
  }
}

const form = () => byId("form").elements;

function asNumber(control) {
  if (control.validity.badInput) throw new Refusal("Expected a number here; write one such as 0.5.", 0, control.name);
  return control.value === "" ? undefined : Number(control.value);
}

/** The requests that the form asks for, each {path, body, label}; a second one where methods are compared. */
export function requests(facts) {
  const dials = {};
  for (const name of Object.keys(DIALS)) {
    const value = facts.dials[name].choices ? form()[name].value || undefined : asNumber(form()[name]);
    if (value !== undefined) dials[REQUEST_NAMES[name] ?? name] = value;
  }
  dials.seed ??= Math.floor(Math.random() * 2 ** 31);
  const explain = form().explain.checked;
  const extras = { stream: true, provenance: true, explain };
  const found = [request({ ...dials, ...extras }, explain)];
  if (form().compare.checked) {
    const { drafter, verifier, ...shared } = dials;
    const own = { method: form().second_method.value, threshold: asNumber(form().second_threshold) };
    found.push(request({ ...shared, ...own, ...extras }, explain));
  }
  return found;
}

function request(settings, explain) {
  const prompt = form().prompt.value;
  const parts = [settings.drafter, settings.verifier].filter(Boolean);
  const label = [settings.method, ...parts].join(" \u00b7 ");
  const named = { label, threshold: settings.threshold, gamma: settings.gamma };
  if (form().mode.value === "raw") {
    return { ...named, path: "v1/completions", body: { prompt, logprobs: explain ? 3 : 0, ...settings } };
  }
  const system = form().system.value.trim();
  const messages = [...(system ? [{ role: "system", content: system }] : []), { role: "user", content: prompt }];
  const tops = explain ? { top_logprobs: 3 } : {};
  return { ...named, path: "v1/chat/completions", body: { messages, logprobs: true, ...tops, ...settings } };
}

const FIELDS = Object.fromEntries(Object.entries(REQUEST_NAMES).map(([ours, theirs]) => [theirs, ours]));

/** The field that a refusal is about, if one is: by the server's `param`, else by the sentence's first word. */
export function fieldOf(refusal, side) {
  if (refusal.status === 401) return "key";
  const word = refusal.param ?? refusal.message.split(/[ :]/, 1)[0];
  const first = word.split(".", 1)[0];
  const name = first === "messages" ? "prompt" : (FIELDS[first] ?? first);
  const own = side && byId(`second_${name}`) ? `second_${name}` : name;
  return byId(`${own}-error`) ? own : null;
}

/** Shows a refusal at its field, or false where it has none. */
export function showAtField(refusal, side) {
  const name = fieldOf(refusal, side);
  if (name === null) return false;
  byId(`${name}-error`).textContent = refusal.message;
  const control = byId(name);
  control.setAttribute("aria-invalid", "true");
  for (let part = control.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
  control.focus();
  return true;
}

/** Takes all refusals away. */
export function clearErrors() {
  for (const line of document.querySelectorAll("#form .error")) line.textContent = "";
  for (const control of document.querySelectorAll("#form [aria-invalid]")) control.removeAttribute("aria-invalid");
  byId("form-error").hidden = true;
}

export { followThreshold };
