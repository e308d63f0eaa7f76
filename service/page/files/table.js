// Every class with its figures: searched, sorted and turned page by page.

import { stateOf, stateText } from "./chart.js";
import { byId, chip, element, say } from "./dom.js";
import { count, expected, many, percent, times, when } from "./format.js";

const ROWS = 50;

const median = (one) => one.live.confidence?.median;
const accuracy = (one) => one.accuracy && one.accuracy.full / 100;
const labelCell = (one) => element("span", { class: "label", dir: "auto" }, one.label);

// Heading, what the rows are sorted by, what stands in the cell, and whether that is a number.
const COLUMNS = [
  ["Class", (one) => one.label, labelCell],
  ["Group", (one) => -one.count, (one) => chip(one.group)],
  ["Training photos", (one) => one.count, (one) => count(one.count), true],
  ["Predicted", (one) => one.live.predicted, (one) => count(one.live.predicted), true],
  ["Expected", (one) => one.live.expected, (one) => expected(one.live.expected), true],
  ["Ratio", (one) => one.live.ratio, (one) => times(one.live.ratio), true],
  ["Median confidence", median, (one) => percent(median(one)), true],
  ["Accuracy", accuracy, (one) => percent(accuracy(one)), true],
  ["Last seen", (one) => one.live.last_seen, (one) => when(one.live.last_seen)],
  ["State", (one) => stateText(one.live), (one) => stateCell(one.live)],
];

let classes = [];
let page = 0;
let sorting = { column: null, falling: false };

export function connectTable() {
  byId("classes").tHead.rows[0].append(...COLUMNS.map(heading));
  const filter = byId("filter");
  filter.addEventListener("submit", (event) => event.preventDefault());
  filter.addEventListener("input", () => turn(0));
  byId("previous").addEventListener("click", () => turn(page - 1));
  byId("next").addEventListener("click", () => turn(page + 1));
}

/** `ordered`: as GET /classes gives them, by falling number of training photos. */
export function fillTable(ordered) {
  classes = ordered;
  turn(page);
}

function heading([name, , , number], column) {
  const button = element("button", { type: "button" }, name);
  button.addEventListener("click", () => {
    const falling = sorting.column === column ? !sorting.falling : Boolean(number);
    sorting = { column, falling };
    turn(0);
  });
  return element("th", { scope: "col", class: number ? "number" : null }, button);
}

function turn(to) {
  const rows = sorted(classes.filter(wanted()));
  const last = Math.max(Math.ceil(rows.length / ROWS) - 1, 0);
  page = Math.min(Math.max(to, 0), last);
  const start = page * ROWS;
  const shown = rows.slice(start, start + ROWS);
  byId("classes").tBodies[0].replaceChildren(...shown.map(tableRow));
  byId("previous").disabled = page === 0;
  byId("next").disabled = page === last;
  const places = `${count(start + 1)} to ${count(start + shown.length)} of `;
  say(byId("page-number"), `${shown.length ? places : ""}${many(rows.length, "class", "classes")}`);
  markSorting();
}

function wanted() {
  const { text, group, found } = byId("filter").elements;
  const part = text.value.trim().toLocaleLowerCase();
  return (one) =>
    one.label.toLocaleLowerCase().includes(part) &&
    (!group.value || one.group === group.value) &&
    (!found.checked || one.live.silent || one.live.drifting);
}

function sorted(rows) {
  const { column, falling } = sorting;
  if (column === null) return rows;
  const key = COLUMNS[column][1];
  const sign = falling ? -1 : 1;
  return rows.toSorted((one, other) => compare(key(one), key(other), sign));
}

/** What has no value comes last, whichever way. */
function compare(one, other, sign) {
  if (one == null || other == null) return (one == null) - (other == null);
  if (typeof one === "string") return sign * one.localeCompare(other);
  return sign * (one - other);
}

function markSorting() {
  [...byId("classes").tHead.rows[0].cells].forEach((cell, column) => {
    if (column !== sorting.column) cell.removeAttribute("aria-sort");
    else cell.setAttribute("aria-sort", sorting.falling ? "descending" : "ascending");
  });
}

function tableRow(one) {
  const [first, ...others] = COLUMNS;
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, first[2](one)),
    ...others.map(([, , content, number]) =>
      element("td", { class: number ? "number" : null }, content(one)),
    ),
  );
}

function stateCell(live) {
  const state = stateOf(live);
  return state ? element("span", { class: `badge ${state}` }, stateText(live)) : stateText(live);
}
