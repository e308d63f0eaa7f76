// What k6 runs for benchmarks/k6.py: photos to one address, at a fixed rate or as fast as answered.
import { sleep } from "k6";
import exec from "k6/execution";
import http from "k6/http";
import { Counter, Trend } from "k6/metrics";

const plan = JSON.parse(open(__ENV.PLAN));
const photos = plan.photos.map((path) => open(path, "b"));
const answered = new Trend("answered_ms");
const counters = Object.fromEntries(
  ["in_time", "overloaded", "late", "failed"].map((name) => [name, new Counter(name)]),
);
const seconds = plan.settle + plan.seconds;

export const options = {
  discardResponseBodies: true,
  summaryTrendStats: ["count", "med", "p(99)", "max"],
  scenarios: {
    load: {
      ...(plan.rate
        ? {
            executor: "constant-arrival-rate",
            rate: Math.round(plan.rate * 60),
            timeUnit: "1m",
            preAllocatedVUs: plan.clients,
          }
        : { executor: "constant-vus", vus: plan.clients }),
      duration: `${seconds}s`,
      gracefulStop: `${plan.timeout}s`,
    },
  },
};

export default function () {
  const photo = photos[exec.scenario.iterationInTest % photos.length];
  const response = http.post(plan.url, photo, { headers: plan.headers, timeout: `${plan.timeout}s` });
  // Who sends one photo after the other does as a refusal says, and takes no time of the others.
  if (!plan.rate && response.status === 429) sleep(Number(response.headers["Retry-After"]) || 1);
  // Only what ends in the measured part counts: before it the queue fills, after it, it empties.
  const end = exec.instance.currentTestRunDuration / 1000;
  if (end < plan.settle || end > seconds) return;
  const { blocked, duration } = response.timings;
  const took = blocked + duration;
  if (response.status === 200) answered.add(took);
  if (response.status === 200 && took <= plan.deadline * 1000) counters.in_time.add(1);
  else if (response.status === 429) counters.overloaded.add(1);
  else if (response.status === 200 || response.status === 408) counters.late.add(1);
  else counters.failed.add(1);
}

export function handleSummary(data) {
  return { [plan.summary]: JSON.stringify(data.metrics) };
}
