/**
 * Ids that are the same whenever the same thing is sent, so that a repeat is known by its id.
 *
 * The rule is that of `clients/python`; tests/clients/vectors.json has what both must give.
 */

import { createHash } from "node:crypto";

import type { JsonValue } from "./models.js";

/** An id by name, as RFC 9562 has it (version 5). */
export function uuid5(namespace: string, name: string): string {
  const hash = createHash("sha1")
    .update(Buffer.from(namespace.replaceAll("-", ""), "hex"))
    .update(name, "utf8")
    .digest()
    .subarray(0, 16);
  hash[6] = (hash[6]! & 0x0f) | 0x50;
  hash[8] = (hash[8]! & 0x3f) | 0x80;
  const hex = hash.toString("hex");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)]
    .join("-");
}

const NAMESPACE = "0b9f2c53-64b8-5d0e-8c55-3f0c6a4b7d21";
const NOT_COMPARED = new Set(["event_id", "timestamp"]);

/**
 * The id of a message: the same for the same task and body, else another one.
 *
 * The rule: `uuid5` of the task, a line break, and the canonical JSON of the body without
 * `event_id` and `timestamp`. The service compares the same fields, so an id never meets another
 * body.
 */
export function eventId(task: string, event: object): string {
  const body = Object.entries(event).filter(([name]) => !NOT_COMPARED.has(name));
  return uuid5(NAMESPACE, `${task}\n${canonical(Object.fromEntries(body))}`);
}

/** The correlation id of all messages of a batch, where the sender gives none. */
export function correlationId(batchId: string): string {
  return uuid5(NAMESPACE, `batch\n${batchId}`);
}

/** JSON with sorted keys and without spaces, as the service measures and compares it. */
export function canonical(value: unknown): string {
  return written(JSON.parse(JSON.stringify(value)) as JsonValue);
}

function written(value: JsonValue): string {
  if (Array.isArray(value)) return `[${value.map(written).join(",")}]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  const names = Object.keys(value).sort(byCodePoint);
  return `{${names.map((name) => `${JSON.stringify(name)}:${written(value[name]!)}`).join(",")}}`;
}

/** JavaScript compares halves of surrogate pairs, and Python code points: UTF-8 has their order. */
function byCodePoint(one: string, other: string): number {
  return Buffer.compare(Buffer.from(one), Buffer.from(other));
}
