// Deadlines for tests: an event within a time, or a state that comes within a time. Nothing here waits for a time
// to pass; every wait ends at what it waits for, or fails with words that say what did not come.

export const PATIENCE_MS = 20_000;
const POLL_MS = 20;

/** The promise's value, or a failure that names `what` when the deadline comes first. */
export async function within(promise, what, ms = PATIENCE_MS) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not within ${ms} ms: ${describe(what)}`)), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Asks `probe` again and again until it answers something true; gives that answer. `what` may be a function. */
export async function until(what, probe, ms = PATIENCE_MS) {
  const end = Date.now() + ms;
  for (;;) {
    const answer = await probe();
    if (answer) return answer;
    if (Date.now() > end) throw new Error(`not within ${ms} ms: ${describe(what)}`);
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

function describe(what) {
  return typeof what === 'function' ? what() : what;
}
