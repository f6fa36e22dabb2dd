-- Reads the progress of these batches, in this order, also of those that nobody has registered.
--
-- It never reads all essays of a batch. A sealed batch has its counts in the tracker; of an open one
-- a small index counts the failures.
WITH wanted AS (
    SELECT batch_id, rank FROM unnest(%(batches)s::text[]) WITH ORDINALITY AS w (batch_id, rank)
)
SELECT w.batch_id, coalesce(t.status, 'not_registered') AS status,
       CASE WHEN t.batch_id IS NOT NULL AND t.class_id IS NULL THEN 'GUEST'
            WHEN t.batch_id IS NOT NULL THEN 'REGULAR' END AS class_type,
       t.course_code, t.course_language, t.user_id, t.org_id, t.class_id, t.correlation_id,
       t.on_deadline, t.closed_reason, t.manifest_sha256, t.expected_count AS slots, t.available_slots AS open,
       t.expected_count - t.available_slots - f.failed - c.unfilled AS assigned,
       f.failed, c.unfilled, p.pending, x.excess, o.undelivered,
       t.registered_at, t.deadline_at, t.completed_at, t.ready_at, t.closed_at,
       coalesce(t.registered_at, p.since) AS since
FROM wanted w
LEFT JOIN batch_essay_trackers t USING (batch_id)
LEFT JOIN LATERAL (
    SELECT CASE WHEN t.provisioned_count IS NOT NULL THEN t.expected_count - t.provisioned_count
           ELSE (SELECT count(*) FROM essay_states e
                 WHERE e.batch_id = t.batch_id AND e.validation_error_code IS NOT NULL) END AS failed
) f ON true
LEFT JOIN LATERAL (
    SELECT CASE WHEN t.closed_at IS NOT NULL AND t.provisioned_count IS NULL
           THEN t.expected_count - f.failed
                - (SELECT count(*) FROM essay_states e
                   WHERE e.batch_id = t.batch_id AND e.text_storage_id IS NOT NULL)
           ELSE 0 END AS unfilled
) c ON true
LEFT JOIN LATERAL (
    SELECT sum(n)::int AS pending, min(since) AS since FROM (
        SELECT count(*) AS n, min(received_at) AS since FROM batch_pending_content
        WHERE batch_id = w.batch_id AND kind = 'content'
        UNION ALL
        SELECT count(*), min(received_at) FROM batch_pending_content
        WHERE batch_id = w.batch_id AND kind = 'failure'
    ) kinds
) p ON true
LEFT JOIN LATERAL (
    SELECT (SELECT count(*) FROM excess_content
            WHERE batch_id = w.batch_id AND kind = 'content')
         + (SELECT count(*) FROM excess_content
            WHERE batch_id = w.batch_id AND kind = 'failure') AS excess
) x ON true
LEFT JOIN LATERAL (
    SELECT count(*) AS undelivered FROM event_outbox
    WHERE batch_id = w.batch_id AND published_at IS NULL
) o ON true
ORDER BY w.rank
