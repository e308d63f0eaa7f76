// The table of all classes, with search, sorting and pages.

import { stateOf, stateText } from "./chart.js";
import { byId, chip, element, say } from "./dom.js";
import { count, expected, many, percent, times, when } from "./format.js";

const ROWS = 50;

const median = (info) => info.live.confidence?.median;
const accuracy = (info) => info.accuracy && info.accuracy.full / 100;
const labelCell = (info) => element("span", { class: "label", dir: "auto" }, info.label);

// Heading, sort key, content of the cell, and whether the content is a number.
const COLUMNS = [
  ["Class", (info) => info.label, labelCell],
  ["Group", (info) => -info.count, (info) => chip(info.group)],
  ["Training photos", (info) => info.count, (info) => count(info.count), true],
  ["Predicted", (info) => info.live.predicted, (info) => count(info.live.predicted), true],
  ["Expected", (info) => info.live.expected, (info) => expected(info.live.expected), true],
  ["Ratio", (info) => info.live.ratio, (info) => times(info.live.ratio), true],
  ["Median confidence", median, (info) => percent(median(info)), true],
  ["Accuracy", accuracy, (info) => percent(accuracy(info)), true],
  ["Last seen", (info) => info.live.last_seen, (info) => when(info.live.last_seen)],
  ["State", (info) => stateText(info.live), (info) => stateCell(info.live)],
];

let classes = [];
let page = 0;
let sorting = { column: null, falling: false };

export function connectTable() {
  byId("classes").tHead.rows[0].append(...COLUMNS.map(heading));
  const filter = byId("filter");
  filter.addEventListener("submit", (event) => event.preventDefault());
  filter.addEventListener("input", () => turnTo(0));
  byId("previous").addEventListener("click", () => turnTo(page - 1));
  byId("next").addEventListener("click", () => turnTo(page + 1));
}

/** Fill in the classes of GET /classes, ordered from most to fewest training photos. */
export function fillTable(ordered) {
  classes = ordered;
  turnTo(page);
}

function heading([name, , , isNumber], column) {
  const button = element("button", { type: "button" }, name);
  button.addEventListener("click", () => {
    const falling = sorting.column === column ? !sorting.falling : Boolean(isNumber);
    sorting = { column, falling };
    turnTo(0);
  });
  return element("th", { scope: "col", class: isNumber ? "number" : null }, button);
}

function turnTo(number) {
  const rows = sorted(classes.filter(wanted()));
  const last = Math.max(Math.ceil(rows.length / ROWS) - 1, 0);
  page = Math.min(Math.max(number, 0), last);
  const start = page * ROWS;
  const shown = rows.slice(start, start + ROWS);
  byId("classes").tBodies[0].replaceChildren(...shown.map(tableRow));
  byId("previous").disabled = page === 0;
  byId("next").disabled = page === last;
  const shownRows = `${count(start + 1)} to ${count(start + shown.length)} of `;
  say(byId("page-number"), `${shown.length ? shownRows : ""}${many(rows.length, "class", "classes")}`);
  markSorting();
}

function wanted() {
  const { text, group, found } = byId("filter").elements;
  const part = text.value.trim().toLocaleLowerCase();
  return (info) =>
    info.label.toLocaleLowerCase().includes(part) &&
    (!group.value || info.group === group.value) &&
    (!found.checked || info.live.silent || info.live.drifting);
}

function sorted(rows) {
  const { column, falling } = sorting;
  if (column === null) return rows;
  const key = COLUMNS[column][1];
  const sign = falling ? -1 : 1;
  return rows.toSorted((a, b) => compare(key(a), key(b), sign));
}

/** Order two keys; those without a value come last in either direction. */
function compare(a, b, sign) {
  if (a == null || b == null) return (a == null) - (b == null);
  if (typeof a === "string") return sign * a.localeCompare(b);
  return sign * (a - b);
}

function markSorting() {
  [...byId("classes").tHead.rows[0].cells].forEach((cell, column) => {
    if (column !== sorting.column) cell.removeAttribute("aria-sort");
    else cell.setAttribute("aria-sort", sorting.falling ? "descending" : "ascending");
  });
}

function tableRow(info) {
  const [first, ...others] = COLUMNS;
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, first[2](info)),
    ...others.map(([, , content, isNumber]) =>
      element("td", { class: isNumber ? "number" : null }, content(info)),
    ),
  );
}

function stateCell(live) {
  const state = stateOf(live);
  return state ? element("span", { class: `badge ${state}` }, stateText(live)) : stateText(live);
}
