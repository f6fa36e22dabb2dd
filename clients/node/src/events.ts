/** The events that a receiver gets. */

import { createHash } from "node:crypto";

import type { CloudEvent, Essay, Events, JsonValue } from "./models.js";

/** An event of the service that this release of the kit knows; `type` says which. */
export type KnownEvent = Events[keyof Events];

/**
 * An event of a type that this release does not know: keep it, or pass it on.
 *
 * Its `type` is whatever the service wrote. For the compiler it has one value of its own, so that a
 * comparison with a known type tells which event it is, and what is left is this one.
 */
export interface UnknownEvent extends CloudEvent<"of a later release"> {
  data: Record<string, JsonValue>;
}

export type ReceivedEvent = KnownEvent | UnknownEvent;

/**
 * The digest of a list of essays, to compare with `manifest_sha256`: it is the same if no essay is
 * missing and none was changed.
 */
export function manifestSha256(
  essays: Iterable<Pick<Essay, "essay_id" | "text_storage_id">>,
): string {
  const lines = [...essays].map((each) => `${each.essay_id} ${each.text_storage_id}\n`);
  return createHash("sha256").update(lines.sort().join("")).digest("hex"); // all are ASCII
}
