// A receiver: it stores each event once, in the database of its own.
//     BROKER_URL=redis://… DATABASE_URL=postgresql://… QUEUE=pipeline node receiver.mjs

import { INBOX, Receiver, manifestSha256, once } from "@els/client";
import pg from "pg";

const { BROKER_URL = "redis://127.0.0.1:6379", DATABASE_URL, QUEUE = "els.events" } = process.env;
const pool = new pg.Pool({ connectionString: DATABASE_URL });
pool.on("error", (error) => console.warn(`database: ${error.message}`));
await pool.query(INBOX);
await pool.query("CREATE TABLE IF NOT EXISTS effects (event_id uuid, type text, event jsonb)");

const receiver = new Receiver({
  broker: BROKER_URL,
  queue: QUEUE,
  concurrency: 8,
  visibilityTimeoutS: Number(process.env.VISIBILITY_TIMEOUT_S ?? 60),
  handler: async (event) => {
    if (event.type === "BatchEssaysReady" && event.data.ready_essays) {
      const intact = manifestSha256(event.data.ready_essays) === event.data.manifest_sha256;
      if (!intact) throw new Error(`${event.subject}: the essays are not those of the manifest`);
    }
    await once(pool, event, (connection) =>
      connection.query("INSERT INTO effects VALUES ($1, $2, $3)", [event.id, event.type, event]),
    );
  },
});
console.log("receiving");

process.once("SIGTERM", async () => {
  await receiver.close();
  await pool.end();
});
