// Many, medium and few: their shares of the predictions against what is expected.

import { byId, chip, drawn, element } from "./dom.js";
import { count, expected, many, percent, percentWithin, times } from "./format.js";

export function showGroups(groups) {
  byId("groups").replaceChildren(...Object.entries(groups).map(([name, one]) => groupCard(name, one)));
}

function groupCard(name, group) {
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
      element("span", { class: "quiet" }, ` of predictions; ${percent(group.expected_share)} expected`),
    ),
    sharesDrawing(name, group),
    element(
      "dl",
      {},
      ...row("Predicted", `${count(group.predicted)}; ${expected(group.expected)} expected`),
      ...row("Ratio", times(group.ratio)),
      ...row("Prevalence", prevalenceText(group.prevalence)),
      ...row("Confidence", confidenceText(group.confidence)),
      ...row("Silent", many(group.silent, "class", "classes")),
      ...row("Drifting", many(group.drifting, "class", "classes")),
    ),
  );
}

const row = (name, text) => [element("dt", {}, name), element("dd", {}, text)];

const prevalenceText = ({ share, low, high }) => percentWithin(share, low, high);

function confidenceText(quantiles) {
  if (!quantiles) return percent(null);
  return percentWithin(quantiles.median, quantiles.low, quantiles.high);
}

/** A bar for the share, a line across it for what is expected, a whisker for the prevalence. */
function sharesDrawing(name, { share, expected_share: wanted, prevalence }) {
  const most = 1.1 * Math.max(share ?? 0, wanted, prevalence.high, 0.001);
  const at = (value) => `${(100 * (value ?? 0)) / most}%`;
  return drawn(
    "svg",
    { class: `shares ${name}`, "aria-hidden": "true" },
    drawn("rect", { class: "track", width: "100%", height: 16, y: 4, rx: 3 }),
    drawn("rect", { class: "bar", width: at(share), height: 16, y: 4, rx: 3 }),
    drawn("line", { class: "expected", x1: at(wanted), x2: at(wanted), y1: 0, y2: 24 }),
    drawn("line", { class: "whisker", x1: at(prevalence.low), x2: at(prevalence.high), y1: 33, y2: 33 }),
    drawn("circle", { class: "estimate", cx: at(prevalence.share), cy: 33, r: 4 }),
  );
}
