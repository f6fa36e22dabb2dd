/** An inbox: the ids of events in your own database, so that a repeat has no second effect. */

/** A connection of `pg`, or one that has these two methods. */
export interface Connection {
  query(sql: string, values?: unknown[]): Promise<{ rowCount: number | null }>;
  release(error?: boolean): void;
}

export interface Pool<C extends Connection> {
  connect(): Promise<C>;
}

/** The table, for your migrations. Rows that are older than any redelivery may go. */
export const INBOX = `CREATE TABLE IF NOT EXISTS els_inbox (
  event_id uuid PRIMARY KEY,
  received_at timestamptz NOT NULL DEFAULT now()
)`;

/**
 * Do the work of an event in one transaction with its id; a repeat does nothing. Returns whether it
 * was done now. Use no other connection in `work`: only this one is undone together with the id.
 */
export async function once<C extends Connection>(
  pool: Pool<C>,
  event: { id: string },
  work: (connection: C) => Promise<unknown>,
): Promise<boolean> {
  const connection = await pool.connect();
  let broken = true;
  try {
    await connection.query("BEGIN");
    const insert = "INSERT INTO els_inbox (event_id) VALUES ($1) ON CONFLICT DO NOTHING";
    const isNew = (await connection.query(insert, [event.id])).rowCount === 1;
    if (isNew) await work(connection);
    await connection.query("COMMIT");
    broken = false;
    return isNew;
  } finally {
    connection.release(broken); // a connection that is thrown away is rolled back
  }
}
