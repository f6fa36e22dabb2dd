-- Lists what happened to a batch, in order, at most the newest 1000 lines. All submissions of a second
-- are one line; so are repairs and dead letters that follow each other and differ in nothing but their
-- time and number. One transaction has one time, so `rank` and `n` order what it did. `place` says where
-- the files of a line are.
WITH acted AS MATERIALIZED (
    SELECT * FROM operator_actions WHERE batch_id = %(batch_id)s
), happened AS (
    SELECT min(received_at) AS at, 0 AS rank, 0 AS n,
           'arrived before the registration: ' || count(*) AS what
    FROM batch_pending_content WHERE batch_id = %(batch_id)s
    GROUP BY date_trunc('second', received_at)
    UNION ALL
    SELECT registered_at, 1, 0, 'registered with ' || expected_count || ' slots'
    FROM batch_essay_trackers WHERE batch_id = %(batch_id)s
    UNION ALL
    SELECT min(assigned_at), 2, 0, 'contents assigned: '
           || count(*) FILTER (WHERE text_storage_id IS NOT NULL) || ', files rejected: '
           || count(*) FILTER (WHERE validation_error_code IS NOT NULL)
    FROM essay_states WHERE batch_id = %(batch_id)s AND assigned_at IS NOT NULL
    GROUP BY date_trunc('second', assigned_at)
    UNION ALL
    SELECT min(received_at), 3, 0, 'arrived without a slot: ' || count(*) || ', ' || reason
    FROM excess_content WHERE batch_id = %(batch_id)s
    GROUP BY date_trunc('second', received_at), reason
    UNION ALL
    SELECT created_at, 4, 0, 'amended by els.amend_batch'
    FROM idempotency_keys WHERE batch_id = %(batch_id)s AND task = 'els.amend_batch'
      AND created_at NOT IN (SELECT acted_at FROM acted WHERE action = 'amend')
    UNION ALL
    SELECT completed_at, 4, 0, 'every slot accounted for and sealed'
    FROM batch_essay_trackers WHERE batch_id = %(batch_id)s AND completed_at IS NOT NULL
    UNION ALL
    SELECT ready_at, 5, 0, 'ready'
    FROM batch_essay_trackers WHERE batch_id = %(batch_id)s AND ready_at IS NOT NULL
    UNION ALL
    SELECT closed_at, 5, 0, status || ': ' || closed_reason
    FROM batch_essay_trackers WHERE batch_id = %(batch_id)s AND closed_at IS NOT NULL
      AND closed_at NOT IN (SELECT acted_at FROM acted WHERE action = 'cancel')
    UNION ALL
    SELECT min(created_at), 6, min(sequence), 'event written: ' || type
           || CASE WHEN count(*) > 1 THEN ' × ' || count(*) ELSE '' END
    FROM event_outbox WHERE batch_id = %(batch_id)s
    GROUP BY type, date_trunc('second', created_at)
    UNION ALL
    SELECT min(first), 7, min(sequence), 'event delivered: ' || type
           || CASE WHEN count(*) > 1 THEN ' × ' || count(*) ELSE '' END
    FROM (SELECT *, coalesce(first_published_at, published_at) AS first FROM event_outbox) o
    WHERE batch_id = %(batch_id)s AND first IS NOT NULL
    GROUP BY type, date_trunc('second', first)
    UNION ALL
    SELECT min(published_at), 7, min(sequence), 'event delivered again: ' || type
           || CASE WHEN count(*) > 1 THEN ' × ' || count(*) ELSE '' END
    FROM event_outbox WHERE batch_id = %(batch_id)s AND published_at > first_published_at
    GROUP BY type, date_trunc('second', published_at)
    UNION ALL
    SELECT repaired_at, 8, id, 'mended by the sweep: ' || coalesce(%(titles)s::jsonb ->> rule, rule)
    FROM repairs WHERE batch_id = %(batch_id)s
    UNION ALL
    SELECT parked_at, 9, id, 'dead letter ' || id || ': ' || task || ', ' || code
    FROM dead_letters WHERE batch_id = %(batch_id)s
    UNION ALL
    SELECT replayed_at, 10, id, 'dead letter ' || id || ' replayed'
    FROM dead_letters WHERE batch_id = %(batch_id)s AND replayed_at IS NOT NULL
      AND replayed_at NOT IN (SELECT acted_at FROM acted WHERE action = 'replay')
    UNION ALL
    SELECT discarded_at, 10, id, 'dead letter ' || id || ' discarded'
    FROM dead_letters WHERE batch_id = %(batch_id)s AND discarded_at IS NOT NULL
      AND discarded_at NOT IN (SELECT acted_at FROM acted WHERE action = 'discard')
    UNION ALL
    SELECT acted_at, 10, min(id), CASE action
               WHEN 'cancel' THEN 'cancelled' WHEN 'amend' THEN 'amended'
               WHEN 'reconcile' THEN 'reconciled'
               WHEN 'replay' THEN min(target) || ' replayed'
               WHEN 'discard' THEN min(target) || ' discarded'
               WHEN 'republish' THEN 'events to be delivered again: '
                    || sum(coalesce((changes ->> 'events')::int, 0))
               ELSE action END
           || CASE WHEN action IN ('replay', 'discard') AND count(*) > 1
                   THEN ' and ' || count(*) - 1 || ' more' ELSE '' END
           || ' by ' || actor || coalesce(': ' || reason, '')
    FROM acted GROUP BY acted_at, action, actor, reason
), numbered AS (
    SELECT *, row_number() OVER (ORDER BY at, rank, n, what) AS number,
           CASE WHEN rank IN (8, 9) THEN regexp_replace(what, '^dead letter \d+', '') END AS alike
    FROM happened
), grouped AS (
    SELECT *, number - CASE WHEN alike IS NULL THEN 0
                       ELSE row_number() OVER (PARTITION BY alike ORDER BY number) END AS run
    FROM numbered
), lines AS (
    SELECT min(at) AS at, min(rank) AS rank, min(number) AS number,
           (array_agg(what ORDER BY number))[1] || CASE WHEN count(*) > 1
               THEN ', and ' || count(*) - 1 || ' more such, the last at '
                    || to_char(max(at) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC'
               ELSE '' END AS what
    FROM grouped GROUP BY alike, run ORDER BY number DESC LIMIT 1000
)
SELECT at, what, CASE rank WHEN 0 THEN 'pending' WHEN 2 THEN 'slot' WHEN 3 THEN 'excess' END AS place
FROM lines ORDER BY number
