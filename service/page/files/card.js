// One photo and its classification.

import { chip, drawn, element } from "./dom.js";
import { many, percent } from "./format.js";
import { preprocessing } from "./model.js";
import { canvasSize, viewNames, viewsDrawing } from "./views.js";

export class PhotoCard {
  constructor(file) {
    this.file = file;
    this.url = URL.createObjectURL(file);
    this.image = element("img", { src: this.url, alt: `Photo ${file.name}`, decoding: "async" });
    this.photo = element("div", { class: "photo" }, this.image);
    this.answer = element("div", { class: "answer" });
    this.node = element(
      "li",
      { class: "card" },
      this.photo,
      element("h3", { title: file.name, dir: "auto" }, file.name || "Pasted photo"),
      this.answer,
    );
    this.image.addEventListener("load", () => this.draw());
    this.image.addEventListener("error", () => this.photo.classList.add("unreadable"));
    this.wait();
  }

  wait() {
    this.begin(true);
    this.answer.replaceChildren(element("p", { class: "quiet" }, "Classifying …"));
  }

  show({ views, predictions, decision, decision_reason: reason, set }) {
    this.begin(false);
    this.best = predictions[0];
    this.views = views;
    const lines = [
      decision && decisionLine(decision, reason),
      element("ol", { class: "predictions" }, ...predictions.map(predictionItem)),
      set && setLine(set),
      element("p", { class: "quiet" }, viewNames(views)),
    ];
    this.answer.replaceChildren(...lines.filter(Boolean));
    this.draw();
  }

  fail(detail) {
    this.begin(false);
    this.failed = true;
    const retry = element("button", { type: "button" }, "Try again");
    retry.addEventListener("click", () => {
      this.node.tabIndex = -1;
      this.node.focus();
      this.node.dispatchEvent(new CustomEvent("retry", { bubbles: true, detail: this }));
    });
    this.answer.replaceChildren(element("p", { class: "problem" }, detail), retry);
  }

  forget() {
    URL.revokeObjectURL(this.url);
  }

  begin(busy) {
    this.busy = busy;
    this.failed = false;
    this.best = null;
    this.views = 0;
    this.node.setAttribute("aria-busy", String(busy));
    this.photo.querySelector(".views")?.remove();
  }

  draw() {
    const { naturalWidth: width, naturalHeight: height } = this.image;
    if (!width || !height) return;
    this.photo.style.setProperty("--ratio", String(width / height));
    this.photo.querySelector(".views")?.remove();
    const how = preprocessing();
    if (this.views && how) {
      this.photo.append(viewsDrawing(canvasSize(width, height, how), how.size, this.views));
    }
  }
}

function predictionItem({ label, group, count, confidence }) {
  const bar = drawn("svg", { class: `confidence ${group}`, "aria-hidden": "true" });
  bar.append(drawn("rect", { width: `${100 * confidence}%`, height: "100%" }));
  return element(
    "li",
    {},
    element("span", { class: "label", dir: "auto" }, label),
    element("span", { class: "value" }, percent(confidence)),
    bar,
    element("span", { class: "quiet" }, chip(group), ` ${many(count, "training photo")}`),
  );
}

function decisionLine(decision, reason) {
  const review = decision === "review";
  return element(
    "p",
    {},
    element("span", { class: `badge ${review ? "review" : "accept"}` }, decision),
    ` ${review ? "let a person look" : "sure enough to use"}: ${reason.text}`,
  );
}

function setLine(labels) {
  return element(
    "p",
    { class: "set" },
    element("span", {}, `Prediction set (${many(labels.length, "class", "classes")}): `),
    ...labels.flatMap((label, index) => [
      index ? ", " : null,
      element("span", { class: "label", dir: "auto" }, label),
    ]),
  );
}
