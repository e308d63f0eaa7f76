// Elements built from names, attributes and children. Text stays text and never becomes markup.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

export function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

export function drawn(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** Set the text only if it differs, so that a live region is not read out twice. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Show the text of a problem in `node`, or hide the node if there is none. */
export function showProblem(node, text) {
  node.hidden = !text;
  say(node, text ?? "");
}

export const chip = (group) => element("span", { class: `chip ${group}` }, group);
