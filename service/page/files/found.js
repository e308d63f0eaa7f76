// The classes that the monitor has found to be silent or to drift, the strongest evidence first.

import { chip, element } from "./dom.js";
import { count, expected, many, when } from "./format.js";

const MOST = 50;

/** `state` tells what a class was found to be. */
export function listFound(list, classes, state) {
  const strongest = classes.toSorted((one, other) => other.live.evidence - one.live.evidence);
  const items = strongest.slice(0, MOST).map((one) => foundItem(one, state(one)));
  const left = classes.length - MOST;
  if (left > 0) items.push(element("li", { class: "quiet" }, `and ${count(left)} more in the table`));
  if (!classes.length) items.push(element("li", { class: "quiet" }, "none"));
  list.replaceChildren(...items);
}

function foundItem({ label, group, count: photos, live }, state) {
  return element(
    "li",
    {},
    element("span", { class: "label", dir: "auto" }, label),
    element(
      "span",
      { class: "facts" },
      element("span", { class: `badge ${state}` }, state),
      chip(group),
      element("span", { class: "quiet" }, many(photos, "training photo")),
      element("span", {}, `predicted ${count(live.predicted)}, expected ${expected(live.expected)}`),
      element("span", { class: "quiet" }, `last seen ${when(live.last_seen)}`),
    ),
  );
}
