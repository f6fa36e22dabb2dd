/** Sends messages to the service: to the disk first, then to the broker, in order. */

import { randomUUID } from "node:crypto";

import { AmqpOutlet } from "./amqp.js";
import { kind, type Broker, type Outlet } from "./broker.js";
import { complete, type Draft } from "./draft.js";
import type { Messages } from "./models.js";
import { RedisOutlet } from "./redis.js";
import { Spool } from "./spool.js";
import { backoff, pause } from "./waiting.js";

const AT_ONCE = 100; // messages
const BYTES_AT_ONCE = 1024 * 1024;

export interface SenderOptions extends Broker {
  /** A folder of this sender alone; what the broker does not have yet stays in it. */
  spool: string;
  /** How many bytes may wait in it, 1 GiB by default; then `send` throws `SpoolFull`. */
  spoolBytes?: number;
  /** The queue of the service, `els` by default. */
  queue?: string;
  /** Gets each error that passes: the sender tries again. */
  onTrouble?(error: unknown): void;
}

export class Sender {
  readonly #closing = new AbortController();
  readonly #pump: Promise<void>;
  #wake: () => void = () => undefined;
  #flushing: { n: number; resolve(): void }[] = [];

  private constructor(
    private readonly spool: Spool,
    private readonly outlet: Outlet,
    private readonly onTrouble: (error: unknown) => void,
  ) {
    this.#pump = this.#run();
  }

  /** Open the spool, and go on with what it holds. The broker need not be there. */
  static async open(options: SenderOptions): Promise<Sender> {
    const { queue = "els", onTrouble = warn } = options;
    const Outlet = { redis: RedisOutlet, amqp: AmqpOutlet }[kind(options.broker)];
    const spool = await Spool.open(options.spool, options.spoolBytes);
    return new Sender(spool, new Outlet(options, queue), onTrouble);
  }

  /**
   * Complete the event, and return it when it is on the disk: it will reach the service.
   *
   * Sending the same thing again gives the same `event_id`, which the service drops.
   */
  async send<T extends keyof Messages>(task: T, event: Draft<T>): Promise<Messages[T]> {
    if (this.#closing.signal.aborted) throw new Error("this sender is closed");
    const whole = complete(task, event);
    await this.spool.append({ id: randomUUID(), task, event: whole });
    this.#wake();
    return whole;
  }

  /** How many messages the broker does not have yet. */
  get waiting(): number {
    return this.spool.length;
  }

  /** Return when the broker has all that was sent before this call. */
  async flush(): Promise<void> {
    await this.spool.written();
    return new Promise((resolve) => {
      this.#flushing.push({ n: this.spool.last, resolve });
      this.#settle();
    });
  }

  /** Disconnect. What the broker does not have yet stays in the spool for the next `open`. */
  async close(): Promise<void> {
    this.#closing.abort();
    this.#wake();
    await this.#pump;
    await this.outlet.close();
    await this.spool.close();
  }

  async #run(): Promise<void> {
    for (let failed = 0; !this.#closing.signal.aborted; ) {
      const waked = new Promise<void>((resolve) => (this.#wake = resolve));
      try {
        const next = await this.spool.head(AT_ONCE, BYTES_AT_ONCE);
        if (next.length === 0) {
          await waked;
          continue;
        }
        await this.outlet.publish(next.map(({ call }) => call));
        await this.spool.markDone(next.at(-1)!.n);
        failed = 0;
        this.#settle();
      } catch (error) {
        this.onTrouble(error);
        await pause(backoff(failed++), this.#closing.signal);
      }
    }
  }

  #settle(): void {
    const first = this.spool.first ?? Infinity;
    const over = this.#flushing.filter(({ n }) => n < first);
    this.#flushing = this.#flushing.filter(({ n }) => n >= first);
    for (const { resolve } of over) resolve();
  }
}

function warn(error: unknown): void {
  console.warn(`els: not sent yet: ${error instanceof Error ? error.message : error}`);
}
