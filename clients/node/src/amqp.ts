/**
 * RabbitMQ as the broker, with the declarations of the service: durable quorum queues.
 *
 * A message counts as sent when RabbitMQ has confirmed it, and as done when its acknowledgement is
 * written. RabbitMQ gives back by itself what a lost connection held.
 */

import { connect } from "amqplib";
import type { Channel, ChannelModel, ConfirmChannel, ConsumeMessage } from "amqplib";

import type { Broker, Held, Inlet, Outlet, Taking } from "./broker.js";
import { body, headers, received, type Call } from "./message.js";
import { backoff, pause, within } from "./waiting.js";

const ANSWER_MS = 10_000; // RabbitMQ sends no confirm while an alarm of memory or disk blocks it
const HEARTBEAT_S = 10; // two missed ones end a connection
const QUORUM = { durable: true, arguments: { "x-queue-type": "quorum" } };

async function open({ broker, tls }: Broker): Promise<ChannelModel> {
  const url = new URL(broker);
  if (!url.searchParams.has("heartbeat")) url.searchParams.set("heartbeat", `${HEARTBEAT_S}`);
  const connection = await connect(url.href, { noDelay: true, timeout: ANSWER_MS, ...tls });
  connection.on("error", () => undefined); // `close` follows
  return connection;
}

/** Resolve when the channel or its connection has ended. */
function ended(channel: Channel, connection: ChannelModel): Promise<Error> {
  return new Promise((resolve) => {
    channel.on("error", resolve);
    channel.on("close", () => resolve(new Error("RabbitMQ closed the channel")));
    connection.on("close", (error) => resolve(error ?? new Error("the connection was closed")));
  });
}

async function quietly(closing: Promise<unknown>): Promise<void> {
  await within(2_000, "RabbitMQ", closing).catch(() => undefined); // it is dead, or closed already
}

/** Do it on a channel of its own: a refusal closes that one alone. */
async function aside<T>(
  connection: ChannelModel,
  act: (channel: Channel) => Promise<T>,
): Promise<T> {
  const channel = await connection.createChannel();
  channel.on("error", () => undefined); // `act` raises it
  const done = await act(channel);
  await channel.close();
  return done;
}

function code(error: unknown): number | undefined {
  return (error as { code?: number }).code;
}

/** Declare the queue, if it is not there. One that somebody declared otherwise stays. */
async function ensureQueue(connection: ChannelModel, queue: string): Promise<void> {
  try {
    await aside(connection, (channel) => channel.checkQueue(queue));
  } catch (error) {
    if (code(error) !== 404) throw error;
    await aside(connection, (channel) => channel.assertQueue(queue, QUORUM));
  }
}

// --- sending -------------------------------------------------------------------------------------

export class AmqpOutlet implements Outlet {
  #connection: ChannelModel | undefined;
  #channel: ConfirmChannel | undefined;
  #returned: string | undefined;

  constructor(
    private readonly broker: Broker,
    private readonly queue: string,
  ) {}

  /** Publish to the exchange of the queue; declare both only where RabbitMQ has no such queue. */
  async publish(calls: readonly Call[]): Promise<void> {
    try {
      await this.#publish(calls);
    } catch (error) {
      const missing = this.#returned !== undefined || code(error) === 404;
      const connection = this.#connection;
      if (!missing || !connection) {
        await this.close();
        throw error;
      }
      this.#channel = undefined;
      await this.#declare(connection);
      await this.#publish(calls);
    }
  }

  async #publish(calls: readonly Call[]): Promise<void> {
    const channel = (this.#channel ??= await this.#open());
    let failed: Error | undefined;
    const onError = (error: Error) => (failed = error);
    channel.on("error", onError);
    this.#returned = undefined;
    try {
      for (const call of calls) {
        channel.publish(this.queue, this.queue, body(call), {
          headers: headers(call),
          contentType: "application/json",
          contentEncoding: "utf-8",
          correlationId: call.id,
          persistent: true,
          mandatory: true,
        });
      }
      await within(ANSWER_MS, "RabbitMQ confirms no message", channel.waitForConfirms());
    } catch (error) {
      throw failed ?? error;
    } finally {
      channel.off("error", onError);
    }
    if (this.#returned) throw new Error(`RabbitMQ has no queue ${this.queue}: ${this.#returned}`);
  }

  async #open(): Promise<ConfirmChannel> {
    this.#connection ??= await this.#connect();
    const channel = await this.#connection.createConfirmChannel();
    channel.on("error", () => undefined);
    channel.on("close", () => {
      if (this.#channel === channel) this.#channel = undefined;
    });
    channel.on("return", (message) => {
      this.#returned = (message.fields as { replyText?: string }).replyText ?? "unroutable";
    });
    return channel;
  }

  async #connect(): Promise<ChannelModel> {
    const connection = await open(this.broker);
    connection.on("close", () => {
      if (this.#connection === connection) this.#connection = this.#channel = undefined;
    });
    return connection;
  }

  async #declare(connection: ChannelModel): Promise<void> {
    await ensureQueue(connection, this.queue);
    await aside(connection, async (channel) => {
      await channel.assertExchange(this.queue, "topic", { durable: true });
      await channel.bindQueue(this.queue, this.queue, this.queue);
    });
  }

  async close(): Promise<void> {
    const connection = this.#connection;
    this.#connection = this.#channel = undefined;
    if (connection) await quietly(connection.close());
  }
}

// --- receiving -----------------------------------------------------------------------------------

export class AmqpInlet implements Inlet {
  readonly #stopping = new AbortController();
  readonly #loop: Promise<void>;
  #connection: ChannelModel | undefined;
  #cancel: () => Promise<unknown> = async () => undefined;

  constructor(
    private readonly broker: Broker,
    private readonly taking: Taking,
  ) {
    this.#loop = this.#run();
  }

  async stop(): Promise<void> {
    this.#stopping.abort();
    await quietly(this.#cancel());
  }

  async close(): Promise<void> {
    if (this.#connection) await quietly(this.#connection.close());
    await this.#loop;
  }

  async #run(): Promise<void> {
    for (let failed = 0; !this.#stopping.signal.aborted; ) {
      try {
        const { over } = await this.#consume();
        failed = 0;
        throw await over;
      } catch (error) {
        if (this.#stopping.signal.aborted) break;
        this.taking.onTrouble(error);
        await pause(backoff(failed++), this.#stopping.signal);
      } finally {
        await this.#disconnect();
      }
    }
  }

  async #disconnect(): Promise<void> {
    const connection = this.#connection;
    this.#connection = undefined;
    if (connection) await quietly(connection.close());
  }

  /** Begin to consume; `over` tells when that has ended, and why. */
  async #consume(): Promise<{ over: Promise<Error> }> {
    const connection = (this.#connection = await open(this.broker));
    this.#stopping.signal.throwIfAborted();
    const { queue, concurrency } = this.taking;
    await ensureQueue(connection, queue);
    const channel = await connection.createChannel();
    const lost = new AbortController();
    const over = ended(channel, connection);
    void over.then(() => lost.abort());
    await channel.prefetch(concurrency);
    let onCancel = () => {};
    const cancelled = new Promise<Error>((resolve) => {
      onCancel = () => resolve(new Error(`RabbitMQ has no queue ${queue} any more`));
    });
    const { consumerTag } = await channel.consume(queue, (message) => {
      if (message) this.taking.onMessage(hold(channel, message, lost.signal));
      else onCancel();
    });
    this.#cancel = async () => channel.cancel(consumerTag);
    return { over: Promise.race([over, cancelled]) };
  }
}

function hold(channel: Channel, message: ConsumeMessage, lost: AbortSignal): Held {
  return {
    open: () => received(message.properties.headers, message.content.toString("utf8")),
    lost,
    acknowledge: async () => {
      if (!lost.aborted) channel.ack(message);
    },
  };
}
