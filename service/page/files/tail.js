// The tail's state, asked for again and again while somebody looks.

import { Problem, ask } from "./api.js";
import { connectChart, drawChart } from "./chart.js";
import { byId, say, showProblem } from "./dom.js";
import { listFound } from "./found.js";
import { clock, count, duration, many, when } from "./format.js";
import { showGroups } from "./groups.js";
import { connectTable, fillTable } from "./table.js";

const EVERY = 5_000;
// At most this part of the time is the service kept busy by one who looks.
const SHARE = 1 / 20;

let open = false;
let paused = false;
let refused = false;
let looking = false;
let timer = null;

export function connectTail() {
  connectChart();
  connectTable();
  byId("pause").addEventListener("click", () => pause(!paused));
  document.addEventListener("visibilitychange", schedule);
}

/** Look as long as `shown`: the tab is the one that is open. */
export function lookWhile(shown) {
  open = shown;
  schedule();
}

/** Look again, now that there is another key. */
export function lookWithKey() {
  refused = false;
  schedule();
}

function pause(wanted) {
  paused = wanted;
  byId("pause").setAttribute("aria-pressed", String(paused));
  schedule();
}

const wanted = () => open && !paused && !refused && !document.hidden;

/** Look after `delay` milliseconds, or not at all while nobody does. */
function schedule(delay = 0) {
  clearTimeout(timer);
  if (wanted() && !looking) timer = setTimeout(look, Number(delay) || 0);
}

async function look() {
  looking = true;
  const began = performance.now();
  try {
    show(await ask("classes"));
    showProblem(byId("tail-problem"), null);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    showProblem(byId("tail-problem"), error.message);
    refused = error.status === 401;
  } finally {
    looking = false;
    schedule(Math.max(EVERY, (performance.now() - began) / SHARE));
  }
}

function show({ classes, groups, window }) {
  const ordered = classes.toSorted((one, other) => other.count - one.count);
  byId("tail-state").hidden = false;
  say(byId("tail-window"), windowText(window));
  showGroups(groups);
  drawChart(ordered);
  fillTable(ordered);
  const silent = ordered.filter((one) => one.live.silent);
  const drifting = ordered.filter((one) => one.live.drifting);
  listFound(byId("silent"), silent, () => "silent");
  listFound(byId("drifting"), drifting, (one) => one.live.direction);
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

function news(silent, drifting) {
  return `${many(silent, "class", "classes")} silent, ${count(drifting)} drifting`;
}
