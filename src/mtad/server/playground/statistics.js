// Figures of one answer, or of two beside each other.

import { html, percent } from "./dom.js";

const fixed = (digits) => (value) => (value === null || value === undefined ? "" : value.toFixed(digits));

const ROWS = [
  ["num_tokens", "Tokens", fixed(0), true],
  ["target_calls", "Calls of the large model", fixed(0), true],
  ["tokens_per_call", "Tokens per call", fixed(2), true],
  ["perplexity", "Perplexity", fixed(2), true],
  ["tokens_per_s", "Tokens per second", fixed(1), true],
  [
    "kept",
    "Kept to depth 1, 2, \u2026",
    (shares) => shares.map((share) => percent(share)).join(" \u00b7 ") || "no draft",
  ],
  ["refused_share", "Kept, but a lossless rule would refuse", (share) => (share === null ? "" : percent(share, 1))],
  ["law", "The large model\u2019s distribution", (text) => text],
  ["end", "Ended by", (text) => text],
  ["seed", "Seed", String],
];

const FINISHES = { stop: "end of text", length: "limit of tokens", dead_end: "no token may follow" };

/** Why an answer ended, in words. */
export function endOf(run) {
  const reason = run.figures().finish_reason;
  return FINISHES[reason] ?? reason ?? "";
}

function figuresOf(run) {
  const law = { true: "kept (lossless)", false: "changed (lossy)" }[run.isLossless] ?? "";
  return { ...run.figures(), kept: run.keptByDepth, law, end: endOf(run) };
}

function ratio(values) {
  const [first, second] = values;
  return first && second ? `${(first / second).toFixed(2)}\u00d7` : "";
}

/** The statistics of one answer as a list, of two as a table whose last column says first / second. */
export function statisticsOf(runs) {
  const figures = runs.map(figuresOf);
  return figures.length > 1
    ? table(
        figures,
        runs.map(({ request }) => request.label),
      )
    : tiles(figures[0]);
}

function tiles(figures) {
  const items = ROWS.map(([name, label, format]) => {
    return html("div", { "data-row": name }, html("dt", {}, label), html("dd", {}, format(figures[name]) || "\u2013"));
  });
  return html("dl", { class: "tiles" }, ...items);
}

function table(figures, labels) {
  const head = ["", ...labels, "first / second"];
  const rows = ROWS.map(([name, label, format, isRatio]) => {
    const cells = figures.map((item) => html("td", {}, format(item[name]) || "\u2013"));
    cells.push(html("td", {}, isRatio ? ratio(figures.map((item) => item[name])) : ""));
    return html("tr", { "data-row": name }, html("th", { scope: "row" }, label), ...cells);
  });
  const titles = head.map((text) => (text ? html("th", { scope: "col" }, text) : html("td", {})));
  return html("table", {}, html("thead", {}, html("tr", {}, ...titles)), html("tbody", {}, ...rows));
}
