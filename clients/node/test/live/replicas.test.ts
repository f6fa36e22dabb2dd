/** A sender that waits for a replica: of ELS_TEST_PRIMARY, at ELS_TEST_REPLICA. */

import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";

import { Redis } from "ioredis";

import { Sender } from "../../src/index.js";

const broker = process.env["ELS_TEST_PRIMARY"] ?? "";
const skip = broker === "" && "ELS_TEST_PRIMARY names no broker";

test("a message counts as sent once the replica has it, and is there once", { skip }, async (context) => {
  const [primary, replica] = [new Redis(broker), new Redis(process.env["ELS_TEST_REPLICA"]!)];
  const { hostname, port, password } = new URL(broker);
  const spool = mkdtempSync(join(tmpdir(), "spool-"));
  const troubles: string[] = [];
  const onTrouble = (error: unknown) => troubles.push(String(error));
  const sender = await Sender.open({ broker, spool, replicas: 1, onTrouble });
  context.after(async () => {
    await sender.close();
    primary.disconnect();
    replica.disconnect();
    rmSync(spool, { recursive: true, force: true });
  });
  const cancel = (batch: number) =>
    sender.send("els.cancel_batch", { batch_id: `batch-${batch}`, reason: "asked" });
  await Promise.all([cancel(1), cancel(2)]);
  const deadline = Date.now() + 20_000;
  while (troubles.length < 2 && Date.now() < deadline) await delay(10);
  await cancel(3);

  assert.match(troubles[1]!, /0 of 1 replicas/);
  assert.equal(sender.waiting, 3);
  await replica.config("SET", "masterauth", decodeURIComponent(password));
  await replica.replicaof(hostname, port);
  await sender.flush();

  assert.equal(await primary.llen("els"), 3);
  assert.equal(await replica.llen("els"), 3);
});
