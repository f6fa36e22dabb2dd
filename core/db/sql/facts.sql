-- Reads all counts and moments of one batch: its row, its slots by status, what waits, what is excess.
SELECT t.batch_id, t.status, t.class_id, t.on_deadline, t.expected_count AS slots,
       t.available_slots, t.registered_at, t.deadline_at,
       CASE WHEN isfinite(t.deadline_at) THEN t.deadline_at - now() END AS time_left,
       t.full_at, t.completed_at, t.ready_at,
       t.closed_at, t.closed_reason, e.open, e.assigned, e.failed, e.cancelled, e.last_arrival_at,
       coalesce(e.open_ids, '{}') AS open_ids,
       (SELECT count(*) FROM batch_pending_content p WHERE p.batch_id = t.batch_id) AS pending,
       (SELECT count(*) FROM excess_content x WHERE x.batch_id = t.batch_id) AS excess,
       (SELECT count(*) FROM event_outbox o WHERE o.batch_id = t.batch_id) AS events,
       (SELECT count(*) FROM event_outbox o
        WHERE o.batch_id = t.batch_id AND o.published_at IS NULL) AS undelivered
FROM batch_essay_trackers t, LATERAL (
    SELECT count(*) FILTER (WHERE current_status = 'awaiting_content') AS open,
           count(*) FILTER (WHERE current_status = 'ready_for_processing') AS assigned,
           count(*) FILTER (WHERE current_status = 'content_ingestion_failed') AS failed,
           count(*) FILTER (WHERE current_status = 'cancelled') AS cancelled,
           max(assigned_at) AS last_arrival_at,
           array_agg(essay_id) FILTER (WHERE current_status = 'awaiting_content') AS open_ids
    FROM essay_states WHERE batch_id = t.batch_id
) e
WHERE t.batch_id = %(batch_id)s
