-- Finds who holds events back from their readers: the transaction that was open before all others,
-- in whatever database of the server, if an event has waited for its end for a while.
WITH horizon AS (
    SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS xact_id
), waiting AS (
    SELECT count(*) AS events, min(created_at) AS since FROM event_outbox, horizon
    WHERE event_outbox.xact_id >= horizon.xact_id AND created_at < now() - %(patience)s
      AND (%(batch)s::text IS NULL OR batch_id = %(batch)s)
), holder AS (
    SELECT backend_xid AS xid, pid, NULL AS gid, datname AS database, application_name, state,
           xact_start AS began
    FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
    UNION ALL
    SELECT transaction, NULL, gid, database, NULL, NULL, prepared FROM pg_prepared_xacts
)
SELECT waiting.*, pid, gid, database, application_name, state, began
FROM waiting CROSS JOIN horizon
LEFT JOIN holder ON xid::text::bigint = horizon.xact_id %% 4294967296
WHERE events > 0
