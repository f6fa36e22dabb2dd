import assert from "node:assert/strict";
import { test } from "node:test";

import { UnknownBroker, kind } from "../src/broker.js";
import { complete } from "../src/draft.js";

for (const value of [NaN, Infinity]) {
  test(`a number that JSON does not have is refused: ${value}`, () => {
    const draft = { batch_id: "b", deadline_s: value };

    assert.throws(() => complete("els.amend_batch", draft), /deadline_s: \S+ is no number of JSON/);
  });
}

for (const url of ["redis://:sesame@h:99999", "amqp://u:sesame@h:no", "redis://:ses/a:me@h:1"]) {
  test(`a URL that cannot be read is refused without its password: ${url}`, () => {
    assert.throws(
      () => kind(url),
      (error: Error) => {
        assert.ok(error instanceof UnknownBroker);
        assert.match(error.message, /its port must be a number/);
        assert.ok(!JSON.stringify({ ...error, message: error.message }).includes("ses"));
        return true;
      },
    );
  });
}

test("the URLs of brokers are read", () => {
  assert.equal(kind("rediss://u:p%40@[::1]:6379/1"), "redis");
  assert.equal(kind("redis://"), "redis");
  assert.equal(kind("amqps://u:p@h:5671//"), "amqp");
});
