-- Reads the progress of batches: the registered ones, and those that contents wait for. An infinite or
-- far moment counts as the first or last day that Python can hold, so that an age is a number.
WITH chosen AS (
    SELECT batch_id, registered_at FROM batch_essay_trackers
    WHERE (%(batch_id)s::text IS NULL OR batch_id = %(batch_id)s)
      AND (%(state)s::text IS NULL OR status = %(state)s)
      AND (%(user)s::text IS NULL OR user_id = %(user)s)
      AND (%(among)s::text[] IS NULL OR batch_id = ANY(%(among)s))
    ORDER BY registered_at DESC LIMIT %(limit)s
), registered AS (
    SELECT t.batch_id, t.status, t.class_id, t.expected_count, t.available_slots,
           (SELECT count(*) FROM essay_states e WHERE e.batch_id = t.batch_id
              AND e.current_status = 'ready_for_processing') AS assigned,
           (SELECT count(*) FROM essay_states e WHERE e.batch_id = t.batch_id
              AND e.current_status = 'content_ingestion_failed') AS failed,
           (SELECT count(*) FROM batch_pending_content p WHERE p.batch_id = t.batch_id) AS pending,
           (SELECT count(*) FROM excess_content x WHERE x.batch_id = t.batch_id) AS excess,
           t.registered_at, t.deadline_at, t.completed_at, t.ready_at,
           extract(epoch FROM now() - least(greatest(t.registered_at, '0001-01-01Z'), '9999-12-31Z'))::float8
               AS age_s
    FROM chosen c JOIN batch_essay_trackers t USING (batch_id)
), waiting AS (
    SELECT p.batch_id, min(p.received_at) AS since, count(*) AS pending
    FROM batch_pending_content p
    WHERE (%(batch_id)s::text IS NULL OR p.batch_id = %(batch_id)s)
      AND %(state)s::text IS NULL AND %(user)s::text IS NULL
      AND (%(among)s::text[] IS NULL OR p.batch_id = ANY(%(among)s))
      AND NOT EXISTS (SELECT FROM batch_essay_trackers t WHERE t.batch_id = p.batch_id)
    GROUP BY p.batch_id ORDER BY since DESC LIMIT %(limit)s
)
SELECT * FROM registered
UNION ALL
SELECT batch_id, 'not_registered', NULL, NULL, NULL, 0, 0, pending, 0, NULL, NULL, NULL, NULL,
       extract(epoch FROM now() - least(greatest(since, '0001-01-01Z'), '9999-12-31Z'))::float8
FROM waiting
ORDER BY age_s
