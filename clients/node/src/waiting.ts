/** Waiting that ends early when somebody says so. */

import { setTimeout as delay } from "node:timers/promises";

export const LONGEST_PAUSE_MS = 5_000;

/** Wait; less if the signal comes. */
export async function pause(ms: number, signal: AbortSignal): Promise<void> {
  try {
    await delay(ms, undefined, { signal });
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}

/** Milliseconds before try number `attempt + 1`: doubling, half of it by chance. */
export function backoff(attempt: number, longest_ms = LONGEST_PAUSE_MS): number {
  const most = Math.min(100 * 2 ** Math.min(attempt, 20), longest_ms);
  return most / 2 + (Math.random() * most) / 2;
}

/** Raise an error unless the promise settles in time. The promise itself goes on. */
export async function within<T>(ms: number, what: string, promise: Promise<T>): Promise<T> {
  const over = new AbortController();
  const late = delay(ms, undefined, { signal: over.signal }).then(() => {
    throw new Error(`${what}: no answer within ${ms / 1000} s`);
  });
  late.catch(() => undefined); // cancelled below
  try {
    return await Promise.race([promise, late]);
  } finally {
    over.abort();
  }
}
