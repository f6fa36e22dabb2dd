-- Finds who holds up the service, or this batch: sessions and prepared transactions that have locked
-- a table, rows of the batch or its registration. A row's `xmax` names the transaction that has
-- locked or changed it. A prepared transaction has a gid instead of a pid.
WITH ours AS (
    SELECT to_regclass(name) AS relation, name FROM unnest(%(tables)s::text[]) AS t (name)
), prepared AS (
    SELECT l.virtualtransaction, p.gid, p.prepared AS since FROM pg_locks l
    JOIN pg_prepared_xacts p ON p.transaction = l.transactionid
    WHERE l.pid IS NULL AND l.locktype = 'transactionid' AND p.database = current_database()
), here AS (
    SELECT l.*, p.gid FROM pg_locks l
    LEFT JOIN prepared p ON l.pid IS NULL AND p.virtualtransaction = l.virtualtransaction
    WHERE l.database IS NULL OR l.database = 0
       OR l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
), held AS (
    SELECT l.pid, l.gid, 'table ' || o.name AS what FROM here l JOIN ours o USING (relation)
    WHERE l.granted
      AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
    UNION  -- whoever keeps another one from such a lock: all later ones wait behind that
    SELECT blocker, NULL, 'table ' || o.name FROM here l JOIN ours o USING (relation)
    CROSS JOIN LATERAL unnest(pg_blocking_pids(l.pid)) AS blocker
    WHERE NOT l.granted
      AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
    /* rows */
    UNION
    SELECT l.pid, l.gid, 'the registration of the batch' FROM here l
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
      AND (l.classid::bigint << 32) | (l.objid::bigint)
          = hashtextextended('register/' || %(batch)s, 0)
    UNION
    SELECT blocker, NULL, 'what a session of ours waits for' FROM pg_stat_activity w
    CROSS JOIN LATERAL unnest(pg_blocking_pids(w.pid)) AS blocker
    WHERE w.datname = current_database() AND w.wait_event_type = 'Lock'
      AND w.application_name LIKE 'els%%'
    UNION  -- the same, where no session has it: Postgres then says the pid 0
    SELECT NULL, h.gid, 'what a session of ours waits for' FROM here h
    JOIN here w ON NOT w.granted AND w.pid <> pg_backend_pid()
     AND (w.transactionid = h.transactionid OR w.relation = h.relation)
    JOIN pg_stat_activity a ON a.pid = w.pid AND a.application_name LIKE 'els%%'
    WHERE h.gid IS NOT NULL AND h.granted
)
SELECT h.pid, h.gid, array_agg(DISTINCT h.what ORDER BY h.what) AS what, a.application_name,
       a.state, coalesce(a.xact_start, p.since) AS since, a.state_change,
       (SELECT count(*) FROM pg_stat_activity w
        WHERE coalesce(h.pid, 0) = ANY(pg_blocking_pids(w.pid))) AS waiting
FROM held h LEFT JOIN pg_stat_activity a USING (pid)
LEFT JOIN prepared p ON p.gid = h.gid
WHERE (h.pid > 0 OR h.gid IS NOT NULL) AND h.pid IS DISTINCT FROM pg_backend_pid()
  AND a.wait_event IS DISTINCT FROM 'SyncRep'
  AND NOT (coalesce(a.application_name LIKE 'els%%', false) AND a.state = 'active')  -- at work
  AND coalesce(a.xact_start, p.since, '-infinity') < now() - %(patience)s
GROUP BY h.pid, h.gid, p.since, a.application_name, a.state, a.xact_start, a.state_change
ORDER BY cardinality(pg_blocking_pids(h.pid)) > 0 NULLS FIRST, since NULLS LAST, h.pid LIMIT 5
