// Numbers, counts and times as people read them.

const LOCALE = "en";
const whole = new Intl.NumberFormat(LOCALE, { maximumFractionDigits: 0 });
const one = new Intl.NumberFormat(LOCALE, { maximumFractionDigits: 1 });
const time = new Intl.DateTimeFormat(LOCALE, { timeStyle: "medium", hourCycle: "h23" });
const moment = new Intl.DateTimeFormat(LOCALE, {
  dateStyle: "medium",
  timeStyle: "short",
  hourCycle: "h23",
});

const NONE = "–";
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

export const count = (value) => (isNumber(value) ? whole.format(value) : NONE);

/** An expected count, which need not be whole. */
export const expected = (value) => (isNumber(value) ? one.format(value) : NONE);

/** A share between 0 and 1 as a percentage. */
export function percent(share) {
  if (!isNumber(share)) return NONE;
  if (share > 0 && share < 0.0005) return "< 0.1 %";
  if (share < 1 && share > 0.9995) return "> 99.9 %";
  return `${one.format(100 * share)} %`;
}

/** How many times as often. */
export function times(ratio) {
  if (!isNumber(ratio)) return NONE;
  return `${ratio.toFixed(ratio < 10 ? 2 : 0)} ×`;
}

export function many(number, thing, things = `${thing}s`) {
  return `${count(number)} ${number === 1 ? thing : things}`;
}

export const clock = (date) => time.format(date);

/** An ISO time, with its date unless that is today. */
export function when(iso) {
  if (!iso) return "never";
  const date = new Date(iso);
  const today = date.toDateString() === new Date().toDateString();
  return (today ? time : moment).format(date);
}

export function duration(seconds) {
  for (const [name, length] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    if (seconds >= length) return many(Math.round(seconds / length), name);
  }
  return many(Math.round(seconds), "second");
}
