-- Locks a batch whose deadline has passed, and tells what it wants. No row: it is not due.
--
-- A full batch is announced instead, unless its slots are wrong (one is gone, one too many or
-- cancelled): it can never be sealed, so it fails, whatever it wanted.
SELECT CASE WHEN t.status = 'awaiting_content_validation' AND NOT s.intact THEN 'fail'
            ELSE t.on_deadline END AS on_deadline,
       extract(epoch FROM now() - least(greatest(t.registered_at, '0001-01-01Z'), now()))::float8
           AS waited_s
FROM batch_essay_trackers t, LATERAL (
    SELECT count(*) FILTER (WHERE e.current_status <> 'cancelled') = t.expected_count
           AND count(*) = t.expected_count AS intact
    FROM essay_states e WHERE e.batch_id = t.batch_id
) s
WHERE t.batch_id = %(batch_id)s AND t.deadline_at <= now()
  AND (t.status = 'awaiting_student_validation'
       OR t.status = 'awaiting_content_validation' AND (t.full_at IS NULL OR NOT s.intact))
FOR UPDATE OF t
