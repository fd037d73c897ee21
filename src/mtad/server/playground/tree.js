// The draft of one iteration as a drawing.

import { byId, html, quoted, signed, svg, visibleText } from "./dom.js";
import { decisionOf, nodesOf } from "./draft.js";

const BOX_HEIGHT = 26;
const ROW = 36;
const GAP = 24;
const COLUMN = { least: 142, most: 172 };
const LETTER = 7.6;
const TOP = 24;
const MARGIN = 3;
const HINT = "Point at a node, or go to one with Tab and the arrow keys, to read what was decided about it.";

/** Draws a step into an element; the kept path is at the top of its siblings. */
export function drawTree(place, step) {
  const all = arrange(step);
  const depth = Math.max(...all.map((node) => node.depth));
  const rows = Math.max(...all.map((node) => node.row)) + 1;
  const column = columnWidth(place.clientWidth, depth + 1);
  for (const node of all) Object.assign(node, { x: MARGIN + node.depth * column, width: column - GAP });
  const [width, height] = [(depth + 1) * column - GAP + 2 * MARGIN, rows * ROW + TOP];
  const drawing = svg(
    "svg",
    {
      width,
      height,
      viewBox: `0 0 ${width} ${height}`,
      role: "group",
      "aria-label": `Draft with ${step.tokens.length} nodes; arrow keys move between nodes`,
    },
    ...headings(depth, all, column),
    ...all.filter((node) => node.above).map(edge),
    ...all.map((node) => box(node, step)),
  );
  drawing.addEventListener("keydown", (event) => move(event, all));
  byId("node-detail").textContent = step.tokens.length ? HINT : "";
  place.replaceChildren(drawing);
}

/** Columns as wide as there is room for, within bounds; behind those the drawing scrolls. */
function columnWidth(room, count) {
  return Math.max(COLUMN.least, Math.min(COLUMN.most, Math.floor((room + GAP - 2 * MARGIN) / count)));
}

/** Nodes with their places: the root first, the large model's own token last. */
function arrange(step) {
  const root = { kind: "root", text: step.pending_text, depth: 0, children: [] };
  const drafted = nodesOf(step).map((node) => ({ ...node, kind: "drafted", children: [] }));
  for (const node of drafted) hang(node, node.parent < 0 ? root : drafted[node.parent]);
  const end = step.kept_path.length ? drafted[step.kept_path.at(-1)] : root;
  const next = { kind: "next", text: step.next_text, depth: end.depth + 1, children: [] };
  hang(next, end);
  const rank = (node) => (node.isKept ? 0 : node.kind === "next" ? 1 : node.isWinner ? 2 : 3);
  let row = 0;
  const visit = (node) => {
    node.children.sort((one, other) => rank(one) - rank(other) || one.number - other.number);
    node.row = row;
    node.children.forEach((child, place) => {
      if (place) row += 1;
      visit(child);
    });
  };
  visit(root);
  return [root, ...drafted, next];
}

function hang(node, above) {
  node.above = above;
  above.children.push(node);
}

const middle = (node) => TOP + node.row * ROW + ROW / 2;

function headings(depth, all, column) {
  const isDrafted = (level) => all.some((node) => node.kind === "drafted" && node.depth === level);
  const names = Array.from({ length: depth + 1 }, (_, level) => {
    return level ? (isDrafted(level) ? `depth ${level}` : "next token") : "text so far";
  });
  return names.map((name, level) => svg("text", { class: "heading", x: MARGIN + level * column, y: 13 }, name));
}

function edge(node) {
  const { above } = node;
  const [x1, y1, x2, y2] = [above.x + above.width, middle(above), node.x, middle(node)];
  const bend = (x1 + x2) / 2;
  const kind = node.isKept ? "edge kept" : node.kind === "next" ? "edge next" : "edge";
  return svg("path", { class: kind, d: `M${x1} ${y1}C${bend} ${y1} ${bend} ${y2} ${x2} ${y2}` });
}

function describe(node, step) {
  if (node.kind === "root") return `The text so far ends with ${quoted(node.text)}.`;
  if (node.kind === "next") return `${quoted(node.text)} is the large model\u2019s own token behind what was kept.`;
  return decisionOf(node, step);
}

/** The text in a node, and the ratio and verdict at its end. */
function labels(node) {
  if (node.kind !== "drafted") return [visibleText(node.text, Math.floor((node.width - 12) / LETTER)), ""];
  const mark = { true: " \u2713", false: " \u2717" }[node.passes] ?? "";
  const ratio = signed(node.ratio, node.ratio !== null && Math.abs(node.ratio) >= 10 ? 1 : 2) + mark;
  const star = node.isWinner ? "\u2605 " : "";
  const room = Math.floor((node.width - 20 - 7 * ratio.length) / LETTER) - star.length;
  return [star + visibleText(node.text, room), ratio];
}

function box(node, step) {
  const kinds = ["node", node.kind, node.isKept && "kept", node.passes === false && "fails", node.passes && "passes"];
  const { x, width } = node;
  const y = middle(node) - BOX_HEIGHT / 2;
  const sentence = describe(node, step);
  const tell = () => (byId("node-detail").textContent = sentence);
  const [label, ratio] = labels(node);
  node.element = svg(
    "g",
    {
      class: kinds.filter(Boolean).join(" "),
      role: "img",
      tabindex: node.kind === "root" ? "0" : "-1",
      "aria-label": sentence,
      onfocus: tell,
      onpointerenter: tell,
    },
    svg("rect", { x, y, width, height: BOX_HEIGHT, rx: 5 }),
    svg("text", { class: "label", x: x + 8, y: y + 17 }, label),
    svg("text", { class: "ratio", x: x + width - 7, y: y + 17, "text-anchor": "end" }, ratio),
  );
  return node.element;
}

function move(event, all) {
  const from = all.find((node) => node.element === event.target);
  if (!from) return;
  const column = all.filter((node) => node.depth === from.depth).sort((one, other) => one.row - other.row);
  const place = column.indexOf(from);
  const moves = {
    ArrowRight: from.children[0],
    ArrowLeft: from.above,
    ArrowDown: column[place + 1],
    ArrowUp: column[place - 1],
    Home: all[0],
  };
  if (!(event.key in moves)) return;
  event.preventDefault();
  const to = moves[event.key];
  if (!to) return;
  for (const node of all) node.element.setAttribute("tabindex", node === to ? "0" : "-1");
  to.element.focus();
}

const COLUMNS = ["Token", "Depth", "After", "log P", "log Q", "Ratio", "Passes", "Kept", "Winner"];

/** The same step as a table. */
export function treeTable(step) {
  const nodes = nodesOf(step);
  const yes = (value) => (value === null ? "" : value ? "yes" : "no");
  const rows = nodes.map((node) => {
    const after = node.parent < 0 ? step.pending_text : step.texts[node.parent];
    const cells = [
      String(node.depth),
      visibleText(after),
      signed(node.target),
      signed(node.draft),
      signed(node.ratio),
      yes(node.passes),
      yes(node.isKept),
      yes(node.isWinner),
    ];
    return html(
      "tr",
      {},
      html("th", { scope: "row" }, visibleText(node.text)),
      ...cells.map((text) => html("td", {}, text)),
    );
  });
  const caption = html(
    "caption",
    {},
    nodes.length
      ? `Drafted after ${visibleText(step.pending_text)}; the large model went on with ${visibleText(step.next_text)}.`
      : "Nothing was drafted.",
  );
  const head = html("tr", {}, ...COLUMNS.map((name) => html("th", { scope: "col" }, name)));
  return html("table", {}, caption, html("thead", {}, head), html("tbody", {}, ...rows));
}

/** What the drawing's marks mean. */
export function treeLegend() {
  const sample = (kind, text) => html("li", {}, html("span", { class: `sample ${kind}`, "aria-hidden": "true" }), text);
  return [
    sample("kept", "kept path"),
    sample("passes", "\u2713 passes"),
    sample("fails", "\u2717 fails"),
    sample("next", "the large model\u2019s own token"),
    html("li", {}, "\u2605 the draft\u2019s winner"),
  ];
}
