// The API key, and the dialog that asks for it.

import { byId, showProblem } from "./dom.js";

const STORAGE_KEY = "taillift-key";

let asking = null;
let declined = false;

export const storedKey = () => sessionStorage.getItem(STORAGE_KEY);

/**
 * Ask for a key other than `refused`; resolves to whether there is one. Requests that fail at the
 * same time share one dialog. If the key was replaced in the meantime, the new one is used without
 * asking. After the dialog was cancelled it opens again only with the button.
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

/** `changed` is called when the user has entered a key with the button. */
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
    sessionStorage.setItem(STORAGE_KEY, form.elements.key.value);
    dialog.close("use");
  });
}
