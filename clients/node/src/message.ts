/** Celery's messages, protocol 2, as they are written to and read from a broker. */

import { randomUUID } from "node:crypto";

import type { JsonValue } from "./models.js";

/** A task to call. `id` is the message's own, and stays the same when it is sent again. */
export interface Call {
  id: string;
  task: string;
  event: { event_id: string };
}

/** What came: the event, and what carried it. */
export interface Received {
  task: string;
  event: Record<string, JsonValue>;
}

/** A message that holds no event; its text quotes nothing of the message. */
export class NoEvent extends Error {
  override name = "NoEvent";
}

const EMBED = { callbacks: null, errbacks: null, chain: null, chord: null };

export function headers({ id, task, event }: Call): Record<string, unknown> {
  return {
    lang: "js",
    task,
    id,
    root_id: id,
    parent_id: null,
    group: null,
    argsrepr: "()",
    kwargsrepr: `event_id=${event.event_id}`, // Flower shows it: ids, and nothing else
    ignore_result: true,
    retries: 0,
    timelimit: [null, null],
    expires: null,
    eta: null,
  };
}

export function body({ event }: Call): Buffer {
  return Buffer.from(JSON.stringify([[], { event }, EMBED]));
}

/** A message as Kombu's Redis transport puts it into a list. */
export function forRedis(call: Call, queue: string): string {
  return JSON.stringify({
    body: body(call).toString("base64"),
    "content-encoding": "utf-8",
    "content-type": "application/json",
    headers: headers(call),
    properties: {
      correlation_id: call.id,
      delivery_mode: 2,
      delivery_info: { exchange: "", routing_key: queue },
      priority: 0,
      body_encoding: "base64",
      delivery_tag: randomUUID(),
    },
  });
}

/** Read a message from a Redis list. Throws NoEvent. */
export function fromRedis(payload: Buffer): Received {
  const message = parsed(payload.toString("utf8"), "the message");
  if (!isObject(message) || typeof message["body"] !== "string") {
    throw new NoEvent("the message has no body");
  }
  const properties = message["properties"];
  const in64 = isObject(properties) && properties["body_encoding"] === "base64";
  const text = in64 ? Buffer.from(message["body"], "base64").toString("utf8") : message["body"];
  return received(message["headers"], text);
}

/** Read what RabbitMQ delivers. Throws NoEvent. */
export function received(given: unknown, text: string): Received {
  const call = parsed(text, "the body");
  const kwargs = Array.isArray(call) ? call[1] : undefined;
  const event = isObject(kwargs) ? kwargs["event"] : undefined;
  if (!isObject(event) || typeof event["id"] !== "string" || typeof event["type"] !== "string") {
    throw new NoEvent("the body has no keyword argument `event` with an id and a type");
  }
  const task = isObject(given) ? given["task"] : undefined;
  return { task: typeof task === "string" ? task : "", event };
}

function parsed(text: string, what: string): JsonValue {
  try {
    return JSON.parse(text) as JsonValue;
  } catch {
    throw new NoEvent(`${what} is no JSON`);
  }
}

function isObject(value: unknown): value is Record<string, JsonValue> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
