// The photos tab: takes photos and shows their classes.

import { Problem, ask } from "./api.js";
import { PhotoCard } from "./card.js";
import { byId, say } from "./dom.js";
import { many, percent } from "./format.js";
import { knownModel } from "./model.js";

// Requests in flight: enough for the service to form batches, and fair to other clients.
const AT_ONCE = 4;

const cards = new Set();
let waiting = [];
let running = 0;
let stop = new AbortController();

export function connectPhotos() {
  const files = byId("files");
  files.addEventListener("change", () => {
    add(files.files);
    files.value = "";
  });
  connectDrop();
  addEventListener("paste", (event) => add(event.clipboardData?.files ?? []));
  byId("settings").addEventListener("submit", (event) => event.preventDefault());
  byId("settings").addEventListener("change", (event) => {
    if (event.target.name) classifyAgain([...cards]);
  });
  byId("draw-views").addEventListener("change", drawOrNot);
  drawOrNot();
  byId("clear").addEventListener("click", clear);
  byId("results").addEventListener("retry", (event) => classifyAgain([event.detail]));
}

function connectDrop() {
  const drop = byId("drop");
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    drop.classList.add("over");
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.classList.remove("over");
  });
  addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    drop.classList.remove("over");
    location.hash = "photos";
    add(event.dataTransfer.files);
  });
}

function add(files) {
  const added = [...files].map((file) => new PhotoCard(file));
  if (!added.length) return;
  added.forEach((card) => cards.add(card));
  byId("results").prepend(...added.map((card) => card.node));
  byId("clear").hidden = false;
  enqueue(added);
}

/** Classify again; if these are all photos, drop the requests with the former settings. */
function classifyAgain(some) {
  if (some.length === cards.size) {
    stop.abort();
    stop = new AbortController();
    waiting = [];
  }
  enqueue(some);
}

function enqueue(some) {
  some.forEach((card) => card.wait());
  waiting.push(...some);
  report();
  while (running < AT_ONCE && waiting.length) classifyNext();
}

async function classifyNext() {
  const card = waiting.shift();
  const { signal } = stop;
  running += 1;
  try {
    const answer = await classify(card.file, signal);
    if (!signal.aborted) card.show(answer);
  } catch (error) {
    if (!(error instanceof Problem) && !signal.aborted) throw error;
    if (!signal.aborted) card.fail(error.message);
  } finally {
    running -= 1;
    report();
    if (waiting.length) classifyNext();
  }
}

async function classify(file, signal) {
  await knownModel();
  const query = new URLSearchParams(new FormData(byId("settings")));
  const { results } = await ask(`classify?${query}`, {
    method: "POST",
    body: file,
    // The service looks at the bytes only; the type of the file itself could make it a form.
    headers: { "Content-Type": "application/octet-stream" },
    signal,
  });
  return results[0];
}

function report() {
  const left = [...cards].filter((card) => card.busy).length;
  const failed = [...cards].filter((card) => card.failed).length;
  say(byId("photos-status"), statusText(left, failed));
}

function statusText(left, failed) {
  if (!cards.size) return "";
  if (left) return `Classifying ${many(left, "photo")} …`;
  const failures = failed ? `, ${failed} failed` : "";
  const [only] = cards;
  const best = cards.size === 1 && only.best;
  const result = best ? `: ${best.label}, ${percent(best.confidence)}` : "";
  return `${many(cards.size - failed, "photo")} classified${failures}${result}`;
}

function drawOrNot() {
  byId("results").classList.toggle("without-views", !byId("draw-views").checked);
}

function clear() {
  stop.abort();
  stop = new AbortController();
  waiting = [];
  cards.forEach((card) => card.forget());
  cards.clear();
  byId("results").replaceChildren();
  byId("clear").hidden = true;
  report();
  byId("files").focus();
}
