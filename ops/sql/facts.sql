-- Reads all counts and moments of one batch: its row, its slots by status, what waits, what is excess.
SELECT t.batch_id, t.status, t.class_id, t.on_deadline, t.expected_count AS slots,
       t.available_slots, t.registered_at, t.deadline_at,
       CASE WHEN isfinite(t.deadline_at) THEN t.deadline_at - now() END AS time_left,
       t.full_at, t.completed_at, t.ready_at,
       t.closed_at, t.closed_reason, e.open, e.assigned, e.failed, e.rejected, e.cancelled,
       e.last_arrival_at, coalesce(e.open_ids, '{}') AS open_ids,
       (SELECT string_agg(format('%%s × %%s', code, files), ', ' ORDER BY files DESC, code) FROM (
            SELECT validation_error_code AS code, count(*) AS files FROM essay_states r
            WHERE r.batch_id = t.batch_id AND r.validation_error_code IS NOT NULL
            GROUP BY 1
        ) codes) AS rejections,
       (SELECT count(*) FROM batch_pending_content p WHERE p.batch_id = t.batch_id) AS pending,
       (SELECT count(*) FROM excess_content x WHERE x.batch_id = t.batch_id) AS excess,
       t.event_sequence AS events_written, o.events, o.undelivered, o.undelivered_since,
       o.undelivered_error
FROM batch_essay_trackers t, LATERAL (
    SELECT count(*) FILTER (WHERE current_status = 'awaiting_content') AS open,
           count(*) FILTER (WHERE current_status = 'ready_for_processing') AS assigned,
           count(*) FILTER (WHERE current_status = 'content_ingestion_failed') AS failed,
           count(*) FILTER (WHERE validation_error_code IS NOT NULL) AS rejected,
           count(*) FILTER (WHERE current_status = 'cancelled') AS cancelled,
           max(assigned_at) AS last_arrival_at,
           array_agg(essay_id) FILTER (WHERE current_status = 'awaiting_content') AS open_ids
    FROM essay_states WHERE batch_id = t.batch_id
) e, LATERAL (
    SELECT count(*) AS events, count(*) FILTER (WHERE published_at IS NULL) AS undelivered,
           min(created_at) FILTER (WHERE published_at IS NULL) AS undelivered_since,
           min(last_error) FILTER (WHERE published_at IS NULL) AS undelivered_error
    FROM event_outbox WHERE batch_id = t.batch_id
) o
WHERE t.batch_id = %(batch_id)s
