// What is known of a token, beside it, for pointers and keyboards alike.

import { byId, html, percent, quoted, signed } from "./dom.js";

const GAP = 8;

function line(token) {
  const source = token.isDrafted ? "drafted and kept" : "the large model\u2019s own";
  const chance = Math.exp(token.logProb);
  return [
    html("p", {}, html("b", {}, quoted(token.text)), ` ${source}`),
    html("p", {}, `log-probability ${signed(token.logProb)}, that is ${percent(chance, chance < 0.1 ? 2 : 1)}`),
  ];
}

function alternatives({ best }) {
  if (!best.length) return null;
  const listed = best.map(([text, logProb]) => `${quoted(text)} ${percent(Math.exp(logProb), 1)}`);
  return html("p", { class: "quietly" }, `Likeliest here: ${listed.join(", ")}`);
}

/** Shows the tokens of a part of the answer beside its element. */
export function showTooltip(target, tokens) {
  const box = byId("tooltip");
  const lines = tokens.slice(0, 4).flatMap((token) => [...line(token), alternatives(token)]);
  const where = html("p", { class: "quietly" }, `Iteration ${tokens[0].iteration + 1}`);
  box.replaceChildren(...lines.filter(Boolean), where);
  box.hidden = false;
  target.setAttribute("aria-describedby", "tooltip");
  const place = target.getClientRects()[0] ?? target.getBoundingClientRect();
  const left = Math.min(place.left, document.documentElement.clientWidth - box.offsetWidth - GAP);
  const isBelow = place.top < box.offsetHeight + 2 * GAP;
  box.style.left = `${Math.max(GAP, left) + scrollX}px`;
  box.style.top = `${(isBelow ? place.bottom + GAP : place.top - box.offsetHeight - GAP) + scrollY}px`;
}

/** Takes the tooltip away; returns whether one was there. */
export function hideTooltip() {
  const box = byId("tooltip");
  const wasThere = !box.hidden;
  box.hidden = true;
  for (const item of document.querySelectorAll("[aria-describedby=tooltip]")) item.removeAttribute("aria-describedby");
  return wasThere;
}
