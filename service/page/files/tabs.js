// Tabs after the ARIA Authoring Practices: arrows, Home and End move and select.

import { byId } from "./dom.js";

const STEPS = { ArrowRight: 1, ArrowLeft: -1 };

/** `shown` is called with the id of a panel whenever it becomes visible. */
export function connectTabs(tablist, shown) {
  const all = [...tablist.querySelectorAll("[role=tab]")];
  const visible = () => all.filter((tab) => !tab.hidden);
  const panelOf = (tab) => tab.getAttribute("aria-controls");

  function select(tab) {
    for (const other of all) {
      const chosen = other === tab;
      other.setAttribute("aria-selected", String(chosen));
      other.tabIndex = chosen ? 0 : -1;
      byId(panelOf(other)).hidden = !chosen;
    }
    shown(panelOf(tab));
  }

  function choose(tab) {
    history.replaceState(null, "", `#${panelOf(tab)}`);
    select(tab);
  }

  function target(event) {
    const tabs = visible();
    if (event.key === "Home") return tabs[0];
    if (event.key === "End") return tabs.at(-1);
    const step = STEPS[event.key];
    return step && tabs[(tabs.indexOf(event.target) + step + tabs.length) % tabs.length];
  }

  tablist.addEventListener("click", (event) => {
    const tab = event.target.closest("[role=tab]");
    if (tab) choose(tab);
  });
  tablist.addEventListener("keydown", (event) => {
    const tab = target(event);
    if (!tab) return;
    event.preventDefault();
    choose(tab);
    tab.focus();
  });
  const named = () => visible().find((tab) => `#${panelOf(tab)}` === location.hash);
  addEventListener("hashchange", () => named() && select(named()));
  select(named() ?? all[0]);
}
