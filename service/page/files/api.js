// Requests to the service. If it needs a key, the page asks for one and keeps it in this tab.

import { askForKey, storedKey } from "./key.js";

/** A failed request, with the message of the service if it sent one. */
export class Problem extends Error {
  constructor(detail, status = 0) {
    super(detail);
    this.status = status;
  }
}

const json = (response) => response.json();

/** Return what `read` makes of the answer; throws `Problem`, or the reason of an aborted `signal`. */
export async function ask(path, options = {}, read = json) {
  for (;;) {
    const key = storedKey();
    const response = await send(path, options, key);
    if (response.ok) return read(response);
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
      options.body instanceof Blob
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
    // Perhaps the answer of a proxy: only its status is known.
  }
  return new Problem(`The service answered with status ${response.status}.`, response.status);
}
