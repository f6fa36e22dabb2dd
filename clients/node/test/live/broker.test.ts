/** Sender and receiver on the broker that ELS_TEST_BROKER names; tests/clients/node runs this. */

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { setTimeout as delay } from "node:timers/promises";

import { connect } from "amqplib";
import { Redis } from "ioredis";

import { AmqpOutlet } from "../../src/amqp.js";
import { kind, type Outlet } from "../../src/broker.js";
import { Receiver, Sender, type Delivery, type ReceivedEvent } from "../../src/index.js";
import type { ReceiverOptions } from "../../src/receiver.js";
import { RedisOutlet } from "../../src/redis.js";

const broker = process.env["ELS_TEST_BROKER"] ?? "";
const skip = broker === "" && "ELS_TEST_BROKER names no broker";
const onRedis = !skip && kind(broker) === "redis";
const redisOnly = { skip: skip || (!onRedis && "of Redis") };
const amqpOnly = { skip: skip || (onRedis && "of RabbitMQ") };
const DEADLINE_MS = 20_000;

async function until(what: string, holds: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = Date.now() + DEADLINE_MS;
  while (!(await holds())) {
    assert.ok(Date.now() < deadline, `${DEADLINE_MS} ms passed before ${what}`);
    await delay(10);
  }
}

function event(type = "BatchCancelled"): { event_id: string; id: string } & Record<string, string> {
  return { event_id: "", id: randomUUID(), type, subject: "batch-1" };
}

/** A queue, and what puts events into it, as the relay of the service does. */
function aQueue(context: TestContext) {
  const queue = `node-${randomUUID()}`;
  const outlet: Outlet = onRedis
    ? new RedisOutlet({ broker }, queue)
    : new AmqpOutlet({ broker }, queue);
  context.after(() => outlet.close());
  const put = (events: ReturnType<typeof event>[]) =>
    outlet.publish(events.map((each) => ({ id: `${each.id}`, task: "els.event", event: each })));
  return { queue, put };
}

/** A receiver that notes what it gets. */
function receive(context: TestContext, queue: string, more: Partial<ReceiverOptions> = {}) {
  const got: { id: string; type: string; attempt: number }[] = [];
  const troubles: string[] = [];
  const receiver = new Receiver({
    broker,
    queue,
    visibilityTimeoutS: 1,
    pollMs: 10,
    onTrouble: (error) => troubles.push(String(error)),
    ...more,
    handler: async (each: ReceivedEvent, delivery: Delivery) => {
      got.push({ id: each.id, type: each.type, attempt: delivery.attempt });
      await more.handler?.(each, delivery);
    },
  });
  context.after(() => receiver.close());
  return { got, troubles, receiver };
}

test("events come in their order, one at a time", { skip }, async (context) => {
  const { queue, put } = aQueue(context);
  const events = Array.from({ length: 250 }, () => event());
  await put(events);

  const { got } = receive(context, queue);

  await until("all are received", () => got.length >= events.length);
  assert.deepEqual(
    got.map(({ id }) => id),
    events.map(({ id }) => id),
  );
});

test("a handler gets no more events at a time than it asks for", { skip }, async (context) => {
  const { queue, put } = aQueue(context);
  let running = 0;
  let most = 0;
  const handler = async () => {
    most = Math.max(most, ++running);
    await delay(5);
    running--;
  };
  await put(Array.from({ length: 60 }, () => event()));

  const { got } = receive(context, queue, { concurrency: 7, handler });

  await until("all are received", () => got.length === 60 && running === 0);
  assert.equal(most, 7);
});

test("an event of an unknown type is received", { skip }, async (context) => {
  const { queue, put } = aQueue(context);
  await put([event("BatchRenamed")]);

  const { got } = receive(context, queue);

  await until("it is received", () => got.length === 1);
  assert.equal(got[0]?.type, "BatchRenamed");
});

test("an event that the handler refuses comes again until it takes it", { skip }, async (context) => {
  const { queue, put } = aQueue(context);
  const [bad, good] = [event(), event()];
  await put([bad, good]);

  const { got, troubles } = receive(context, queue, {
    concurrency: 2,
    handler: async ({ id }, { attempt }) => {
      if (id === bad.id && attempt < 4) throw new Error("not now");
    },
  });

  await until("it is taken", () => got.some(({ attempt }) => attempt === 4));
  const tries = got.filter(({ id }) => id === bad.id).map(({ attempt }) => attempt);
  assert.deepEqual(tries, [1, 2, 3, 4]);
  assert.equal(troubles.filter((each) => each.includes("not now")).length, 3);
  assert.equal(got.filter(({ id }) => id === good.id).length, 1);
});

test("work that takes longer than the visibility timeout is done once", { skip }, async (context) => {
  const { queue, put } = aQueue(context);
  let done = 0;
  const handler = async () => {
    await delay(3_000);
    done++;
  };
  await put([event()]);

  const first = receive(context, queue, { handler });
  await until("it is begun", () => first.got.length === 1);
  const second = receive(context, queue, { handler });
  await until("it is done", () => done === 1);
  await first.receiver.close();

  await put([event()]);
  await until("the next one comes", () => second.got.length === 1);
  assert.notEqual(second.got[0]?.id, first.got[0]?.id);
});

test("a receiver that closes finishes what it has begun, and gives back the rest", { skip }, async (context) => {
  const { queue, put } = aQueue(context);
  const events = [event(), event(), event()];
  let end = () => {};
  const ended = new Promise<void>((resolve) => (end = resolve));
  await put(events);
  const handler = async ({ id }: ReceivedEvent) => {
    if (id === events[0]!.id) await ended;
    else throw new Error("not now");
  };
  const first = receive(context, queue, { concurrency: 3, handler, visibilityTimeoutS: 600 });
  await until("all are begun", () => new Set(first.got.map(({ id }) => id)).size === 3);

  const closing = first.receiver.close();
  end();
  await closing;
  const second = receive(context, queue);

  await until("the others are received", () => second.got.length === 2);
  await put([event()]);
  await until("one more is received", () => second.got.length === 3);
  assert.ok(second.got.every(({ id }) => id !== events[0]!.id));
});

test("a message that is no event stays until somebody keeps it", { skip }, async (context) => {
  const { queue, put } = aQueue(context);
  await put([{ event_id: "", id: 7 } as unknown as ReturnType<typeof event>, event()]);

  const first = receive(context, queue, { concurrency: 2 });
  await until("the event is received", () => first.got.length === 1);
  await until("the other one is tried", () => first.troubles.length > 1);
  assert.match(first.troubles[0]!, /NoEvent/);
  await first.receiver.close();
  const kept: unknown[] = [];
  receive(context, queue, { onMalformed: async (error) => void kept.push(error) });

  await until("it is kept", () => kept.length === 1);
});

test("a sender sends in order, and what it sends again has its id", { skip }, async (context) => {
  const { queue } = aQueue(context);
  const spool = mkdtempSync(join(tmpdir(), "spool-"));
  context.after(() => rmSync(spool, { recursive: true, force: true }));
  const sender = await Sender.open({ broker, queue, spool });
  const cancel = (batch: number) =>
    sender.send("els.cancel_batch", { batch_id: `batch-${batch}`, reason: "asked" });

  const sent = await Promise.all(Array.from({ length: 300 }, (_, batch) => cancel(batch)));
  const again = await cancel(0);
  const flushed = sender.flush();
  await flushed;
  assert.equal(sender.waiting, 0);
  await sender.close();

  assert.equal(again.event_id, sent[0]!.event_id);
  await assert.rejects(cancel(1), /closed/);
  const ids: string[] = [];
  const malformed: Partial<ReceiverOptions> = { onMalformed: async () => void ids.push("") };
  receive(context, queue, malformed); // the messages of a sender are no events
  await until("all are in the queue", () => ids.length === 301);
});

test("what Celery's worker held when it died is received", redisOnly, async (context) => {
  const { queue, put } = aQueue(context);
  const lost = event();
  const unindexed = event();
  await put([lost, unindexed]);
  const redis = new Redis(broker);
  context.after(() => redis.disconnect());
  for (const tag of ["tag", "unindexed"]) {
    const message = await redis.rpop(queue);
    await redis.hset(`${queue}.unacked`, tag, `[${message}, "${queue}", "${queue}"]`);
  }
  await redis.zadd(`${queue}.unacked_index`, Date.now() / 1000 - 60, "tag");
  await redis.hset(`${queue}.unacked`, "damaged", "no entry");
  await redis.zadd(`${queue}.unacked_index`, Date.now() / 1000 - 50, "damaged");

  const { got, troubles } = receive(context, queue);

  await until("both are received", () => got.length === 2);
  assert.deepEqual(got.map(({ id }) => id), [lost.id, unindexed.id]);
  await until("they are acknowledged", async () => (await redis.hlen(`${queue}.unacked`)) === 1);
  assert.equal(await redis.hget(`${queue}.unacked`, "damaged"), "no entry");
  await until("somebody hears of the other", () => troubles.some((each) => each.includes("damaged")));
});

test("events of every priority are received, the most urgent first", redisOnly, async (context) => {
  const { queue, put } = aQueue(context);
  const [low, high] = [event(), event()];
  await put([low]);
  const redis = new Redis(broker);
  context.after(() => redis.disconnect());
  await redis.rename(queue, `${queue}\x06\x169`);
  await put([high]);

  const { got } = receive(context, queue);

  await until("both are received", () => got.length === 2);
  assert.deepEqual(got.map(({ id }) => id), [high.id, low.id]);
});

test("a queue that was deleted is declared again", amqpOnly, async (context) => {
  const { queue, put } = aQueue(context);
  const { got, troubles } = receive(context, queue);
  await put([event()]);
  await until("the first is received", () => got.length === 1);
  const connection = await connect(broker);
  context.after(() => connection.close());
  const channel = await connection.createChannel();

  await channel.deleteQueue(queue);
  await until("the receiver hears of it", () => troubles.length === 1);
  await put([event()]);

  await until("the second is received", () => got.length === 2);
});

test("a queue that was declared otherwise is used unchanged", amqpOnly, async (context) => {
  const { queue, put } = aQueue(context);
  const connection = await connect(broker);
  context.after(() => connection.close());
  const channel = await connection.createChannel();
  await channel.assertQueue(queue, { durable: true });
  await channel.assertExchange(queue, "direct", { durable: true });
  await channel.bindQueue(queue, queue, queue);

  await put([event()]);
  const { got } = receive(context, queue);

  await until("it is received", () => got.length === 1);
});

test("connections that the server closes cost nothing", redisOnly, async (context) => {
  const { queue, put } = aQueue(context);
  const events = Array.from({ length: 400 }, () => event());
  const { got } = receive(context, queue, { concurrency: 4, handler: () => delay(2) });
  const redis = new Redis(broker);
  context.after(() => redis.disconnect());

  for (let i = 0; i < events.length; i += 20) {
    const part = events.slice(i, i + 20);
    await until("they are put", () => put(part).then(() => true, () => false));
    if (i % 100 === 0) await redis.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes");
  }

  const missing = () => events.filter(({ id }) => !got.some((each) => each.id === id));
  await until("all are received", () => missing().length === 0);
});
