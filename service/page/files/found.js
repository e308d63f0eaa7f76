// The classes that the monitor has found to be silent or to drift, the strongest evidence first.

import { chip, element } from "./dom.js";
import { count, expected, many, seen } from "./format.js";

const MOST = 12;

/** `state` tells what a class was found to be. */
export function listFound(list, classes, state) {
  const strongest = classes.toSorted((one, other) => other.live.evidence - one.live.evidence);
  const items = strongest.slice(0, MOST).map((one) => foundItem(one, state(one)));
  const left = classes.length - MOST;
  if (left > 0) items.push(quiet("li", `and ${count(left)} more in the table`));
  if (!classes.length) items.push(quiet("li", "none"));
  list.replaceChildren(...items);
}

const quiet = (name, text) => element(name, { class: "quiet" }, text);

function foundItem({ label, group, count: photos, live }, state) {
  const counts = `predicted ${count(live.predicted)}, expected ${expected(live.expected)}`;
  return element(
    "li",
    {},
    element("span", { class: "label", dir: "auto" }, label),
    element(
      "span",
      { class: "facts" },
      element("span", { class: `badge ${state}` }, state),
      chip(group),
      quiet("span", many(photos, "training photo")),
      element("span", {}, counts),
      quiet("span", seen(live.last_seen)),
    ),
  );
}
