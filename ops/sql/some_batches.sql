-- Reads what these batches are sorted by, also those that nobody has registered: their time is that of
-- their first content. Only an open batch has a deadline.
SELECT w.batch_id COLLATE "C" AS batch_id, coalesce(t.status, 'not_registered') AS status,
       coalesce(t.registered_at, least(
           (SELECT min(received_at) FROM batch_pending_content p
            WHERE p.batch_id = w.batch_id AND p.kind = 'content'),
           (SELECT min(received_at) FROM batch_pending_content p
            WHERE p.batch_id = w.batch_id AND p.kind = 'failure')), 'infinity') AS registered_at,
       CASE WHEN t.status IN ('awaiting_content_validation', 'awaiting_student_validation')
            THEN t.deadline_at ELSE 'infinity' END AS deadline_at
FROM unnest(%(among)s::text[]) AS w (batch_id) LEFT JOIN batch_essay_trackers t USING (batch_id)
