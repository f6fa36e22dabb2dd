-- Locks a batch after its deadline, and reads what to do with it. No row: it is not due.
--
-- The sweep announces a full batch instead. But wrong slots (missing, extra or cancelled) can never
-- be sealed, so such a batch fails.
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
