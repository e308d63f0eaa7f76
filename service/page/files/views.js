// The views on a photo, at the places that models/bundle/images.py computes.

import { drawn } from "./dom.js";

const NAMES = ["the centre", "top left", "bottom right", "top right", "bottom left"];
const ALL = NAMES.length;

let masks = 0;

/** Round to the nearest integer, halves to the even one, as Python does. */
function rounded(value) {
  const near = Math.round(value);
  return near - value === 0.5 && near % 2 ? near - 1 : near;
}

/** Return [width, height] of the canvas of a photo of `width` x `height`. */
export function canvasSize(width, height, { size, expand, resize_mode: mode }) {
  const short = size + expand;
  if (mode === "squash") return [short, short];
  const scale = short / Math.min(width, height);
  return [width, height].map((side) => Math.max(short, rounded(side * scale)));
}

/** Return [left, top] of the first `count` views: the centre, then the four corners. */
export function places([width, height], size, count) {
  const right = width - size;
  const bottom = height - size;
  const centre = [rounded(right / 2), rounded(bottom / 2)];
  return [centre, [0, 0], [right, bottom], [right, 0], [0, bottom]].slice(0, count);
}

export function viewNames(count) {
  if (count === ALL) return "5 views: the centre and the four corners";
  const names = NAMES.slice(0, count).join(", ");
  return count === 1 ? `1 view: ${names}` : `${count} views: ${names}`;
}

/** Return a drawing to lay over the photo: views framed, and what no view covers dimmed. */
export function viewsDrawing(canvas, size, count) {
  const [width, height] = canvas;
  const boxes = places(canvas, size, count).map(([x, y]) => ({ x, y, width: size, height: size }));
  const mask = `unseen-${(masks += 1)}`;
  const frames = boxes.map((box, index) =>
    drawn(
      "g",
      { class: index === 0 ? "view centre" : "view corner" },
      drawn("rect", { ...box, class: "halo" }),
      drawn("rect", { ...box, class: "frame" }),
    ),
  );
  return drawn(
    "svg",
    {
      class: "views",
      viewBox: `0 0 ${width} ${height}`,
      preserveAspectRatio: "none",
      "aria-hidden": "true",
    },
    drawn(
      "mask",
      { id: mask },
      drawn("rect", { width, height, fill: "white" }),
      ...boxes.map((box) => drawn("rect", { ...box, fill: "black" })),
    ),
    drawn("rect", { width, height, class: "dim", mask: `url(#${mask})` }),
    ...frames.reverse(),
  );
}
