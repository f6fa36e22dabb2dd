/**
 * Redis as the broker, with Kombu's keys: Celery's senders and workers may use the same queues.
 *
 * A receiver moves a message from its list into `<queue>.unacked` in one script, renews it there
 * while it works, and deletes it when it is done. A message that nobody has renewed for the
 * visibility timeout was held by a dead process: any receiver of the queue puts it back.
 */

import { createHash, randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { Redis, type RedisOptions } from "ioredis";

import type { Broker, Inlet, Outlet, Taking } from "./broker.js";
import { forRedis, fromRedis, type Call } from "./message.js";
import { backoff, pause } from "./waiting.js";

const ANSWER_MS = 10_000; // of Redis, before the connection counts as dead
const REPLICATED_MS = 1_000; // for replicas to have a message; one that keeps up has it in 1 ms
const LAST_TRIES = 3; // to acknowledge, while the receiver closes
const OVERDUE_AT_ONCE = 100;
const PRIORITIES = ["", "\x06\x163", "\x06\x166", "\x06\x169"]; // of Kombu, the most urgent first

const LUA = ["take", "acknowledge", "renew", "overdue", "give_back"] as const;
type Lua = (typeof LUA)[number];

const scripts = Object.fromEntries(LUA.map((name) => [name, script(name)])) as Record<
  Lua,
  { text: string; sha: string }
>;

function script(name: Lua): { text: string; sha: string } {
  const text = readFileSync(new URL(`../../lua/${name}.lua`, import.meta.url), "utf8");
  return { text, sha: createHash("sha1").update(text).digest("hex") };
}

function connect({ broker, tls, redis = {} }: Broker): Redis {
  const own: RedisOptions = {
    protocol: 2,
    connectTimeout: ANSWER_MS,
    socketTimeout: ANSWER_MS,
    enableOfflineQueue: false, // an error at once: who calls tries again
    autoResendUnfulfilledCommands: false,
    maxRetriesPerRequest: 0,
    enableReadyCheck: false, // INFO, which a sender may not have
    disableClientInfo: true,
    retryStrategy: (attempt) => backoff(attempt, 1_000),
    ...(tls && { tls }),
    ...redis,
  };
  return redis.sentinels ? new Redis(own) : new Redis(broker, own);
}

/** Wait until there is a connection; its errors say why there is none. */
async function ready(redis: Redis): Promise<void> {
  if (redis.status === "ready") return;
  if (redis.status === "end") throw new Error("the connection to Redis is closed");
  await new Promise<void>((resolve, reject) => {
    const settle = (error?: Error) => {
      redis.off("ready", settle).off("error", settle).off("end", ended);
      if (error) reject(error);
      else resolve();
    };
    const ended = () => settle(new Error("the connection to Redis was closed"));
    redis.on("ready", settle).on("error", settle).on("end", ended);
  });
}

// --- sending -------------------------------------------------------------------------------------

export class RedisOutlet implements Outlet {
  readonly #redis: Redis;
  readonly #replicas: number;
  readonly #pushed = new Set<string>(); // on this connection, and not with all replicas yet

  constructor(
    broker: Broker,
    private readonly queue: string,
  ) {
    this.#redis = connect(broker);
    this.#replicas = broker.replicas ?? 0;
    this.#redis.on("error", () => undefined); // `publish` raises it
    this.#redis.on("close", () => this.#pushed.clear());
  }

  /** Push by one command, so that all of them are in the queue, in order, or none. */
  async publish(calls: readonly Call[]): Promise<void> {
    await ready(this.#redis);
    const next = calls.filter(({ id }) => !this.#pushed.has(id));
    if (next.length > 0) {
      await this.#redis.lpush(this.queue, ...next.map((call) => forRedis(call, this.queue)));
    }
    if (this.#replicas > 0) await this.#awaitReplicas(next);
  }

  /** Wait until the replicas have all that was pushed; if they do not, push none of it again. */
  async #awaitReplicas(next: readonly Call[]): Promise<void> {
    for (const { id } of next) this.#pushed.add(id);
    const count = await this.#redis.wait(this.#replicas, REPLICATED_MS);
    if (count < this.#replicas) {
      throw new Error(`${count} of ${this.#replicas} replicas of Redis have the message`);
    }
    this.#pushed.clear();
  }

  async close(): Promise<void> {
    this.#redis.disconnect();
  }
}

// --- receiving -----------------------------------------------------------------------------------

/** A message that this process holds. */
interface Taken {
  tag: string;
  payload: Buffer;
  gone: AbortController;
}

// [message, exchange, routing key]
const ENTRY = /^\[(.*), ?"(?:[^"\\]|\\.)*", ?("(?:[^"\\]|\\.)*")\]$/s;

/** Read an unacked entry, of ours or of Celery's; the message keeps its bytes. */
export function parseEntry(entry: Buffer): { payload: Buffer; queue: string } | undefined {
  const [, message, queue] = ENTRY.exec(entry.toString("latin1")) ?? [];
  if (message === undefined || queue === undefined) return undefined;
  const name = Buffer.from(queue, "latin1").toString("utf8");
  return { payload: Buffer.from(message, "latin1"), queue: JSON.parse(name) as string };
}

export class RedisInlet implements Inlet {
  readonly #redis: Redis;
  readonly #held = new Map<string, Taken>();
  readonly #stopping = new AbortController();
  readonly #closing = new AbortController();
  readonly #loops: Promise<void>[];
  #freed: () => void = () => undefined;

  constructor(
    broker: Broker,
    private readonly taking: Taking,
  ) {
    this.#redis = connect(broker);
    this.#redis.on("error", () => undefined); // `ready` raises it
    const everyMs = Math.min(taking.visibilityTimeoutS * 250, 5_000);
    this.#loops = [
      this.#repeat(this.#stopping.signal, () => this.#fetch()),
      this.#repeat(this.#closing.signal, () => this.#renew(everyMs)),
      this.#repeat(this.#stopping.signal, () => this.#restore(everyMs)),
    ];
  }

  async stop(): Promise<void> {
    this.#stopping.abort();
    this.#freed();
    await Promise.all([this.#loops[0], this.#loops[2]]);
  }

  async close(): Promise<void> {
    this.#closing.abort();
    await Promise.all(this.#loops);
    try {
      await Promise.all([...this.#held.values()].map((taken) => this.#giveBack(taken)));
    } catch (error) {
      this.taking.onTrouble(error); // they come back after the visibility timeout
    }
    this.#redis.disconnect();
  }

  /** Do it again and again; after an error, pause. */
  async #repeat(until: AbortSignal, act: () => Promise<void>): Promise<void> {
    for (let failed = 0; !until.aborted; ) {
      try {
        await ready(this.#redis);
        await act();
        failed = 0;
      } catch (error) {
        this.taking.onTrouble(error);
        await pause(backoff(failed++), until);
      }
    }
  }

  async #fetch(): Promise<void> {
    if (this.#held.size >= this.taking.concurrency) {
      await new Promise<void>((resolve) => {
        this.#freed = resolve;
      });
      return;
    }
    const tag = randomUUID();
    const lists = PRIORITIES.map((priority) => this.taking.queue + priority);
    const payload = await this.#run("take", lists, [tag, this.taking.queue]);
    if (payload === null) return pause(this.taking.pollMs, this.#stopping.signal);
    const taken = { tag, payload: payload as Buffer, gone: new AbortController() };
    this.#held.set(tag, taken);
    this.taking.onMessage({
      open: () => fromRedis(taken.payload),
      lost: taken.gone.signal,
      acknowledge: () => this.#acknowledge(taken),
    });
  }

  async #acknowledge(taken: Taken): Promise<void> {
    for (let failed = 0; !taken.gone.signal.aborted; ) {
      try {
        await ready(this.#redis);
        await this.#run("acknowledge", [], [taken.tag]);
        break;
      } catch (error) {
        if (this.#stopping.signal.aborted && failed >= LAST_TRIES) return; // it comes again
        this.taking.onTrouble(error);
        await pause(backoff(failed++), taken.gone.signal);
      }
    }
    this.#forget(taken.tag);
  }

  #forget(tag: string): void {
    this.#held.get(tag)?.gone.abort();
    this.#held.delete(tag);
    this.#freed();
  }

  async #renew(everyMs: number): Promise<void> {
    await pause(everyMs, this.#closing.signal);
    const tags = [...this.#held.keys()];
    if (tags.length === 0) return;
    for (const tag of (await this.#run("renew", [], tags)) as Buffer[]) this.#forget(String(tag));
  }

  /** Put back what dead processes held. */
  async #restore(everyMs: number): Promise<void> {
    await pause(everyMs, this.#stopping.signal);
    const ageS = this.taking.visibilityTimeoutS;
    const found = (await this.#run("overdue", [], [ageS, OVERDUE_AT_ONCE])) as Buffer[];
    for (let i = 0; i + 1 < found.length; i += 2) {
      const [tag, entry] = [found[i]!, found[i + 1]!];
      const parts = parseEntry(entry);
      if (parts) await this.#run("give_back", [parts.queue], [tag, entry, parts.payload, ageS]);
      else this.taking.onTrouble(new Error(`${this.taking.queue}.unacked: ${tag} is no entry`));
    }
  }

  async #giveBack({ tag, payload }: Taken): Promise<void> {
    await this.#run("give_back", [this.taking.queue], [tag, "", payload, 0]);
  }

  async #run(name: Lua, lists: string[], args: (string | number | Buffer)[]): Promise<unknown> {
    const { queue } = this.taking;
    const keys = [`${queue}.unacked`, `${queue}.unacked_index`, ...lists];
    const { sha, text } = scripts[name];
    try {
      return await this.#redis.callBuffer("EVALSHA", sha, keys.length, ...keys, ...args);
    } catch (error) {
      if (!(error instanceof Error && error.message.startsWith("NOSCRIPT"))) throw error;
      return await this.#redis.callBuffer("EVAL", text, keys.length, ...keys, ...args);
    }
  }
}
