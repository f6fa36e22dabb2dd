-- Finds sessions whose locks the service, or this batch, waits for: on a table, on the batch's
-- rows, on its registration. A row's `xmax` names the transaction that has locked or changed it.
WITH ours AS (
    SELECT to_regclass(name) AS relation, name FROM unnest(%(tables)s::text[]) AS t (name)
), held AS (
    SELECT l.pid, 'table ' || o.name AS what FROM pg_locks l JOIN ours o USING (relation)
    WHERE l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
    UNION  -- whoever keeps another one from such a lock: all later ones wait behind that
    SELECT blocker, 'table ' || o.name FROM pg_locks l JOIN ours o USING (relation)
    CROSS JOIN LATERAL unnest(pg_blocking_pids(l.pid)) AS blocker
    WHERE NOT l.granted
      AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
    /* rows */
    UNION
    SELECT l.pid, 'the registration of the batch' FROM pg_locks l
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (l.classid::bigint << 32) | (l.objid::bigint)
          = hashtextextended('register/' || %(batch)s, 0)
    UNION
    SELECT blocker, 'what a session of ours waits for' FROM pg_stat_activity w
    CROSS JOIN LATERAL unnest(pg_blocking_pids(w.pid)) AS blocker
    WHERE w.datname = current_database() AND w.wait_event_type = 'Lock'
      AND w.application_name LIKE 'els%%'
)
SELECT h.pid, array_agg(DISTINCT h.what ORDER BY h.what) AS what, a.application_name, a.state,
       a.xact_start AS since, a.state_change,
       (SELECT count(*) FROM pg_stat_activity w WHERE h.pid = ANY(pg_blocking_pids(w.pid)))
       AS waiting
FROM held h LEFT JOIN pg_stat_activity a USING (pid)
WHERE h.pid <> pg_backend_pid() AND a.wait_event IS DISTINCT FROM 'SyncRep' AND (a.xact_start IS NULL OR a.xact_start < now() - %(patience)s)
GROUP BY h.pid, a.application_name, a.state, a.xact_start, a.state_change
ORDER BY cardinality(pg_blocking_pids(h.pid)) > 0, a.xact_start NULLS LAST, h.pid LIMIT 5
