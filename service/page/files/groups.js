// The groups many, medium and few: their shares of the predictions, compared with the expected.

import { evidenceText } from "./chart.js";
import { byId, chip, drawn, element } from "./dom.js";
import { count, estimateText, expected, many, percent, percentWithin, times } from "./format.js";

// Logarithm of the evidence beyond which the confidences of a group are not right.
const CERTAIN = 1.78;

export function showGroups(groups) {
  const cards = Object.entries(groups).map(([name, group]) => groupCard(name, group));
  byId("groups").replaceChildren(...cards);
}

function groupCard(name, group) {
  const wanted = ` of predictions; ${percent(group.expected_share)} expected`;
  return element(
    "li",
    { class: "card group" },
    element(
      "h3",
      {},
      chip(name),
      ` ${many(group.classes, "class", "classes")} `,
      group.direction
        ? element("span", { class: `badge ${group.direction}` }, `${group.direction} than expected`)
        : null,
    ),
    element(
      "p",
      { class: "share" },
      element("strong", {}, percent(group.share)),
      element("span", { class: "quiet" }, wanted),
    ),
    sharesDrawing(name, group),
    element(
      "dl",
      {},
      ...row("Predicted", `${count(group.predicted)}; ${expected(group.expected)} expected`),
      ...row("Ratio", times(group.ratio)),
      ...row("Prevalence", prevalenceText(group.prevalence)),
      ...row("Confidence", confidenceText(group.confidence)),
      ...row("State", group.direction ? `${group.direction} than expected` : evidenceText(group.missing)),
      ...row("Silent", many(group.silent, "class", "classes")),
      ...row("Drifting", many(group.drifting, "class", "classes")),
      ...labelRows(group.labelled),
    ),
  );
}

function labelRows(labelled) {
  if (!labelled?.labels) return [];
  const { labels, sampled, recall, precision, evidence } = labelled;
  return [
    ...row("Labels", `${count(labels)}, ${count(sampled)} sampled`),
    ...row("Live recall", estimateText(recall)),
    ...row("Live precision", estimateText(precision)),
    ...row("Confidences", evidence > CERTAIN ? "not right any more" : "no evidence against"),
  ];
}

const row = (name, text) => [element("dt", {}, name), element("dd", {}, text)];

const prevalenceText = ({ share, low, high }) => percentWithin(share, low, high);

function confidenceText(quantiles) {
  if (!quantiles) return percent(null);
  return percentWithin(quantiles.median, quantiles.low, quantiles.high);
}

/** A bar for the share, a line across it for the expected share, a whisker for the prevalence. */
function sharesDrawing(name, { share, expected_share: wanted, prevalence }) {
  // A share of 100 % fills the bar.
  const most = Math.min(1, 1.1 * Math.max(share ?? 0, wanted, prevalence.high, 0.001));
  const at = (value) => `${(100 * (value ?? 0)) / most}%`;
  const line = (kind, from, to, y1, y2) =>
    drawn("line", { class: kind, x1: at(from), x2: at(to), y1, y2 });
  return drawn(
    "svg",
    { class: `shares ${name}`, "aria-hidden": "true" },
    drawn("rect", { class: "track", width: "100%", height: 16, y: 4, rx: 3 }),
    drawn("rect", { class: "bar", width: at(share), height: 16, y: 4, rx: 3 }),
    line("expected", wanted, wanted, 0, 24),
    line("whisker", prevalence.low, prevalence.high, 33, 33),
    drawn("circle", { class: "estimate", cx: at(prevalence.share), cy: 33, r: 4 }),
  );
}
