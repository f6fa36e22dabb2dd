/** Receives the events of a queue, and loses none. */

import { AmqpInlet } from "./amqp.js";
import { kind, type Broker, type Held, type Inlet } from "./broker.js";
import type { ReceivedEvent } from "./events.js";
import type { Received } from "./message.js";
import { RedisInlet } from "./redis.js";
import { backoff, pause } from "./waiting.js";

const LONGEST_PAUSE_MS = 30_000; // between two tries of an event that its handler refuses

/** How an event came. */
export interface Delivery {
  /** The task that the route of the event names. */
  task: string;
  /** 1 at the first try; an event that the handler refused comes again. */
  attempt: number;
}

export interface ReceiverOptions extends Broker {
  /** A queue of this receiver alone, which `ELS_EVENT_ROUTES` of the service names. */
  queue: string;
  /**
   * Do your work with an event. When the promise resolves, the event is done. When it rejects, the
   * event stays, and comes again after a while.
   *
   * The same event may come twice: keep its `id` in the transaction of your own work (`once`).
   */
  handler(event: ReceivedEvent, delivery: Delivery): Promise<void>;
  /** How many events the handler gets at a time; 1 by default. Others come in any order. */
  concurrency?: number;
  /** Keep a message that holds no event; then it is done. Without this function it stays. */
  onMalformed?(error: unknown): Promise<void>;
  /** Gets each error that passes: of the broker, and of the handler. */
  onTrouble?(error: unknown): void;
  /** On Redis: seconds until the events of a dead receiver come back; 60 by default. */
  visibilityTimeoutS?: number;
  /** On Redis: milliseconds between two looks into an empty queue; 100 by default. */
  pollMs?: number;
}

export class Receiver {
  readonly #closing = new AbortController();
  readonly #running = new Set<Promise<void>>();
  readonly #inlet: Inlet;
  readonly #options: ReceiverOptions;
  readonly #onTrouble: (error: unknown) => void;

  /** Begin to receive. The broker need not be there. */
  constructor(options: ReceiverOptions) {
    this.#options = options;
    this.#onTrouble = options.onTrouble ?? warn;
    const Inlet = { redis: RedisInlet, amqp: AmqpInlet }[kind(options.broker)];
    this.#inlet = new Inlet(options, {
      queue: options.queue,
      concurrency: options.concurrency ?? 1,
      visibilityTimeoutS: options.visibilityTimeoutS ?? 60,
      pollMs: options.pollMs ?? 100,
      onMessage: (held) => this.#begin(held),
      onTrouble: this.#onTrouble,
    });
  }

  /** Let the handler finish what it has begun, give back the rest, and disconnect. */
  async close(): Promise<void> {
    this.#closing.abort();
    await this.#inlet.stop();
    await Promise.all(this.#running);
    await this.#inlet.close();
  }

  #begin(held: Held): void {
    if (this.#closing.signal.aborted) return; // `close` gives it back
    const running = this.#handle(held);
    this.#running.add(running);
    void running.finally(() => this.#running.delete(running));
  }

  /** Hand the event to the handler until that takes it, or until somebody else may have it. */
  async #handle(held: Held): Promise<void> {
    const over = AbortSignal.any([held.lost, this.#closing.signal]);
    for (let attempt = 1; !over.aborted; attempt++) {
      try {
        await this.#hand(held, attempt);
        return await held.acknowledge();
      } catch (error) {
        this.#onTrouble(error);
        await pause(backoff(attempt, LONGEST_PAUSE_MS), over);
      }
    }
  }

  async #hand(held: Held, attempt: number): Promise<void> {
    let message: Received;
    try {
      message = held.open();
    } catch (error) {
      if (!this.#options.onMalformed) throw error;
      return this.#options.onMalformed(error);
    }
    // Of another type than the kit's at most: the service writes no event without its envelope.
    const event = message.event as unknown as ReceivedEvent;
    await this.#options.handler(event, { task: message.task, attempt });
  }
}

function warn(error: unknown): void {
  console.warn(`els: it comes again: ${error instanceof Error ? error.message : error}`);
}
