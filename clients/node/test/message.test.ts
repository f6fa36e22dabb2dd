import assert from "node:assert/strict";
import { test } from "node:test";

import { forRedis, fromRedis, headers, NoEvent, received } from "../src/message.js";
import { parseEntry } from "../src/redis.js";

const CALL = {
  id: "8b0c3a7e-6a4e-4c53-9c3a-0c9c1f1f2a11",
  task: "els.cancel_batch",
  event: { event_id: "1", id: "1", type: "T", reason: "åsa 😀" },
};

test("a message comes out of a Redis list as it went in", () => {
  const { task, event } = fromRedis(Buffer.from(forRedis(CALL, "els")));

  assert.deepEqual({ task, event }, { task: CALL.task, event: CALL.event });
});

test("what monitors show of a message is its id", () => {
  const { event: _, ...shown } = { ...headers(CALL), event: CALL.event };

  assert.ok(!JSON.stringify(shown).includes("åsa"));
});

const BAD: Record<string, Buffer> = {
  "no JSON": Buffer.from("{"),
  "no object": Buffer.from("7"),
  "no body": Buffer.from("{}"),
  "a body that is no JSON": Buffer.from(JSON.stringify({ body: "{" })),
  "no arguments": Buffer.from(JSON.stringify({ body: "{}" })),
  "no event": Buffer.from(JSON.stringify({ body: "[[], {}, {}]" })),
  "an event without an id": Buffer.from(JSON.stringify({ body: '[[], {"event": {}}, {}]' })),
  nothing: Buffer.from(""),
};

for (const [name, payload] of Object.entries(BAD)) {
  test(`a message with ${name} holds no event`, () => {
    assert.throws(() => fromRedis(payload), NoEvent);
  });
}

test("a message without headers has no task, and is an event all the same", () => {
  assert.deepEqual(received(undefined, '[[], {"event": {"id": "1", "type": "T"}}]'), {
    task: "",
    event: { id: "1", type: "T" },
  });
});

const ENTRIES: Record<string, string> = {
  "of Kombu's": '[{"body": "[1, \\"é\\", \\"b\\"]", "n": 1.0}, "els.events", "els.events"]',
  "of ours": '[{"body": "[1, \\"é\\", \\"b\\"]", "n": 1.0}, "", "els.events"]',
  "with no blanks": '[{"body": "[1, \\"é\\", \\"b\\"]", "n": 1.0},"","els.events"]',
};

for (const [name, entry] of Object.entries(ENTRIES)) {
  test(`an entry ${name} gives its message back to the byte`, () => {
    const parts = parseEntry(Buffer.from(entry));

    assert.equal(parts?.queue, "els.events");
    assert.equal(parts?.payload.toString(), '{"body": "[1, \\"é\\", \\"b\\"]", "n": 1.0}');
  });
}

test("what is no entry is not taken for one", () => {
  assert.equal(parseEntry(Buffer.from("{}")), undefined);
});
