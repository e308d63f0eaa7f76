// What the service serves: its name for the heading, how it prepares photos, what can be asked for.

import { Problem, ask } from "./api.js";
import { byId, element, say, showProblem } from "./dom.js";
import { many } from "./format.js";

let asked = null;
let summary = null;

/** The answer of GET /model, asked for once; throws what `ask` throws. */
export function knownModel() {
  asked ??= ask("model").then(use, (error) => {
    asked = null;
    throw error;
  });
  return asked;
}

/** Sizes of canvas and views; null until the model is known. */
export const preprocessing = () => summary?.preprocessing ?? null;

/** Show what the service serves, or why that is not known. */
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
  const { ensemble, prior, coverage } = byId("settings").elements;
  if (!model.exit) {
    ensemble.value = "full";
    withhold(optionOf(ensemble, "adaptive"), "the bundle has no exit rule");
  }
  if (!model.sets) withhold(coverage, "the bundle has no calibration for them");
  const own = model.priors.filter((name) => !optionOf(prior, name));
  prior.append(...own.map((name) => element("option", { value: name }, name)));
  return model;
}

const optionOf = (select, value) => [...select.options].find((option) => option.value === value);

/** Show that something cannot be asked for, and why. */
function withhold(control, reason) {
  control.disabled = true;
  const words = control.labels?.[0] ?? control;
  words.append(` (${reason})`);
}

function heading({ name, version, classes, provider, precision }) {
  const number = many(classes, "class", "classes");
  return `${name} · version ${version} · ${number} · ${provider}, ${precision}`;
}
