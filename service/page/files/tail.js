// The state of the tail, requested again and again while it is visible.

import { Problem, ask } from "./api.js";
import { connectChart, drawChart } from "./chart.js";
import { byId, say, showProblem } from "./dom.js";
import { listFound } from "./found.js";
import { clock, count, duration, estimateText, many, when } from "./format.js";
import { showGroups } from "./groups.js";
import { connectTable, fillTable } from "./table.js";

const INTERVAL = 5_000;
// A visible page keeps the service busy for at most this share of the time.
const BUSY_SHARE = 1 / 20;

let open = false;
let paused = false;
let refused = false;
let updating = false;
let timer = null;

export function connectTail() {
  connectChart();
  connectTable();
  byId("pause").addEventListener("click", () => pause(!paused));
  document.addEventListener("visibilitychange", schedule);
}

/** Show one report for good: the page that `taillift watch --html` writes. */
export function showOnce(report) {
  connectChart();
  connectTable();
  show(report);
  say(byId("tail-window"), report.summary);
  byId("pause").hidden = true;
}

/** Update while `shown`: while the tab is open. */
export function updateWhile(shown) {
  open = shown;
  schedule();
}

/** Update again, now that there is another key. */
export function updateWithKey() {
  refused = false;
  schedule();
}

function pause(wanted) {
  paused = wanted;
  byId("pause").setAttribute("aria-pressed", String(paused));
  schedule();
}

const wanted = () => open && !paused && !refused && !document.hidden;

/** Update after `delay` milliseconds; not at all while the tail is not visible. */
function schedule(delay = 0) {
  clearTimeout(timer);
  if (wanted() && !updating) timer = setTimeout(update, Number(delay) || 0);
}

async function update() {
  updating = true;
  const began = performance.now();
  try {
    show(await ask("classes"));
    showProblem(byId("tail-problem"), null);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    showProblem(byId("tail-problem"), error.message);
    refused = error.status === 401;
  } finally {
    updating = false;
    schedule(Math.max(INTERVAL, (performance.now() - began) / BUSY_SHARE));
  }
}

function show({ classes, groups, labelled, window }) {
  const ordered = classes.toSorted((a, b) => b.count - a.count);
  byId("tail-state").hidden = false;
  say(byId("tail-window"), windowText(window));
  byId("tail-labels").hidden = !labelled?.labels;
  if (labelled?.labels) say(byId("tail-labels"), labelsText(labelled));
  showGroups(groups);
  drawChart(ordered);
  fillTable(ordered);
  const silent = ordered.filter(({ live }) => live.silent);
  const drifting = ordered.filter(({ live }) => live.drifting);
  listFound(byId("silent"), silent, () => "silent");
  listFound(byId("drifting"), drifting, ({ live }) => live.direction);
  say(byId("silent-count"), count(silent.length));
  say(byId("drifting-count"), count(drifting.length));
  say(byId("tail-news"), news(silent.length, drifting.length));
}

function windowText({ seconds, predictions, since, reference }) {
  const start = since ? `, counted since ${when(since)}` : "";
  return (
    `${many(predictions, "prediction")} in the last ${duration(seconds)}${start} · ` +
    `reference: ${reference} · as of ${clock(new Date())}`
  );
}

function labelsText({ labels, sampled, accuracy, none_of_the_classes: none }) {
  return (
    `${many(labels, "label")} came back, ${count(sampled)} of photos chosen at random · ` +
    `live accuracy: ${estimateText(accuracy)} · none of the classes: ${count(none)}`
  );
}

function news(silent, drifting) {
  return `${many(silent, "class", "classes")} silent, ${count(drifting)} drifting`;
}
