// One answer on the page: its tokens, each of which can be pointed at or reached by keyboard.

import { counted, html, visibleText } from "./dom.js";
import { copy } from "./sharing.js";
import { endOf } from "./statistics.js";
import { hideTooltip, showTooltip } from "./tooltip.js";

/** Shows a run; `onSelect(iteration)` is called when a token is chosen. */
export class AnswerView {
  constructor(run, onSelect) {
    this.run = run;
    this.onSelect = onSelect;
    this.shown = 0;
    this.items = [];
    this.tokens = html("div", {
      class: "tokens",
      role: "listbox",
      "aria-multiselectable": "true",
      "aria-label": `Tokens of the answer of ${run.request.label}; arrow keys move, Enter shows the draft`,
    });
    this.state = html("span", { class: "state" });
    this.error = html("p", { class: "alert", role: "alert", hidden: true });
    this.plain = html("p", { class: "hidden" });
    const button = html("button", { type: "button", class: "quiet", onclick: () => copy(run.text, button) }, "Copy");
    const head = html("header", {}, html("h2", {}, run.request.label), this.state, button);
    this.root = html("article", { class: "panel answer" }, head, this.tokens, this.error, this.plain);
    this.#listen();
  }

  /** Brings what is new onto the page. */
  update(selected) {
    const { run } = this;
    const added = run.parts.slice(this.shown).map((part) => this.#item(part));
    this.shown = run.parts.length;
    this.items.push(...added);
    this.tokens.append(...added.map(({ node }) => node));
    if (this.items.length && !this.tokens.querySelector("[tabindex='0']")) this.items[0].node.tabIndex = 0;
    for (const { node, part } of this.items) this.#mark(node, part.tokens[0]?.iteration === selected);
    this.state.textContent = this.#stateText();
    this.tokens.classList.toggle("running", run.state === "running");
    if (run.state !== "running") this.plain.textContent = run.text;
  }

  /** Says in one sentence what went wrong. */
  fail(message) {
    this.error.textContent = message;
    this.error.hidden = false;
  }

  #stateText() {
    const { run } = this;
    const seconds = run.iterations.length ? `, ${run.iterations.at(-1).at.toFixed(1)} s` : "";
    const word = run.state === "done" ? endOf(run) : run.state;
    const counts = `${counted(run.tokens.length, "token")}, ${counted(run.iterations.length, "call")}`;
    return `${counts}${seconds}, ${word}`;
  }

  #mark(node, isSelected) {
    if ((node.getAttribute("aria-selected") === "true") !== isSelected)
      node.setAttribute("aria-selected", String(isSelected));
  }

  #item(part) {
    const isDrafted = part.tokens.length > 0 && part.tokens.every((token) => token.isDrafted);
    const kinds = ["token", isDrafted ? "drafted" : "target"];
    if (!part.text) kinds.push("silent");
    if (/^\n+$/.test(part.text)) kinds.push("newline");
    const text = part.text || visibleText(part.tokens.map((token) => token.text).join(""));
    const [, blank, word] = /^(\s*)(.*)$/s.exec(text);
    const attributes = { class: kinds.join(" "), role: "option", tabindex: "-1", "aria-selected": "false" };
    return { part, node: html("span", attributes, blank, html("span", { class: "word" }, word)) };
  }

  #find(target) {
    const token = target.closest?.(".token");
    return this.items.find(({ node }) => node === token);
  }

  #listen() {
    const show = ({ target }) => {
      const item = this.#find(target);
      if (item?.part.tokens.length) showTooltip(item.node, item.part.tokens);
    };
    this.tokens.addEventListener("pointerover", show);
    this.tokens.addEventListener("focusin", show);
    this.tokens.addEventListener("pointerout", hideTooltip);
    this.tokens.addEventListener("focusout", hideTooltip);
    this.tokens.addEventListener("click", ({ target }) => this.#choose(this.#find(target)));
    this.tokens.addEventListener("keydown", (event) => this.#key(event));
  }

  #choose(item) {
    if (!item?.part.tokens.length) return;
    this.#focus(item);
    this.onSelect(item.part.tokens[0].iteration);
  }

  #key(event) {
    const place = this.items.findIndex(({ node }) => node === event.target);
    const last = this.items.length - 1;
    const moves = {
      ArrowRight: place + 1,
      ArrowLeft: place - 1,
      Home: 0,
      End: last,
      ArrowDown: this.#neighbour(place, 1),
      ArrowUp: this.#neighbour(place, -1),
    };
    if (event.key in moves) this.#focus(this.items[Math.max(0, Math.min(last, moves[event.key]))]);
    else if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) this.#choose(this.items[place]);
    else if (event.key === " ") this.#choose(this.items[place]);
    else return;
    event.preventDefault();
  }

  /** The first token of the iteration before or behind. */
  #neighbour(place, step) {
    const iterationAt = (at) => this.items[at]?.part.tokens[0]?.iteration;
    const wanted = iterationAt(place) + step;
    const found = this.items.findIndex((_, at) => iterationAt(at) === wanted);
    return found < 0 ? place : found;
  }

  #focus({ node }) {
    for (const item of this.tokens.querySelectorAll("[tabindex='0']")) item.tabIndex = -1;
    node.tabIndex = 0;
    node.focus();
  }
}
