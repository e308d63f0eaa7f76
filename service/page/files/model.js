// The served model: its name for the heading, its preprocessing, and the settings it supports.

import { Problem, ask } from "./api.js";
import { byId, element, say, showProblem } from "./dom.js";
import { many } from "./format.js";
import { offerLabels } from "./label.js";
import { offerVersions } from "./versions.js";

let request = null;
let summary = null;

/** Return the answer of GET /model, requested once; throws what `ask` throws. */
export function knownModel() {
  request ??= ask("model").then(use, (error) => {
    request = null;
    throw error;
  });
  return request;
}

/** The sizes of canvas and views; null until the model is known. */
export const preprocessing = () => summary?.preprocessing ?? null;

/** Show the served model, or why it is unknown. */
export async function showModel() {
  try {
    await knownModel();
    showProblem(byId("model-problem"), null);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    showProblem(byId("model-problem"), error.message);
  }
}

function use(model) {
  summary = model;
  say(byId("model"), heading(model));
  offerVersions(model.number);
  offerLabels(model.labelling);
  const { ensemble, prior, coverage } = byId("settings").elements;
  ensemble.value = model.usual_ensemble;
  if (!model.exit) {
    disable(optionOf(ensemble, "adaptive"), "the bundle has no exit rule");
  }
  if (!model.sets) disable(coverage, "the bundle has no calibration for them");
  const own = model.priors.filter((name) => !optionOf(prior, name));
  prior.append(...own.map((name) => element("option", { value: name }, name)));
  return model;
}

const optionOf = (select, value) => [...select.options].find((option) => option.value === value);

/** Disable a control, and show why. */
function disable(control, reason) {
  control.disabled = true;
  const words = control.labels?.[0] ?? control;
  words.append(` (${reason})`);
}

function heading({ name, version, classes, provider, precision }) {
  const number = many(classes, "class", "classes");
  return `${name} · version ${version} · ${number} · ${provider}, ${precision}`;
}
