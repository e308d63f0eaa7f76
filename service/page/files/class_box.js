// A box that finds a class by part of its name, after the combobox of the ARIA Authoring Practices.

import { element } from "./dom.js";

const SHOWN = 8;

/** Return the first labels with `text` in them: the one that is it, then those that begin with it. */
export function matching(labels, text) {
  const wanted = text.trim().toLowerCase();
  const rank = (label) => (label === wanted ? 0 : label.startsWith(wanted) ? 1 : 2);
  return labels
    .filter((label) => wanted && label.toLowerCase().includes(wanted))
    .sort((one, other) => rank(one.toLowerCase()) - rank(other.toLowerCase()))
    .slice(0, SHOWN);
}

/** `chosen` is called with the label of a class. */
export function connectClassBox(input, list, chosen) {
  let labels = [];
  let found = [];
  let active = 0;

  function search() {
    found = matching(labels, input.value);
    active = 0;
    draw();
  }

  function draw() {
    list.replaceChildren(
      ...found.map((label, index) =>
        element(
          "li",
          { role: "option", id: `class-option-${index}`, "aria-selected": String(index === active), dir: "auto" },
          label,
        ),
      ),
    );
    list.hidden = !found.length;
    input.setAttribute("aria-expanded", String(found.length > 0));
    if (found.length) input.setAttribute("aria-activedescendant", `class-option-${active}`);
    else input.removeAttribute("aria-activedescendant");
    input.classList.toggle("unknown", Boolean(input.value.trim()) && !found.length);
  }

  function clear() {
    input.value = "";
    search();
  }

  function choose(label) {
    clear();
    chosen(label);
  }

  input.addEventListener("input", search);
  input.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && found.length) {
      event.preventDefault();
      active = (active + step + found.length) % found.length;
      draw();
    } else if (event.key === "Enter") {
      event.preventDefault();
      if (found.length) choose(found[active]);
    } else if (event.key === "Escape" && input.value) {
      event.preventDefault();
      clear();
    }
  });
  list.addEventListener("mousedown", (event) => event.preventDefault());
  list.addEventListener("click", (event) => {
    const option = event.target.closest("[role=option]");
    if (option) choose(option.textContent);
  });
  return { clear, offer: (all) => (labels = all) };
}
