// Lists of the silent and of the drifting classes, the strongest evidence first.

import { chip, element } from "./dom.js";
import { count, expected, many, seen } from "./format.js";

const MOST = 12;

/** Fill a list with classes; `state` returns the finding to show for a class. */
export function listFound(list, classes, state) {
  const strongest = classes.toSorted((a, b) => b.live.evidence - a.live.evidence);
  const items = strongest.slice(0, MOST).map((info) => foundItem(info, state(info)));
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
      live.found_after ? quiet("span", `found after ${many(live.found_after, "prediction")}`) : null,
    ),
  );
}
