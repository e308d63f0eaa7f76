// A box that finds a class by part of its name, after the combobox of the ARIA Authoring Practices.

import { element } from "./dom.js";

const SHOWN = 8;

/** `chosen` is called with the label of a class. */
export function connectClassBox(input, list, chosen) {
  let labels = [];
  let found = [];
  let active = 0;

  function search() {
    const text = input.value.trim().toLowerCase();
    const inside = text ? labels.filter((label) => label.toLowerCase().includes(text)) : [];
    const starts = (label) => label.toLowerCase().startsWith(text);
    found = [...inside.filter(starts), ...inside.filter((label) => !starts(label))].slice(0, SHOWN);
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
