// Questions to the service. A key is asked for when it wants one, and kept in this tab.

import { askForKey, storedKey } from "./key.js";

/** What went wrong, in the service's own words where it has any. */
export class Problem extends Error {
  constructor(detail, status = 0) {
    super(detail);
    this.status = status;
  }
}

/** The JSON at `path`; throws `Problem`, and what an aborted `signal` throws. */
export async function ask(path, options = {}) {
  for (;;) {
    const key = storedKey();
    const response = await send(path, options, key);
    if (response.ok) return response.json();
    const problem = await problemOf(response);
    if (response.status !== 401 || !(await askForKey(problem.message, key))) throw problem;
    options.signal?.throwIfAborted();
  }
}

async function send(path, options, key) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  try {
    return await fetch(path, { ...options, headers });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Problem(
      options.body
        ? "The photo could not be sent: the service cannot be reached, or the file cannot be read."
        : "The service cannot be reached.",
    );
  }
}

async function problemOf(response) {
  try {
    const { detail } = await response.json();
    if (typeof detail === "string" && detail) return new Problem(detail, response.status);
  } catch {
    // A proxy's answer, perhaps: its status has to do.
  }
  return new Problem(`The service answered with status ${response.status}.`, response.status);
}
