// The page: photos, the tail and, if there is a store, its versions, each on a tab.

import { byId } from "./dom.js";
import { connectKey } from "./key.js";
import { connectLabels, updateLabelsWhile } from "./label.js";
import { showModel } from "./model.js";
import { connectPhotos } from "./photos.js";
import { connectTabs } from "./tabs.js";
import { connectTail, updateWhile, updateWithKey } from "./tail.js";
import { connectVersions, updateVersionsWhile } from "./versions.js";

connectPhotos();
connectTail();
connectVersions();
connectLabels();
connectTabs(document.querySelector("[role=tablist]"), (panel) => {
  updateWhile(panel === "tail");
  updateVersionsWhile(panel === "versions");
  updateLabelsWhile(panel === "label");
});
connectKey(() => {
  showModel();
  updateWithKey();
});
showModel();
