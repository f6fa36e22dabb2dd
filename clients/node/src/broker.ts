/** What sender and receiver need of a broker, and which one a URL names. */

import type { RedisOptions } from "ioredis";
import type { ConnectionOptions } from "node:tls";

import type { Call, Received } from "./message.js";

/** How to reach the broker. */
export interface Broker {
  /** `redis://`, `rediss://`, `amqp://` or `amqps://`: as `els env` prints it. */
  broker: string;
  /** TLS of `rediss://` and `amqps://`: `ca`, `cert`, `key` and the others of Node. */
  tls?: ConnectionOptions;
  /** More options of ioredis, such as `sentinels` and `name`. */
  redis?: RedisOptions;
  /** On Redis, for a sender: how many replicas must have a message before it counts as sent. */
  replicas?: number;
}

/** Puts calls into a queue. */
export interface Outlet {
  /** Return when the broker has all of them for sure. After an error any of them may be there. */
  publish(calls: readonly Call[]): Promise<void>;
  close(): Promise<void>;
}

/** A message that this receiver holds. */
export interface Held {
  /** What it is. Throws NoEvent. */
  open(): Received;
  /** Says that the broker may give the message to somebody else: nobody need work on it here. */
  readonly lost: AbortSignal;
  /** Tell the broker that it is done. Tries until the broker knows, or has taken it back. */
  acknowledge(): Promise<void>;
}

/** What an inlet is for, and what it calls. */
export interface Taking {
  queue: string;
  /** Messages that it holds at a time. */
  concurrency: number;
  /** On Redis: seconds after which the messages of a dead process come back. */
  visibilityTimeoutS: number;
  /** On Redis: milliseconds between two looks into an empty queue. */
  pollMs: number;
  onMessage(held: Held): void;
  /** Gets each error that passes: the inlet tries again. */
  onTrouble(error: unknown): void;
}

/** Takes messages from a queue until it is closed. */
export interface Inlet {
  /** Stop taking: what is taken and not begun goes back. */
  stop(): Promise<void>;
  /** Give back what is not acknowledged, and disconnect. */
  close(): Promise<void>;
}

/** A URL that names no broker of the kit. */
export class UnknownBroker extends Error {
  override name = "UnknownBroker";
}

/** Tell which kind of broker a URL names. Throws UnknownBroker, which shows no password. */
export function kind(url: string): "redis" | "amqp" {
  const known = /^(redis|amqp)s?:\/\//.exec(url)?.[1] as "redis" | "amqp" | undefined;
  if (known && !URL.canParse(url)) {
    throw new UnknownBroker(
      "the URL of the broker cannot be read: its port must be a number up to 65535;" +
        " in a password write @ / : # ? % as %40 %2F %3A %23 %3F %25",
    );
  }
  if (known) return known;
  const scheme = url.split("://")[0];
  if (scheme === "sentinel") {
    throw new UnknownBroker(
      "give Sentinels as an option: broker: 'redis://', redis: { sentinels: […], name: '…' }",
    );
  }
  throw new UnknownBroker("a broker is redis://, rediss://, amqp:// or amqps://");
}
