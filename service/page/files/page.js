// The page: photos on one tab, the tail on the other.

import { byId } from "./dom.js";
import { connectKey } from "./key.js";
import { showModel } from "./model.js";
import { connectPhotos } from "./photos.js";
import { connectTabs } from "./tabs.js";
import { connectTail, updateWhile, updateWithKey } from "./tail.js";

connectPhotos();
connectTail();
connectTabs(document.querySelector("[role=tablist]"), (panel) => updateWhile(panel === "tail"));
connectKey(() => {
  showModel();
  updateWithKey();
});
showModel();
