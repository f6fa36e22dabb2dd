import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { appendFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test, type TestContext } from "node:test";

import type { Call } from "../src/message.js";
import { Spool, SpoolError, SpoolFull } from "../src/spool.js";

const ALL = [1000, 1e9] as const;

function folder(context: TestContext): string {
  const made = mkdtempSync(join(tmpdir(), "spool-"));
  context.after(() => rmSync(made, { recursive: true, force: true }));
  return made;
}

async function opened(context: TestContext, at = folder(context)): Promise<Spool> {
  const spool = await Spool.open(at);
  context.after(() => spool.close().catch(() => undefined));
  return spool;
}

function call(id: string | number, text = "ä"): Call {
  return { id: `${id}`, task: "els.cancel_batch", event: { event_id: text } };
}

async function ids(spool: Spool, ...limits: [number, number]): Promise<string[]> {
  return (await spool.head(...limits)).map((each) => each.call.id);
}

test("what was appended comes in its order, also after it was opened again", async (context) => {
  const at = folder(context);
  const first = await Spool.open(at);
  await Promise.all([1, 2, 3].map((each) => first.append(call(each))));
  await first.append(call(4));
  await first.close();

  const again = await opened(context, at);

  assert.deepEqual(await ids(again, ...ALL), ["1", "2", "3", "4"]);
  assert.deepEqual((await again.head(1, 1e9))[0]?.call, call(1));
});

test("what is done does not come again", async (context) => {
  const at = folder(context);
  const first = await Spool.open(at);
  for (const each of [1, 2, 3]) await first.append(call(each));
  await first.markDone((await first.head(2, 1e9)).at(-1)!.n);
  assert.deepEqual(await ids(first, ...ALL), ["3"]);
  await first.close();

  assert.deepEqual(await ids(await opened(context, at), ...ALL), ["3"]);
});

test("a spool with nothing to send is an empty file, and goes on", async (context) => {
  const at = folder(context);
  const first = await Spool.open(at);
  await first.append(call(1));
  await first.markDone(first.last);
  assert.equal(statSync(join(at, "spool.jsonl")).size, 0);
  await first.append(call(2));
  await first.close();

  assert.deepEqual(await ids(await opened(context, at), ...ALL), ["2"]);
});

test("a full spool refuses, and takes more once something is done", async (context) => {
  const at = folder(context);
  const first = await Spool.open(at, 250);
  await first.append(call(1, "x".repeat(100)));
  await assert.rejects(first.append(call(2, "x".repeat(100))), SpoolFull);
  await first.close();

  const again = await Spool.open(at, 250);
  context.after(() => again.close());
  await assert.rejects(again.append(call(3, "x".repeat(100))), SpoolFull);
  await again.markDone(again.last);
  await again.append(call(4, "x".repeat(100)));

  assert.deepEqual(await ids(again, ...ALL), ["4"]);
});

test("a line that a dead process did not finish is cut off", async (context) => {
  const at = folder(context);
  const first = await Spool.open(at);
  await first.append(call(1));
  await first.close();
  appendFileSync(join(at, "spool.jsonl"), '{"n":2,"call":{"id":"2","tas');

  const again = await opened(context, at);
  await again.append(call(3));

  assert.deepEqual(await ids(again, ...ALL), ["1", "3"]);
});

test("a line that is no JSON is an error, and nothing is dropped", async (context) => {
  const at = folder(context);
  const damaged = '{"n":1,"call":{"id":"1"}}\n???\n';
  writeFileSync(join(at, "spool.jsonl"), damaged);

  await assert.rejects(Spool.open(at), SpoolError);
  assert.equal(readFileSync(join(at, "spool.jsonl"), "utf8"), damaged);
});

test("a head has as many bytes as asked for, and one call at least", async (context) => {
  const spool = await opened(context);
  for (const each of [1, 2, 3]) await spool.append(call(each, "x".repeat(1000)));

  assert.deepEqual(await ids(spool, 1000, 10), ["1"]);
  assert.deepEqual(await ids(spool, 1000, 2500), ["1", "2"]);
});

test("a long spool with little to send is rewritten", async (context) => {
  const at = folder(context);
  const first = await Spool.open(at);
  for (let each = 0; each < 36; each++) await first.append(call(each, "x".repeat(2 ** 19)));
  await first.append(call("last"));
  await first.markDone(36);
  assert.ok(statSync(join(at, "spool.jsonl")).size < 1000);
  await first.append(call("after"));
  assert.deepEqual(await ids(first, ...ALL), ["last", "after"]);
  await first.close();

  assert.deepEqual(await ids(await opened(context, at), ...ALL), ["last", "after"]);
});

test("a second sender is refused", async (context) => {
  const at = folder(context);
  await opened(context, at);

  await assert.rejects(Spool.open(at), /in use by process/);
});

test("the lock of a killed process holds nobody up", async (context) => {
  const at = folder(context);
  const spool = new URL("../src/spool.js", import.meta.url);
  const script = `const { Spool } = await import("${spool}");
    await Spool.open(process.argv[1]); console.log("open"); setInterval(() => {}, 1000);`;
  const options = ["--input-type=module", "-e", script, at];
  const child = spawn(process.execPath, options, { stdio: ["ignore", "pipe", "inherit"] });
  await once(child.stdout, "data");
  await assert.rejects(Spool.open(at), /in use by process/);

  child.kill("SIGKILL");
  await once(child, "exit");

  await opened(context, at);
});

test("a folder that is none is refused, with the next step", async (context) => {
  const at = folder(context);
  const file = join(at, "file");
  writeFileSync(file, "");

  for (const each of [file, join(file, "below")]) {
    await assert.rejects(Spool.open(each), (error: Error) => {
      assert.ok(error instanceof SpoolError);
      assert.match(error.message, /the spool .*file.*; give a folder on a local disk/);
      return true;
    });
  }
});

test("a file that is none leaves no lock behind", async (context) => {
  const at = folder(context);
  mkdirSync(join(at, "spool.jsonl"));
  await assert.rejects(Spool.open(at), SpoolError);
  rmSync(join(at, "spool.jsonl"), { recursive: true });

  await opened(context, at);
});
