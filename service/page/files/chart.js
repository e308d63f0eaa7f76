// Predicted against expected counts of all classes, in order of frequency. The chart is a handful of
// paths, so that thousands of classes are as cheap as a hundred.

import { byId, drawn, element, say } from "./dom.js";
import { count, expected, many, seen, times } from "./format.js";

const HEIGHT = 406;
const LEFT = 60;
const TOP = 52;
const BOTTOM = 112;
// Below the axis, names of classes stand at least so far apart, and are cut at so many characters.
const NAME_GAP = 17;
const LONGEST_NAME = 14;
const WIDEST_BAR = 22;
const GROUPS = ["many", "medium", "few"];
const LEGEND = [
  ...GROUPS.map((group) => [`bar ${group}`, `predicted, ${group}`]),
  ["expected", "expected"],
  ["mark silent", "silent"],
  ["mark more", "more than expected"],
  ["mark fewer", "fewer than expected"],
];

// Paths around the starting point. The marks differ in shape as well as in colour: a crossed ring, a
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
  chart.addEventListener("pointermove", (event) => choose(indexAt(event)));
  chart.addEventListener("pointerdown", (event) => choose(indexAt(event)));
  byId("legend").append(...LEGEND.map(([kind, text]) => element("li", {}, sample(kind), text)));
}

/** Draw the classes of GET /classes, ordered from most to fewest training photos. */
export function drawChart(ordered) {
  classes = ordered;
  byId("scrub").max = classes.length - 1;
  draw();
}

function indexAt(event) {
  const { left, width } = byId("chart").getBoundingClientRect();
  const index = Math.floor((classes.length * (event.clientX - left - LEFT)) / (width - LEFT));
  return Math.min(Math.max(index, 0), classes.length - 1);
}

function choose(index) {
  if (!classes.length) return;
  chosen = index;
  byId("scrub").value = index;
  read();
}

/** Show the figures of the chosen class, and mark it in the chart. */
function read() {
  const text = readingText(classes[Math.min(chosen, classes.length - 1)]);
  say(byId("reading"), text);
  byId("scrub").setAttribute("aria-valuetext", text);
  const { x } = scales();
  const line = `M${x(chosen)} ${TOP}V${HEIGHT - BOTTOM}`;
  byId("chart").querySelector(".cursor")?.setAttribute("d", line);
}

/** The finding about a class: `silent`, `more`, `fewer`, or null. */
export const stateOf = ({ silent, direction }) => (silent ? "silent" : direction);

export function stateText(live) {
  const state = stateOf(live);
  if (!state) return live.hidden ? "loss would not show" : evidenceText(live.missing);
  return state === "silent" ? state : `${state} than expected`;
}

/** Whether nothing was found because all is as expected, or because too little was seen. */
export function evidenceText(missing) {
  if (missing === 0) return "as expected";
  const more = missing === null ? "" : `: ${many(missing, "more prediction")}`;
  return `not enough evidence yet${more}`;
}

function readingText({ label, group, count: photos, live }) {
  const counts = `predicted ${count(live.predicted)}, expected ${expected(live.expected)}`;
  return (
    `${label}: ${group}, ${many(photos, "training photo")}; ${counts} (${times(live.ratio)}); ` +
    `${[seen(live.last_seen), stateText(live)].filter(Boolean).join("; ")}`
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
    x: (index) => LEFT + (index + 0.5) * step,
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
      ...names(scale),
      drawn("text", { x: 0, y: TOP - 16 }, "predictions (log)"),
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

/** The names of the groups at the top, and lines between them. */
function zones({ step, base }) {
  return GROUPS.flatMap((group) => {
    const first = classes.findIndex((info) => info.group === group);
    if (first < 0) return [];
    const number = classes.filter((info) => info.group === group).length;
    const start = LEFT + first * step;
    const room = number * step;
    const name = room > 110 ? `${group}: ${many(number, "class", "classes")}` : group;
    return [
      first ? drawn("path", { class: "zone", d: `M${start} 4V${base}` }) : null,
      room > 64 ? drawn("text", { x: start + 6, y: 16 }, name) : null,
    ].filter(Boolean);
  });
}

/** The names of the classes below the axis, as many as there is room for. */
function names({ step, base, x }) {
  const stride = Math.ceil(NAME_GAP / step);
  return classes.flatMap(({ label, group }, index) => {
    if (index % stride) return [];
    const characters = [...label];
    const cut = characters.length > LONGEST_NAME;
    const text = cut ? `${characters.slice(0, LONGEST_NAME - 1).join("")}…` : label;
    const place = `translate(${x(index) + 4} ${base + 12}) rotate(-60)`;
    return drawn("text", { class: `name ${group}`, transform: place, "text-anchor": "end" }, text);
  });
}

function bars({ step, base, x, y }, group) {
  const lines = classes.map(({ live, group: own }, index) => {
    if (own !== group || !live.predicted) return "";
    return `M${x(index).toFixed(1)} ${base}V${y(live.predicted).toFixed(1)}`;
  });
  const width = Math.min(Math.max(0.7 * step, 1), WIDEST_BAR);
  return drawn("path", { class: `bars ${group}`, d: lines.join(""), "stroke-width": width });
}

function expectedLine({ step, x, y }) {
  const steps = classes.map(({ live }, index) => {
    const start = (x(index) - step / 2).toFixed(1);
    return `${index ? "L" : "M"}${start} ${y(live.expected).toFixed(1)}h${step.toFixed(2)}`;
  });
  return steps.join("");
}

function marks({ x, y }, kind) {
  const indices = [...classes.keys()].filter((index) => stateOf(classes[index].live) === kind);
  const points = indices.map((index) => {
    const { predicted, expected: wanted } = classes[index].live;
    return [x(index), kind === "silent" ? y(wanted) : y(predicted) - 10];
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
