// A sender: each line of its input is a message, such as
//     {"task": "els.cancel_batch", "event": {"batch_id": "batch-1", "reason": "the teacher asked"}}
// and it writes the `event_id` of each once the message is on its disk.
//     BROKER_URL=redis://… SPOOL=./spool node sender.mjs < messages.jsonl

import { Sender } from "@els/client";
import { createInterface } from "node:readline";

const { BROKER_URL = "redis://127.0.0.1:6379", SPOOL = "spool", QUEUE = "els" } = process.env;
const sender = await Sender.open({ broker: BROKER_URL, spool: SPOOL, queue: QUEUE });

for await (const line of createInterface({ input: process.stdin })) {
  const { task, event } = JSON.parse(line);
  const sent = await sender.send(task, event);
  console.log(sent.event_id);
}
await sender.flush(); // wait until the broker has all of them, however long it is away
await sender.close();
