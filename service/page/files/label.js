// The label tab: one photo of the review queue at a time, labelled by keyboard or pointer.

import { Problem, ask } from "./api.js";
import { connectClassBox } from "./class_box.js";
import { byId, chip, element, say, showProblem } from "./dom.js";
import { count, percent } from "./format.js";

const PAGE = 20;
// Photos that are fetched before they are shown.
const AHEAD = 3;
const GROUPS = ["many", "medium", "few"];
const TAKEN = ["accepted", "replaced", "same"];

let queue = [];
let past = [];
let last = null;
let loading = null;
let starting = null;
let showing = 0;
let ready = false;
let box = null;
let counts = null;
const images = new Map();

/** Offer the tab, if the service keeps photos for labelling. */
export function offerLabels(labelling) {
  byId("label-tab").hidden = !labelling;
  // The address may name the tab that could not be shown until now.
  if (labelling && location.hash === "#label") dispatchEvent(new HashChangeEvent("hashchange"));
}

export function connectLabels() {
  box = connectClassBox(byId("class-name"), byId("class-options"), (label) => give(label));
  byId("label-none").addEventListener("click", () => give(null));
  byId("label-skip").addEventListener("click", skip);
  byId("label-undo").addEventListener("click", undo);
  byId("label-again").addEventListener("click", startAgain);
  byId("guesses").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) give(queue[0].predictions[Number(button.dataset.number) - 1].label);
  });
  byId("label").addEventListener("keydown", onKey);
  byId("label-tab").addEventListener("keydown", onKey);
}

/** Load photos when the tab is shown. */
export async function updateLabelsWhile(shown) {
  if (shown && !queue.length) await startAgain();
}

// Keys work while the focus is in the panel or on its tab. In the box they do until a name begins.
function onKey(event) {
  const inverse = (event.ctrlKey || event.metaKey) && event.key === "z";
  if (!inverse && (event.ctrlKey || event.metaKey || event.altKey)) return;
  if (byId("labelling").hidden) return;
  const button = event.target.closest("button");
  const inBox = event.target === byId("class-name");
  if (inBox && event.target.value) return;
  const action = inverse ? undo : actionOf(event.key, button);
  if (action) {
    event.preventDefault();
    action();
  } else if (!inBox && event.key.length === 1 && event.key !== " ") {
    byId("class-name").focus();
  }
}

function actionOf(key, button) {
  if (key === "0") return () => give(null);
  if (/^[1-5]$/.test(key)) return () => giveGuess(Number(key));
  if (key === "Backspace") return undo;
  return key === " " && !button ? skip : null;
}

function giveGuess(number) {
  const guess = queue[0]?.predictions[number - 1];
  if (guess) give(guess.label);
}

/** The address, the tab and a new key may all ask for it at once. */
function startAgain() {
  starting ??= start().finally(() => (starting = null));
  return starting;
}

async function start() {
  queue = [];
  past = [];
  last = null;
  try {
    counts = await ask("review/summary");
    box.offer(counts.classes.map((info) => info.label));
    await load();
    showProblem(byId("label-problem"), null);
  } catch (error) {
    fail(error);
  }
  await show();
}

function load() {
  loading ??= ask(`review?limit=${PAGE}${last ? `&after=${last}` : ""}`)
    .then((photos) => {
      queue.push(...photos);
      last = photos.at(-1)?.id ?? last;
    })
    .finally(() => (loading = null));
  return loading;
}

async function give(label) {
  if (!ready) return;
  const photo = queue.shift();
  const before = photo.given;
  past.push(photo);
  photo.given = label;
  say(byId("label-news"), `Labelled ${named(label)}.`);
  next();
  try {
    const body = JSON.stringify({ labels: [{ id: photo.id, label }] });
    const headers = { "Content-Type": "application/json" };
    const { results } = await ask("feedback", { method: "POST", headers, body });
    if (!TAKEN.includes(results[0].status)) throw new Problem(refusal(results[0].status));
    showProblem(byId("label-problem"), null);
    if (!photo.counted) move(photo);
  } catch (error) {
    photo.given = before;
    fail(error, `${named(label)} was not kept: `);
  }
}

function refusal(status) {
  if (status === "forged") return "the service does not know the photo any more (its key changed).";
  if (status === "expired") return "the prediction is too old.";
  return `${status.replaceAll("_", " ")}.`;
}

function move(photo) {
  photo.counted = true;
  counts.waiting[photo.group] -= 1;
  counts.labelled[photo.group] += 1;
  showCounts();
}

function skip() {
  if (!ready) return;
  past.push(queue.shift());
  say(byId("label-news"), "Skipped.");
  next();
}

function undo() {
  const photo = past.pop();
  if (!photo) return;
  queue.unshift(photo);
  const stands = photo.given === undefined ? "" : ` ${named(photo.given)} stands until you choose again.`;
  say(byId("label-news"), `Back to the last photo.${stands}`);
  show();
}

const named = (label) => (label === null ? "none of them" : label);

async function next() {
  box.clear();
  if (queue.length <= AHEAD) {
    const more = load().catch(fail);
    if (!queue.length) await more;
  }
  await show();
}

/** Show the first photo; nothing can be chosen until it can be seen. A later call takes over. */
async function show() {
  const [photo] = queue;
  const turn = ++showing;
  ready = false;
  showCounts();
  byId("label-undo").disabled = !past.length;
  const held = byId("labelling").contains(document.activeElement);
  byId("labelling").hidden = !photo;
  byId("label-end").hidden = Boolean(photo);
  if (!photo) {
    const none = past.length ? "No further photo waits." : "No photo waits for a label.";
    say(byId("label-left"), counts ? none : "");
    if (held) byId("label-again").focus();
    return;
  }
  byId("guesses").replaceChildren(...photo.predictions.map(guess));
  const drawn = `Drawn with probability ${percent(photo.p)}`;
  say(byId("label-why"), photo.why === "differs" ? "A challenger has another answer" : drawn);
  byId("label-group").replaceChildren(chip(photo.group));
  queue.slice(1, AHEAD).forEach(imageOf);
  const image = byId("label-photo");
  try {
    const url = await imageOf(photo);
    if (turn !== showing) return;
    image.src = url;
    await image.decode();
    image.parentElement.style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
  } catch (error) {
    if (turn !== showing) return;
    past.push(queue.shift());
    fail(error, "A photo cannot be shown and is skipped: ");
    next();
    return;
  }
  if (turn !== showing) return;
  ready = true;
  byId("labelling").dataset.id = photo.id;
  focus();
}

/** Let the keys work, unless somebody is elsewhere. */
function focus() {
  const at = document.activeElement;
  const here = at === document.body || byId("label").contains(at);
  if (here || (at === byId("label-tab") && past.length)) {
    byId("labelling").focus({ preventScroll: true });
  }
}

/** Return the address of a photo, which is fetched once; the oldest ones are forgotten. */
function imageOf(photo) {
  if (!images.has(photo.id)) {
    const url = ask(`review/${photo.id}/photo`, {}, (response) => response.blob()).then((blob) =>
      URL.createObjectURL(blob),
    );
    url.catch(() => images.delete(photo.id));
    images.set(photo.id, url);
    if (images.size > 2 * PAGE) {
      const [oldest, old] = images.entries().next().value;
      images.delete(oldest);
      old.then((address) => URL.revokeObjectURL(address)).catch(() => {});
    }
  }
  return images.get(photo.id);
}

function guess({ label, group, confidence }, index) {
  return element(
    "li",
    {},
    element(
      "button",
      { type: "button", "data-number": String(index + 1), "aria-keyshortcuts": String(index + 1) },
      element("kbd", { "aria-hidden": "true" }, String(index + 1)),
      element("span", { class: "label", dir: "auto" }, label),
      element("span", { class: "quiet" }, `${percent(confidence)} · ${group}`),
    ),
  );
}

function showCounts() {
  if (!counts) return;
  byId("label-counts").replaceChildren(
    ...GROUPS.map((group) =>
      element(
        "li",
        {},
        chip(group),
        ` ${count(counts.waiting[group])} waiting, ${count(counts.labelled[group])} labelled`,
      ),
    ),
  );
}

function fail(error, before = "") {
  if (!(error instanceof Problem) && !(error instanceof DOMException)) throw error;
  showProblem(byId("label-problem"), `${before}${error.message}`);
}
