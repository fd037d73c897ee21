// The page: starts runs, and shows them as they come in.

import { AnswerView } from "./answer.js";
import { barChart, chartFigure, lineChart } from "./charts.js";
import { getJson } from "./client.js";
import { byId, counted, oncePerFrame } from "./dom.js";
import { summaryOf } from "./draft.js";
import { buildDials, clearErrors, followThreshold, requests, showAtField, showIdle } from "./form.js";
import { Run } from "./run.js";
import { applyHash, asCurl, copy, formValues, hashOf } from "./sharing.js";
import { statisticsOf } from "./statistics.js";
import { startTheme } from "./theme.js";
import { hideTooltip } from "./tooltip.js";
import { drawTree, treeLegend, treeTable } from "./tree.js";

const PROMPT = "Explain why the sky is blue.";
const KEY = "mtad-key";
const state = { facts: null, defaults: {}, views: [], side: 0, iteration: null, drawn: null, charts: [] };
const runs = () => state.views.map(({ run }) => run);
const isRunning = () => runs().some((run) => run.state === "running");

function begin() {
  clearErrors();
  const wanted = readRequests();
  if (!wanted || isRunning()) return;
  const key = byId("key").value;
  sessionStorage.setItem(KEY, key);
  Object.assign(state, { side: 0, iteration: null, drawn: null });
  state.views = wanted.map(
    (request, side) => new AnswerView(new Run(request, refresh), (iteration) => select(side, iteration)),
  );
  byId("answers").replaceChildren(...state.views.map(({ root }) => root));
  byId("answers").classList.toggle("two", wanted.length > 1);
  prepareCharts(wanted);
  prepareSides(wanted);
  setRunning(true);
  say(`${wanted.map(({ label }) => label).join(" and ")} running.`);
  if (matchMedia("(max-width: 60rem)").matches) byId("results").scrollIntoView();
  Promise.all(state.views.map((view, side) => view.run.start(key).then(() => ended(view, side)))).then(allEnded);
  refresh();
}

function readRequests() {
  try {
    return requests(state.facts);
  } catch (error) {
    showAtField(error, 0);
    return null;
  }
}

function ended(view, side) {
  const { error } = view.run;
  if (error && !showAtField(error, side)) view.fail(error.message);
}

function allEnded() {
  setRunning(false);
  refresh();
  say(runs().map(outcome).join(" "));
}

function outcome({ request, state, tokens, iterations }) {
  return `${request.label} ${state}: ${counted(tokens.length, "token")} in ${counted(iterations.length, "call")}.`;
}

const say = (sentence) => (byId("status").textContent = sentence);

function setRunning(isOn) {
  byId("run").disabled = isOn;
  byId("stop").disabled = !isOn;
}

function stop() {
  for (const run of runs()) run.stop();
}

/** The iteration that is shown: the one chosen, else the newest. */
const shownIteration = () => state.iteration ?? (runs()[state.side]?.iterations.length ?? 0) - 1;

function select(side, iteration) {
  Object.assign(state, { side, iteration });
  const box = document.querySelector(`#tree-side [value="${side}"]`);
  box.checked = true;
  refresh();
}

const refresh = oncePerFrame(() => {
  const all = runs();
  if (!all.length) return;
  const hasTokens = all.some((run) => run.iterations.length > 0);
  state.views.forEach((view, side) =>
    view.update(side === state.side && state.iteration !== null ? state.iteration : null),
  );
  for (const id of ["statistics-part", "charts-part"]) byId(id).hidden = !hasTokens;
  if (!hasTokens) return void (byId("tree-part").hidden = true);
  byId("statistics").replaceChildren(statisticsOf(all));
  showTree(all[state.side]);
  drawCharts();
});

function showTree(run) {
  const shown = run.iterations[shownIteration()];
  byId("tree-part").hidden = !runs().some((item) => item.iterations[0]?.step);
  if (!shown?.step) return;
  const bar = byId("iteration");
  bar.max = run.iterations.length;
  bar.value = shownIteration() + 1;
  bar.setAttribute("aria-valuetext", `Iteration ${bar.value} of ${bar.max}`);
  byId("iteration-number").textContent = `${bar.value} of ${bar.max}`;
  byId("previous").disabled = bar.value === "1";
  byId("next").disabled = bar.value === bar.max;
  if (state.drawn === shown) return;
  state.drawn = shown;
  byId("tree-summary").textContent = summaryOf(shown.step, shown);
  drawTree(byId("tree"), shown.step);
  byId("tree-table").replaceChildren(treeTable(shown.step));
}

function prepareSides(wanted) {
  byId("tree-side").hidden = wanted.length < 2;
  document.querySelector("#tree-side [value='0']").checked = true;
  document
    .querySelectorAll("#tree-side span")
    .forEach((place, side) => (place.textContent = wanted[side]?.label ?? ""));
  const note =
    "Both share this machine, so their speeds are lower than alone; calls and tokens per call are not affected.";
  byId("statistics-note").textContent = wanted.length > 1 ? note : "";
}

const CHARTS = [
  [
    "Tokens per call, so far",
    (width, all, title) =>
      lineChart(width, {
        title,
        xLabel: "iteration",
        isWhole: true,
        series: all.map((run) => ({
          label: run.request.label,
          points: run.tokensPerCall.map((value, place) => [place + 1, value]),
        })),
      }),
  ],
  [
    "Calls that kept to depth",
    (width, all, title) =>
      barChart(width, {
        title,
        xLabel: "depth",
        series: all.map((run) => ({ label: run.request.label, shares: run.keptByDepth })),
      }),
  ],
  [
    "Tokens per second, of the last 8 calls",
    (width, all, title) =>
      lineChart(width, {
        title,
        xLabel: "seconds since the first tokens",
        series: all.map((run) => ({
          label: run.request.label,
          points: run.speeds().map(({ at, speed }) => [at, speed]),
        })),
      }),
  ],
];

function prepareCharts(wanted) {
  state.charts = CHARTS.map(([title, draw]) => ({
    ...chartFigure(
      title,
      wanted.map(({ label }) => label),
    ),
    draw,
    title,
  }));
  byId("charts").replaceChildren(...state.charts.map(({ figure }) => figure));
}

function drawCharts() {
  for (const { place, draw, title } of state.charts) {
    const width = Math.max(place.clientWidth, 200);
    place.replaceChildren(draw(width, runs(), title));
  }
}

function listen() {
  byId("form").addEventListener("submit", (event) => (event.preventDefault(), begin()));
  byId("stop").addEventListener("click", stop);
  document.addEventListener("keydown", onKey);
  byId("compare").addEventListener("change", showSecond);
  byId("form").addEventListener("change", remember);
  byId("form").addEventListener("input", remember);
  byId("iteration").addEventListener("input", ({ target }) => select(state.side, Number(target.value) - 1));
  byId("previous").addEventListener("click", () => select(state.side, Math.max(0, shownIteration() - 1)));
  byId("next").addEventListener("click", () => select(state.side, shownIteration() + 1));
  byId("tree-side").addEventListener("change", ({ target }) => select(Number(target.value), null));
  byId("copy-curl").addEventListener("click", ({ target }) => copyCurl(target));
  byId("copy-link").addEventListener("click", ({ target }) => copy(location.href, target));
  byId("key").addEventListener("change", showModel);
  addEventListener("resize", () => {
    state.drawn = null;
    refresh();
  });
  addEventListener("hashchange", restore);
}

function copyCurl(button) {
  const wanted = readRequests();
  if (wanted) copy(asCurl(wanted[0], state.facts.needs_key), button);
}

function onKey(event) {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    begin();
  } else if (event.key === "Escape" && !hideTooltip()) {
    stop();
  }
}

function showSecond() {
  byId("second-part").hidden = !byId("compare").checked;
}

function remember() {
  const text = hashOf(formValues(), state.defaults);
  history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
}

function restore() {
  applyHash(location.hash);
  followThreshold();
  showIdle(state.facts);
  showSecond();
  byId("system-part").open ||= byId("system").value !== "";
}

async function showModel() {
  try {
    const { data } = await getJson("v1/models", byId("key").value);
    byId("model").textContent = data[0].id;
  } catch {
    byId("model").textContent = "";
  }
}

async function start() {
  startTheme();
  try {
    state.facts = await getJson("playground/form.json");
  } catch (error) {
    byId("form-error").textContent = error.message;
    byId("form-error").hidden = false;
    return;
  }
  buildDials(state.facts);
  byId("prompt").value = PROMPT;
  byId("key-part").hidden = !state.facts.needs_key;
  byId("key").value = sessionStorage.getItem(KEY) ?? "";
  byId("tree-legend").replaceChildren(...treeLegend());
  byId("more-part").open = matchMedia("(min-width: 60rem)").matches;
  state.defaults = formValues();
  restore();
  listen();
  if (!state.facts.needs_key || byId("key").value) showModel();
  document.documentElement.dataset.ready = "true";
}

start();
