// Numbers, counts and times as people read them.

const LOCALE = "en";
const whole = new Intl.NumberFormat(LOCALE, { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat(LOCALE, {
  minimumFractionDigits: 1,
  maximumFractionDigits: 1,
});
const time = new Intl.DateTimeFormat(LOCALE, { timeStyle: "medium", hourCycle: "h23" });
const moment = new Intl.DateTimeFormat(LOCALE, {
  dateStyle: "medium",
  timeStyle: "short",
  hourCycle: "h23",
});

const NONE = "–";
const SPACE = "\u00a0";
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

export const count = (value) => (isNumber(value) ? whole.format(value) : NONE);

/** An expected count, which need not be whole. */
export const expected = (value) =>
  isNumber(value) ? (value < 100 ? tenths : whole).format(value) : NONE;

/** A share between 0 and 1 as a percentage. */
export function percent(share) {
  if (!isNumber(share)) return NONE;
  if (share > 0 && share < 0.0005) return `<${SPACE}0.1${SPACE}%`;
  if (share < 1 && share > 0.9995) return `>${SPACE}99.9${SPACE}%`;
  return `${(share % 1 ? tenths : whole).format(100 * share)}${SPACE}%`;
}

/** A share and an interval around it, in per cent. */
export function percentWithin(share, low, high) {
  return `${percent(share)} (${tenths.format(100 * low)} to ${tenths.format(100 * high)})`;
}

/** An estimate from labels; there is a text instead if the labels are too few. */
export const estimateText = (estimate) =>
  typeof estimate === "string" ? estimate : percentWithin(estimate.share, estimate.low, estimate.high);

/** A ratio, as how many times as often. */
export function times(ratio) {
  if (!isNumber(ratio)) return NONE;
  return `${ratio.toFixed(ratio < 10 ? 2 : 0)}${SPACE}×`;
}

export function many(number, thing, things = `${thing}s`) {
  return `${count(number)} ${number === 1 ? thing : things}`;
}

export const clock = (date) => time.format(date);

/** An ISO time; with its date unless it is today. Undefined if no time is known. */
export function when(iso) {
  if (iso === undefined) return NONE;
  if (!iso) return "never";
  const date = new Date(iso);
  const today = date.toDateString() === new Date().toDateString();
  return (today ? time : moment).format(date);
}

export function seen(iso) {
  if (iso === undefined) return "";
  return iso ? `last seen ${when(iso)}` : "never seen";
}

export function duration(seconds) {
  for (const [name, length] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    if (seconds >= length) return many(Math.round(seconds / length), name);
  }
  return many(Math.round(seconds), "second");
}
