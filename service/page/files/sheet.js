// The sheet of `taillift suggest`: one photo after the other gets its label, and a file has them
// all. It works from a disk. What was labelled is kept in the browser until it is started anew.

import { matching } from "./class_box.js";
import { byId, element, say } from "./dom.js";
import { many, percent } from "./format.js";

const NONE = "none of the classes";

/** Return the labels as CSV, with the columns path and label. */
export function csv(photos, labels) {
  const cell = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const rows = photos
    .filter(({ path }) => labels.has(path))
    .map(({ path }) => `${cell(path)},${cell(labels.get(path))}\n`);
  return `path,label\n${rows.join("")}`;
}

export function startSheet({ bundle, classes, photos }) {
  const key = `taillift labels ${bundle} ${photos.map(({ source }) => source).join("\n")}`;
  const groups = new Map(classes.map(({ label, group }) => [label, group]));
  // What was done, in order: [path, label], where the label null means skipped.
  const done = stored(key);
  const typed = byId("typed");

  const labels = () => new Map(done.filter(([, label]) => label !== null));
  const current = () => {
    const seen = new Set(done.map(([path]) => path));
    return photos.find(({ path }) => !seen.has(path));
  };

  function finish(label) {
    const photo = current();
    if (!photo) return;
    done.push([photo.path, label]);
    save(key, done);
    show();
    byId("work").focus();
  }

  function undo() {
    if (!done.length) return;
    done.pop();
    save(key, done);
    show();
  }

  function reopenSkipped() {
    done.splice(0, done.length, ...done.filter(([, label]) => label !== null));
    save(key, done);
    show();
  }

  function choice(mark, label, group, quiet) {
    const button = element(
      "button",
      { type: "button", class: group ?? "" },
      element("kbd", {}, mark),
      element("span", { class: "label" }, label),
      element("span", { class: "quiet" }, quiet),
    );
    button.addEventListener("click", () => finish(label));
    return element("li", {}, button);
  }

  function showMatches() {
    const text = typed.value.trim();
    const found = matching([...groups.keys()], text);
    const items = found.map((label, index) => {
      const group = groups.get(label);
      return choice(index ? "" : "↵", label, group, group);
    });
    if (text && !groups.has(text)) {
      items.push(choice(found.length ? "" : "↵", text, null, "a new class"));
    }
    byId("matches").replaceChildren(...items);
  }

  function show() {
    const photo = current();
    const named = labels();
    const none = [...named.values()].filter((label) => label === NONE).length;
    const rare = [...named.values()].filter((label) => groups.get(label) === "few").length;
    const skipped = done.length - named.size;
    say(
      byId("counts"),
      `${named.size - none} of ${many(photos.length, "photo")} labelled, ${rare} of rare classes; ` +
        `${none} of no class, ${skipped} skipped`,
    );
    byId("undo").disabled = !done.length;
    byId("save").disabled = !named.size;
    byId("again").hidden = !skipped;
    byId("work").hidden = !photo;
    byId("finished").hidden = Boolean(photo);
    typed.value = "";
    showMatches();
    if (!photo) return;
    const number = photos.indexOf(photo) + 1;
    const image = byId("photo");
    image.src = photo.path;
    image.alt = `Photo ${number} of ${photos.length}`;
    say(byId("why"), `${number}: ${photo.why} (${photo.source})`);
    byId("top").replaceChildren(
      ...photo.top.map(({ label, group, confidence }, index) =>
        choice(String(index + 1), label, group, `${percent(confidence)}, ${group}`),
      ),
      choice("0", NONE, null, ""),
    );
  }

  function download() {
    const file = new Blob([csv(photos, labels())], { type: "text/csv" });
    const link = element("a", { href: URL.createObjectURL(file), download: "labels.csv" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    const folder = decodeURIComponent(new URL(".", location.href).pathname);
    say(
      byId("saved"),
      `labels.csv is saved. Put it into ${folder}, next to this page, and run: ` +
        `taillift train photos/ --add ${quoted(`${folder}labels.csv`)}`,
    );
  }

  byId("undo").addEventListener("click", undo);
  byId("skip").addEventListener("click", () => finish(null));
  byId("save").addEventListener("click", download);
  byId("again").addEventListener("click", reopenSkipped);
  typed.addEventListener("input", showMatches);
  addEventListener("keydown", (event) => {
    const command = event.ctrlKey || event.metaKey;
    const typing = document.activeElement === typed && typed.value !== "";
    const act = (work) => {
      event.preventDefault();
      work();
    };
    if (command && event.key === "s") act(() => labels().size && download());
    else if (command && event.key === "z" && !typing) act(undo);
    else if (command || event.altKey || event.isComposing) return;
    else if (typing && event.key === "Enter") {
      act(() => byId("matches").querySelector("button")?.click());
    } else if (event.key === "Escape") {
      act(() => {
        typed.value = "";
        typed.blur();
        showMatches();
      });
    } else if (typing || (event.key === " " && document.activeElement.matches("button"))) return;
    else if (event.key === " ") act(() => finish(null));
    else if (event.key === "Backspace") act(undo);
    else if (event.key === "0") act(() => finish(NONE));
    else if (/^[1-9]$/.test(event.key)) {
      const photo = current();
      const chosen = photo?.top[Number(event.key) - 1];
      if (chosen) act(() => finish(chosen.label));
    } else if (/^\p{L}$/u.test(event.key)) typed.focus();
  });
  show();
}

/** Return a word of a command as a shell reads it. */
const quoted = (word) =>
  /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;

function stored(key) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? [];
  } catch {
    return [];
  }
}

function save(key, done) {
  try {
    localStorage.setItem(key, JSON.stringify(done));
  } catch {
    // A browser that keeps nothing from a disk: the labels are on this page until it is closed.
  }
}
