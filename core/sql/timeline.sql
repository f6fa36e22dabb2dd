-- Tells what happened to a batch, in order; arrivals of a second are one line.
SELECT at, what FROM (
    SELECT registered_at AS at, 'registered with ' || expected_count || ' slots' AS what
    FROM batch_essay_trackers WHERE batch_id = %(batch_id)s
    UNION ALL
    SELECT completed_at, 'every slot accounted for and sealed' FROM batch_essay_trackers
    WHERE batch_id = %(batch_id)s AND completed_at IS NOT NULL
    UNION ALL
    SELECT ready_at, 'ready' FROM batch_essay_trackers
    WHERE batch_id = %(batch_id)s AND ready_at IS NOT NULL
    UNION ALL
    SELECT closed_at, status || ': ' || closed_reason FROM batch_essay_trackers
    WHERE batch_id = %(batch_id)s AND closed_at IS NOT NULL
    UNION ALL
    SELECT min(assigned_at), count(*) FILTER (WHERE text_storage_id IS NOT NULL)
           || ' contents assigned, ' || count(*) FILTER (WHERE validation_error_code IS NOT NULL)
           || ' files rejected'
    FROM essay_states WHERE batch_id = %(batch_id)s AND assigned_at IS NOT NULL
    GROUP BY date_trunc('second', assigned_at)
    UNION ALL
    SELECT min(received_at), count(*) || ' arrivals wait for the registration'
    FROM batch_pending_content WHERE batch_id = %(batch_id)s
    GROUP BY date_trunc('second', received_at)
    UNION ALL
    SELECT min(received_at), count(*) || ' arrivals without a slot: ' || reason
    FROM excess_content WHERE batch_id = %(batch_id)s
    GROUP BY date_trunc('second', received_at), reason
    UNION ALL
    SELECT repaired_at, 'mended by the sweep: ' || rule FROM repairs WHERE batch_id = %(batch_id)s
    UNION ALL
    SELECT min(created_at), 'event written: ' || type
           || CASE WHEN count(*) > 1 THEN ' × ' || count(*) ELSE '' END
    FROM event_outbox WHERE batch_id = %(batch_id)s GROUP BY type, date_trunc('second', created_at)
    UNION ALL
    SELECT min(published_at), 'event delivered: ' || type
           || CASE WHEN count(*) > 1 THEN ' × ' || count(*) ELSE '' END
    FROM event_outbox WHERE batch_id = %(batch_id)s AND published_at IS NOT NULL
    GROUP BY type, date_trunc('second', published_at)
    UNION ALL
    SELECT parked_at, 'dead letter ' || id || ': ' || task || ', ' || code
    FROM dead_letters WHERE batch_id = %(batch_id)s
    UNION ALL
    SELECT replayed_at, 'dead letter ' || id || ' replayed'
    FROM dead_letters WHERE batch_id = %(batch_id)s AND replayed_at IS NOT NULL
) happened
ORDER BY at, what LIMIT 1000
