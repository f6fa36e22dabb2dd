import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { complete } from "../src/draft.js";
import { correlationId, eventId, manifestSha256 } from "../src/index.js";
import { uuid5 } from "../src/ids.js";

interface Vectors {
  event_ids: { case: string; task: string; event: object; event_id: string }[];
  correlation_ids: { batch_id: string; correlation_id: string }[];
}

const VECTORS = new URL("../../../../tests/clients/vectors.json", import.meta.url);
const vectors = JSON.parse(readFileSync(VECTORS, "utf8")) as Vectors;
const CONTENT = {
  batch_id: "batch-1",
  text_storage_id: "text-1",
  file_upload_id: "file-1",
  original_file_name: "a.txt",
  file_size_bytes: 1,
};

test("uuid5 is that of RFC 9562", () => {
  const dns = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";

  assert.equal(uuid5(dns, "www.example.com"), "2ed6657d-e927-568b-95e1-2665a8aea6a2");
});

for (const { case: name, task, event, event_id } of vectors.event_ids) {
  test(`an event id is that of the Python kit: ${name}`, () => {
    assert.equal(eventId(task, event), event_id);
  });
}

test("a correlation id is that of the Python kit", () => {
  for (const each of vectors.correlation_ids) {
    assert.equal(correlationId(each.batch_id), each.correlation_id);
  }
});

test("the same draft again is a repeat, and another one is not", () => {
  const first = complete("els.assign_content", CONTENT);
  const again = complete("els.assign_content", { ...CONTENT, content_md5_hash: null });
  const other = complete("els.assign_content", { ...CONTENT, text_storage_id: "text-2" });

  assert.equal(again.event_id, first.event_id);
  assert.equal(again.correlation_id, first.correlation_id);
  assert.notEqual(other.event_id, first.event_id);
});

test("the same amendment again is no repeat", () => {
  const amend = () => complete("els.amend_batch", { batch_id: "batch-1", deadline_s: 60 });

  assert.notEqual(amend().event_id, amend().event_id);
});

test("what the caller gives stays", () => {
  const given = {
    event_id: "b9f5a0d2-3f1a-4a58-8d53-1f6f6f0a1a01",
    correlation_id: "0d2f7c1e-58a4-4b0e-9a0b-6f1c2d3e4f50",
    timestamp: "2026-11-26T08:00:00Z",
    schema_version: 1,
    ...CONTENT,
  };

  assert.deepEqual(complete("els.assign_content", given), given);
});

test("a registration counts its essays", () => {
  const ids = { essay_ids: ["e-1", "e-2"], course_code: "ENG5", user_id: "teacher" };

  assert.equal(complete("els.register_batch", { batch_id: "b", ...ids }).expected_essay_count, 2);
});

test("the manifest is that of docs/events.md, in any order", () => {
  const essays = [
    { essay_id: "essay-1", text_storage_id: "texts/2026/batch-2026-11-7b/1.txt" },
    { essay_id: "essay-2", text_storage_id: "texts/2026/batch-2026-11-7b/2.txt" },
  ];
  const digest = "74d1c7dc12d8b5937afe344fe0ebaf22d6f3a7795195c4ad6fa63f87cbcbcdda";

  assert.equal(manifestSha256(essays), digest);
  assert.equal(manifestSha256(essays.toReversed()), digest);
});
