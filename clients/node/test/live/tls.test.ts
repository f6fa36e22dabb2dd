/** Over TLS, to the broker that ELS_TEST_TLS_BROKER names, with the files in ELS_TEST_TLS_FOLDER. */

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { setTimeout as delay } from "node:timers/promises";

import { Receiver, Sender } from "../../src/index.js";

const broker = process.env["ELS_TEST_TLS_BROKER"] ?? "";
const folder = process.env["ELS_TEST_TLS_FOLDER"] ?? "";
const skip = broker === "" && "ELS_TEST_TLS_BROKER names no broker";
const read = (name: string) => readFileSync(join(folder, name));

async function open(context: TestContext, queue: string, troubles: string[], tls?: object) {
  const spool = mkdtempSync(join(tmpdir(), "spool-"));
  const onTrouble = (error: unknown) => troubles.push(String(error));
  const sender = await Sender.open({ broker, queue, spool, onTrouble, ...(tls && { tls }) });
  context.after(async () => {
    await sender.close();
    rmSync(spool, { recursive: true, force: true });
  });
  return sender;
}

test("with the files a message goes and comes", { skip }, async (context) => {
  const tls = { ca: read("ca.pem"), cert: read("server.pem"), key: read("server.key") };
  const queue = `node-${randomUUID()}`;
  const troubles: string[] = [];
  const sender = await open(context, queue, troubles, tls);
  await sender.send("els.cancel_batch", { batch_id: "batch-1", reason: "asked" });
  await sender.flush();

  const come = new Promise<void>((resolve) => {
    const onMalformed = async () => resolve(); // a message of a sender is no event
    const receiver = new Receiver({ broker, queue, tls, onMalformed, handler: async () => {} });
    context.after(() => receiver.close());
  });

  await come;
  assert.deepEqual(troubles, []);
});

test("a server that nobody vouches for is refused", { skip }, async (context) => {
  const troubles: string[] = [];
  const sender = await open(context, "els", troubles);

  await sender.send("els.cancel_batch", { batch_id: "batch-1", reason: "asked" });

  const deadline = Date.now() + 20_000;
  while (troubles.length === 0 && Date.now() < deadline) await delay(10);
  assert.match(troubles[0] ?? "", /self-signed certificate|unable to verify/);
  assert.equal(sender.waiting, 1);
});
