// Small charts out of plain SVG, redrawn at the width that they have.

import { html, percent, svg } from "./dom.js";

const HEIGHT = 168;
const EDGE = { left: 40, right: 14, top: 18, bottom: 36 };

/** Round numbers from 0 to at least `most`, about `count` of them. */
export function ticks(most, count = 4) {
  const rough = Math.max(most, 1e-9) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  return Array.from({ length: Math.ceil(most / step - 1e-9) + 1 }, (_, place) => Number((place * step).toPrecision(6)));
}

function frame(width, { xTicks, yTicks, xLabel, xAt, format = String }) {
  const [right, bottom] = [width - EDGE.right, HEIGHT - EDGE.bottom];
  const yAt = (value) => bottom - (value / yTicks.at(-1)) * (bottom - EDGE.top);
  const parts = yTicks.flatMap((value) => [
    svg("line", { class: value ? "grid" : "axis", x1: EDGE.left, x2: right, y1: yAt(value), y2: yAt(value) }),
    svg("text", { x: EDGE.left - 6, y: yAt(value) + 4, "text-anchor": "end" }, format(value)),
  ]);
  parts.push(
    ...xTicks.map((value) => svg("text", { x: xAt(value), y: bottom + 15, "text-anchor": "middle" }, String(value))),
  );
  parts.push(
    svg("text", { class: "axis-name", x: (EDGE.left + right) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, xLabel),
  );
  return { parts, yAt };
}

function picture(width, label, parts) {
  return svg(
    "svg",
    { class: "chart", width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": label },
    ...parts,
  );
}

/** Lines of points [x, y]; each series {label, points}. */
export function lineChart(width, { title, xLabel, series, isWhole }) {
  const points = series.flatMap((item) => item.points);
  const mostX = Math.max(...points.map(([x]) => x), isWhole ? 2 : 0.5);
  const firstX = isWhole ? 1 : 0;
  const inner = width - EDGE.left - EDGE.right;
  const xAt = (x) => EDGE.left + (inner * (x - firstX)) / (mostX - firstX);
  const candidates = ticks(mostX, width < 300 ? 4 : 5).filter(
    (value) => value <= mostX && (!isWhole || Number.isInteger(value)),
  );
  const xTicks = isWhole ? [1, ...candidates.filter((value) => value > 1 && xAt(value) - xAt(1) > 18)] : candidates;
  const yTicks = ticks(Math.max(...points.map(([, y]) => y), 0.1));
  const { parts, yAt } = frame(width, { xTicks, yTicks, xLabel, xAt });
  for (const [number, item] of series.entries()) {
    if (!item.points.length) continue;
    const path = item.points.map(([x, y]) => `${xAt(x).toFixed(1)} ${yAt(y).toFixed(1)}`).join("L");
    const [x, y] = item.points.at(-1);
    parts.push(svg("path", { class: `line series-${number}`, d: `M${path}` }));
    parts.push(svg("circle", { class: `dot series-${number}`, cx: xAt(x), cy: yAt(y), r: 3 }));
  }
  const ends = series
    .filter((item) => item.points.length)
    .map((item) => `${item.label} ends at ${item.points.at(-1)[1].toFixed(2)}`);
  return picture(width, `${title}: ${ends.join("; ")}`, parts);
}

/** Bars of shares for depth 1, 2, ...; each series {label, shares}. */
export function barChart(width, { title, xLabel, series }) {
  const deepest = Math.max(...series.map((item) => item.shares.length), 1);
  const slot = (width - EDGE.left - EDGE.right) / deepest;
  const xAt = (depth) => EDGE.left + (depth - 0.5) * slot;
  const xTicks = Array.from({ length: deepest }, (_, place) => place + 1);
  const { parts, yAt } = frame(width, { xTicks, yTicks: [0, 0.5, 1], xLabel, xAt, format: (value) => percent(value) });
  const size = Math.min(40, (slot * 0.7) / series.length);
  for (const [number, item] of series.entries()) {
    item.shares.forEach((share, place) => {
      const x = xAt(place + 1) + (number - series.length / 2) * size;
      parts.push(
        svg("rect", {
          class: `bar series-${number}`,
          x: x + 1,
          y: yAt(share),
          width: size - 2,
          height: yAt(0) - yAt(share),
        }),
      );
      if (size >= 24)
        parts.push(svg("text", { x: x + size / 2, y: yAt(share) - 4, "text-anchor": "middle" }, percent(share)));
    });
  }
  const told = series.map(
    (item) => `${item.label} ${item.shares.map((share) => percent(share)).join(", ") || "drafts nothing"}`,
  );
  return picture(width, `${title}: ${told.join("; ")}`, parts);
}

/** A chart's place with its title and a legend where there are two series. */
export function chartFigure(title, labels) {
  const keys =
    labels.length > 1 ? labels.map((label, number) => html("span", { class: `key series-${number}` }, label)) : [];
  const place = html("div", { class: "plot" });
  return { place, figure: html("figure", {}, html("figcaption", {}, html("b", {}, title), ...keys), place) };
}
