/** What a caller writes of a message, and what the kit adds. */

import { randomUUID } from "node:crypto";

import { correlationId, eventId } from "./ids.js";
import type { JsonValue, Messages } from "./models.js";

/** Fields that the kit writes where the caller does not. */
type Added =
  | "event_id"
  | "correlation_id"
  | "timestamp"
  | "schema_version"
  | "expected_essay_count";

/** The event of a task, as a caller writes it. */
export type Draft<T extends keyof Messages> = Omit<Messages[T], Added> &
  Partial<Pick<Messages[T], Added & keyof Messages[T]>>;

/**
 * Add the common fields. The ids follow from the rest, so that the same draft again is a repeat.
 *
 * The same amendment later, after another one, is no repeat: it gets a new id.
 */
export function complete<T extends keyof Messages>(task: T, draft: Draft<T>): Messages[T] {
  const given = plain(draft);
  const ids = given["essay_ids"];
  const event: Record<string, JsonValue> = {
    schema_version: 1,
    ...(Array.isArray(ids) && { expected_essay_count: ids.length }),
    correlation_id: correlationId(String(given["batch_id"])),
    timestamp: new Date().toISOString(),
    ...given,
  };
  event["event_id"] ??= task === "els.amend_batch" ? randomUUID() : eventId(task, event);
  return event as unknown as Messages[T]; // complete now
}

/** What goes out: JSON, without fields that are null or undefined. Throws TypeError for no JSON. */
function plain(draft: object): Record<string, JsonValue> {
  const json = JSON.parse(JSON.stringify(draft, finite)) as Record<string, JsonValue>;
  return Object.fromEntries(Object.entries(json).filter(([, value]) => value !== null));
}

/** Refuse what JSON would write as null, and the service then take as absent. */
function finite(name: string, value: unknown): unknown {
  if (typeof value !== "number" || Number.isFinite(value)) return value;
  throw new TypeError(`${name}: ${value} is no number of JSON`);
}
