// The API key, and the dialog that asks for it.

import { byId, showProblem } from "./dom.js";

const PLACE = "taillift-key";

let asking = null;
let declined = false;

export const storedKey = () => sessionStorage.getItem(PLACE);

/**
 * Ask for another key than `refused`, once for all who wait. Resolves to whether there is one.
 * Whoever was refused with a key that has been replaced meanwhile gets the new one at once, and
 * whoever has closed the dialog is not asked again, but has a button for it.
 */
export async function askForKey(problem, refused) {
  if (storedKey() !== refused) return true;
  if (declined) return false;
  asking ??= dialogAnswer(refused && problem).finally(() => (asking = null));
  declined = !(await asking);
  return !declined;
}

function dialogAnswer(problem) {
  const dialog = byId("key");
  byId("key-open").hidden = false;
  showProblem(byId("key-problem"), problem);
  dialog.querySelector("form").reset();
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "use"), { once: true });
  });
}

/** `changed` is called when a key was given without the service having asked at that moment. */
export function connectKey(changed) {
  const dialog = byId("key");
  const form = dialog.querySelector("form");
  byId("key-open").hidden = !storedKey();
  byId("key-open").addEventListener("click", async () => {
    declined = false;
    if (await askForKey("", storedKey())) changed();
  });
  byId("key-cancel").addEventListener("click", () => dialog.close(""));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(PLACE, form.elements.key.value);
    dialog.close("use");
  });
}
