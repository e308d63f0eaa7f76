// The versions of the store: their roles, why one was refused, and the way to change them.

import { byId, element, say, showProblem } from "./dom.js";
import { many } from "./format.js";

const INTERVAL = 3_000;
const STORAGE_KEY = "taillift-admin-key";
const ABSENT = "The service has no admin API: set admin_keys_file to change versions here.";

let open = false;
let timer = null;
let etag = null;

/** Offer the tab, if the service runs on a store. */
export function offerVersions(number) {
  byId("versions-tab").hidden = number === undefined;
}

export function connectVersions() {
  byId("admin").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(STORAGE_KEY, byId("admin").elements.key.value);
    byId("admin").reset();
    update();
  });
  byId("rollback").addEventListener("click", () => change("POST", "rollback", {}));
}

/** Update while `shown`: while the tab is open. */
export function updateVersionsWhile(shown) {
  open = shown;
  clearTimeout(timer);
  if (open) update();
}

async function update() {
  clearTimeout(timer);
  const key = sessionStorage.getItem(STORAGE_KEY);
  if (key) await load();
  byId("admin").hidden = !byId("versions-state").hidden;
  if (open && key) timer = setTimeout(update, INTERVAL);
}

async function load() {
  const response = await send("GET", "versions");
  if (response?.ok) {
    const report = await response.json();
    const duel = report.challenger && (await send("GET", "challenger?differences=0"));
    show(report, response.headers.get("ETag"), duel?.ok ? (await duel.json()).verdict : null);
  }
  byId("versions-state").hidden = !response?.ok;
  if (response?.status === 401) sessionStorage.removeItem(STORAGE_KEY);
  showProblem(byId("versions-problem"), response?.ok ? null : await problemOf(response));
}

async function change(method, path, body) {
  const because = byId("because").value;
  const response = await send(method, path, { ...body, because });
  if (response?.ok) byId("because").value = "";
  await load();
  if (!response?.ok) showProblem(byId("versions-problem"), await problemOf(response));
}

async function send(method, path, body) {
  const headers = { "X-API-Key": sessionStorage.getItem(STORAGE_KEY) ?? "" };
  if (body) Object.assign(headers, { "Content-Type": "application/json", "If-Match": etag });
  try {
    return await fetch(`admin/${path}`, { method, headers, body: body && JSON.stringify(body) });
  } catch {
    return null;
  }
}

async function problemOf(response) {
  if (response === null) return "The service cannot be reached.";
  if (response.status === 404) return ABSENT;
  const { detail } = await response.json().catch(() => ({}));
  return detail ?? `The service answered with status ${response.status}.`;
}

function show(report, tag, verdict) {
  etag = tag;
  const answers = report.served === null ? "No version" : `Version ${report.served}`;
  say(byId("versions-news"), `${answers} answers${pendingText(report)}.`);
  byId("rollback").disabled = report.previous === null || report.pending !== null;
  byId("versions-list").replaceChildren(
    ...report.versions.map((row) => item(row, report, verdict)),
  );
}

const pendingText = ({ pending }) => (pending === null ? "" : `, and version ${pending} is loaded`);

function verdictText({ decision, reason, overall }) {
  const { wins, losses } = overall;
  return `By labels it alone is right ${many(wins, "time", "times")}, the champion ${losses}: ${decision} (${reason}).`;
}

function item(row, report, verdict) {
  const promote = element(
    "button",
    { type: "button", disabled: row.number === report.champion || report.pending !== null },
    `Promote ${row.number}`,
  );
  promote.addEventListener("click", () =>
    change("PUT", "roles/champion", { version: row.number }),
  );
  const role = row.role ? ` · ${row.role}` : "";
  return element(
    "li",
    { class: "panel" },
    element("h3", {}, `${row.number}${role} · ${row.state}`),
    element("p", { class: "quiet" }, facts(row)),
    verdict && row.number === report.challenger.version
      ? element("p", {}, verdictText(verdict))
      : null,
    row.reason ? element("p", { class: "problem" }, row.reason) : null,
    promote,
  );
}

function facts({ name, version, classes, mean_class, few, note }) {
  if (!name) return "The version cannot be read.";
  const share = (value, text) => (value === null ? [] : [`${value.toFixed(1)} % ${text}`]);
  return [
    `${name} ${version}`,
    many(classes, "class", "classes"),
    ...share(mean_class, "accuracy"),
    ...share(few, "few-shot"),
    ...(note ? [note] : []),
  ].join(" · ");
}
