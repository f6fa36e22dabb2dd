import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { kind, UnknownBroker } from "../src/broker.js";
import type { ReceivedEvent } from "../src/index.js";

const ROOT = new URL("../../", import.meta.url);
const path = (name: string) => fileURLToPath(new URL(name, ROOT));

test("the models are what the generator makes of the schemas", () => {
  const made = execFileSync(process.execPath, [path("scripts/models.mjs"), "--print"]);

  const hint = "run `npm run models` in clients/node";
  assert.equal(made.toString(), readFileSync(path("src/models.ts"), "utf8"), hint);
});

test("a type tells which event it is, and what is left is an unknown one", () => {
  const name = (event: ReceivedEvent): string => {
    switch (event.type) {
      case "BatchEssaysReady":
        return event.data.manifest_sha256; // compiles only where the compiler knows the event
      case "BatchCancelled":
        return event.data.reason;
      default:
        return typeof event.data["batch_id"];
    }
  };

  const renamed = { type: "BatchRenamed", data: { batch_id: "b" } } as unknown as ReceivedEvent;
  assert.equal(name(renamed), "string");
});

test("the package holds the kit, and neither tests nor sources", () => {
  const packed = execFileSync("npm", ["pack", "--dry-run", "--json"], { cwd: path(".") });

  const [{ files }] = JSON.parse(packed.toString()) as [{ files: { path: string }[] }];
  const names = files.map((file) => file.path);
  for (const due of ["dist/src/index.js", "dist/src/index.d.ts", "lua/take.lua", "README.md"]) {
    assert.ok(names.includes(due), due);
  }
  const known = /^(dist\/src\/|lua\/|README.md$|package.json$)/;
  assert.deepEqual(names.filter((name) => !known.test(name)), []);
});

test("the lock file names no registry", () => {
  const lock = JSON.parse(readFileSync(path("package-lock.json"), "utf8")) as {
    packages: Record<string, { resolved?: string; integrity?: string }>;
  };

  for (const [name, each] of Object.entries(lock.packages)) {
    assert.equal(each.resolved, undefined, name);
    assert.ok(name === "" || each.integrity, name);
  }
});

for (const [url, due] of [
  ["redis://h", "redis"],
  ["rediss://:p@h:6379/0", "redis"],
  ["amqp://h//", "amqp"],
  ["amqps://h", "amqp"],
] as const) {
  test(`${url} is ${due}`, () => assert.equal(kind(url), due));
}

for (const url of ["", "localhost", "http://h", "sentinel://h", "redis:/h"]) {
  test(`${url || "nothing"} is no broker`, () => assert.throws(() => kind(url), UnknownBroker));
}
