// Predicted against expected of every class, in order of frequency: a handful of paths, so that
// thousands of classes cost no more than a hundred.

import { byId, drawn, element, say } from "./dom.js";
import { count, expected, many, seen, times } from "./format.js";

const HEIGHT = 310;
const LEFT = 60;
const TOP = 40;
const BOTTOM = 22;
const WIDEST_BAR = 22;
const GROUPS = ["many", "medium", "few"];
const LEGEND = [
  ...GROUPS.map((group) => [`bar ${group}`, `predicted, ${group}`]),
  ["expected", "expected"],
  ["mark silent", "silent"],
  ["mark more", "more than expected"],
  ["mark fewer", "fewer than expected"],
];

// Around the point where each begins; told apart by shape as well as by colour: a crossed ring, a
// triangle up, a triangle down.
const MARKS = {
  silent: "m-6 0a6 6 0 1 0 12 0a6 6 0 1 0-12 0zm1.8-4.2l8.4 8.4",
  more: "m-6 5l6-11l6 11z",
  fewer: "m-6-5l6 11l6-11z",
};

let classes = [];
let chosen = 0;

export function connectChart() {
  const chart = byId("chart");
  const scrub = byId("scrub");
  new ResizeObserver(() => classes.length && draw()).observe(chart);
  scrub.addEventListener("input", () => choose(Number(scrub.value)));
  chart.addEventListener("pointermove", (event) => choose(placeAt(event)));
  chart.addEventListener("pointerdown", (event) => choose(placeAt(event)));
  byId("legend").append(...LEGEND.map(([kind, text]) => element("li", {}, sample(kind), text)));
}

/** `ordered`: as GET /classes gives them, by falling number of training photos. */
export function drawChart(ordered) {
  classes = ordered;
  byId("scrub").max = classes.length - 1;
  draw();
}

function placeAt(event) {
  const { left, width } = byId("chart").getBoundingClientRect();
  const place = Math.floor((classes.length * (event.clientX - left - LEFT)) / (width - LEFT));
  return Math.min(Math.max(place, 0), classes.length - 1);
}

function choose(place) {
  if (!classes.length) return;
  chosen = place;
  byId("scrub").value = place;
  read();
}

/** Tell the chosen class's figures, and where it stands. */
function read() {
  const one = classes[Math.min(chosen, classes.length - 1)];
  const text = readingText(one);
  say(byId("reading"), text);
  byId("scrub").setAttribute("aria-valuetext", text);
  const { x } = scales();
  const line = `M${x(chosen)} ${TOP}V${HEIGHT - BOTTOM}`;
  byId("chart").querySelector(".cursor")?.setAttribute("d", line);
}

/** What was found of a class: `silent`, `more`, `fewer`, or null. */
export const stateOf = ({ silent, direction }) => (silent ? "silent" : direction);

export function stateText(live) {
  const state = stateOf(live);
  if (!state) return live.hidden ? "loss would not show" : "as expected";
  return state === "silent" ? state : `${state} than expected`;
}

function readingText({ label, group, count: photos, live }) {
  const counts = `predicted ${count(live.predicted)}, expected ${expected(live.expected)}`;
  return (
    `${label}: ${group}, ${many(photos, "training photo")}; ${counts} (${times(live.ratio)}); ` +
    `${seen(live.last_seen)}; ${stateText(live)}`
  );
}

function scales() {
  const width = Math.max(byId("chart").clientWidth, 200);
  const step = (width - LEFT) / classes.length;
  const most = classes.reduce(
    (high, { live }) => Math.max(high, live.predicted, live.expected),
    10,
  );
  const base = HEIGHT - BOTTOM;
  const unit = (base - TOP) / Math.log1p(most);
  return {
    width,
    step,
    most,
    base,
    x: (place) => LEFT + (place + 0.5) * step,
    y: (value) => base - unit * Math.log1p(value),
  };
}

function draw() {
  const scale = scales();
  const label =
    `Predicted against expected number of photos of ${many(classes.length, "class", "classes")} ` +
    "in order of frequency, on a logarithmic scale";
  byId("chart").replaceChildren(
    drawn(
      "svg",
      { role: "img", "aria-label": label, width: scale.width, height: HEIGHT },
      ...grid(scale),
      ...zones(scale),
      ...GROUPS.map((group) => bars(scale, group)),
      drawn("path", { class: "expected", d: expectedLine(scale) }),
      ...Object.keys(MARKS).map((kind) => marks(scale, kind)),
      drawn("path", { class: "cursor" }),
    ),
  );
  read();
}

function grid({ width, most, base, y }) {
  const ticks = [0];
  for (let tick = 1; tick <= most; tick *= 10) ticks.push(tick);
  return ticks.flatMap((tick) => [
    drawn("path", { class: "grid", d: `M${LEFT} ${y(tick)}H${width}` }),
    drawn("text", { x: LEFT - 8, y: y(tick) + 4, "text-anchor": "end" }, count(tick)),
  ]);
}

/** The groups' names above, and a line between one and the next. */
function zones({ step, base }) {
  return GROUPS.flatMap((group) => {
    const first = classes.findIndex((one) => one.group === group);
    if (first < 0) return [];
    const number = classes.filter((one) => one.group === group).length;
    const start = LEFT + first * step;
    const room = number * step;
    const name = room > 110 ? `${group}: ${many(number, "class", "classes")}` : group;
    return [
      first ? drawn("path", { class: "zone", d: `M${start} 4V${base}` }) : null,
      room > 64 ? drawn("text", { x: start + 6, y: 16 }, name) : null,
    ].filter(Boolean);
  });
}

function bars({ step, base, x, y }, group) {
  const lines = classes.map(({ live, group: own }, place) => {
    if (own !== group || !live.predicted) return "";
    return `M${x(place).toFixed(1)} ${base}V${y(live.predicted).toFixed(1)}`;
  });
  const width = Math.min(Math.max(0.7 * step, 1), WIDEST_BAR);
  return drawn("path", { class: `bars ${group}`, d: lines.join(""), "stroke-width": width });
}

function expectedLine({ step, x, y }) {
  const steps = classes.map(({ live }, place) => {
    const start = (x(place) - step / 2).toFixed(1);
    return `${place ? "L" : "M"}${start} ${y(live.expected).toFixed(1)}h${step.toFixed(2)}`;
  });
  return steps.join("");
}

function marks({ x, y }, kind) {
  const places = [...classes.keys()].filter((place) => stateOf(classes[place].live) === kind);
  const points = places.map((place) => {
    const { predicted, expected: wanted } = classes[place].live;
    return [x(place), kind === "silent" ? y(wanted) : y(predicted) - 10];
  });
  return marksAt(kind, points);
}

function marksAt(kind, points) {
  const shapes = points.map(([x, y]) => `M${x.toFixed(1)} ${y.toFixed(1)}${MARKS[kind]}`);
  return drawn("path", { class: `mark ${kind}`, d: shapes.join("") });
}

function sample(kind) {
  const [sort, name] = kind.split(" ");
  const shape =
    sort === "mark"
      ? marksAt(name, [[9, 8]])
      : drawn("path", {
          class: sort === "bar" ? `bars ${name}` : "expected",
          d: sort === "bar" ? "M9 15V2" : "M0 8H18",
          "stroke-width": sort === "bar" ? 10 : null,
        });
  return drawn("svg", { width: 18, height: 16 }, shape);
}
