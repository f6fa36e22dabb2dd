/** An inbox: the ids of events in your own database, so that a repeat has no second effect. */

/** A connection of `pg`, or one that has these two methods. */
export interface Connection {
  query(sql: string, values?: unknown[]): Promise<{ rowCount: number | null }>;
  release(error?: boolean): void;
}

export interface Pool<C extends Connection> {
  connect(): Promise<C>;
}

/** What the table holds of an event. */
export interface Incoming {
  id: string;
  type: string;
  subject: string;
  sequence: number;
  data: object;
}

/** The table, for your migrations: that of the Python kit. Old rows may go after some days. */
export const INBOX = `
CREATE TABLE IF NOT EXISTS els_inbox (
  id VARCHAR(36) NOT NULL PRIMARY KEY, type VARCHAR(255) NOT NULL, batch_id VARCHAR(64) NOT NULL,
  sequence INTEGER, received_at VARCHAR(32) NOT NULL);
CREATE INDEX IF NOT EXISTS els_inbox_batch ON els_inbox (batch_id, sequence)`;

const INSERT = `INSERT INTO els_inbox (id, type, batch_id, sequence, received_at)
  VALUES ($1, $2, $3, $4, $5) ON CONFLICT (id) DO NOTHING`;

/**
 * Do the work of an event in one transaction with its id; a repeat does nothing. Returns whether
 * it was done now. Use no other connection in `work`: only this one is undone with the id.
 */
export async function once<C extends Connection>(
  pool: Pool<C>,
  event: Incoming,
  work: (connection: C) => Promise<unknown>,
): Promise<boolean> {
  const connection = await pool.connect();
  let broken = true;
  try {
    await connection.query("BEGIN");
    const isNew = (await connection.query(INSERT, row(event))).rowCount === 1;
    if (isNew) await work(connection);
    await connection.query("COMMIT");
    broken = false;
    return isNew;
  } finally {
    connection.release(broken); // a connection that is thrown away is rolled back
  }
}

/**
 * A refusal of a message without a registered batch has no place in the order of a batch: its
 * sequence is the number of its dead letter.
 */
function row({ id, type, subject, sequence, data }: Incoming): unknown[] {
  const letter = type === "MessageRefused" && (data as { dead_letter?: number }).dead_letter;
  const now = new Date().toISOString().replace("Z", "000+00:00"); // as Python writes it
  return [id, type, subject, sequence === letter ? null : sequence, now];
}
