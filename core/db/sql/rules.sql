-- What the sweep looks for. Each query returns batches that break a rule, the oldest first:
-- batch_id, since, detail. %(batch)s limits the look to one batch, NULL takes all. Each reads an
-- index that holds only what may break the rule, so healthy batches cost nothing; what waits is
-- looked up batch by batch (a scalar subquery is not made a join, which would read all batches).

-- rule: full_not_announced
SELECT batch_id, full_at AS since, NULL AS detail
FROM batch_essay_trackers
WHERE full_at IS NOT NULL AND completed_at IS NULL AND closed_at IS NULL
  AND (%(batch)s::text IS NULL OR batch_id = %(batch)s)
ORDER BY full_at LIMIT %(limit)s OFFSET %(offset)s;

-- rule: pending_though_registered
WITH waiting AS MATERIALIZED (
    SELECT batch_id, min(received_at) AS since, count(*) || ' waiting' AS detail
    FROM batch_pending_content
    WHERE %(batch)s::text IS NULL OR batch_id = %(batch)s
    GROUP BY batch_id
)
SELECT * FROM waiting w
WHERE (SELECT true FROM batch_essay_trackers t WHERE t.batch_id = w.batch_id)
ORDER BY since LIMIT %(limit)s OFFSET %(offset)s;

-- rule: deadline_passed
-- A full batch is announced by the rule before this one, unless its slots are wrong.
SELECT batch_id, deadline_at AS since, 'on_deadline ' || on_deadline AS detail
FROM batch_essay_trackers t
WHERE status IN ('awaiting_content_validation', 'awaiting_student_validation')
  AND deadline_at <= now()
  AND (full_at IS NULL OR status = 'awaiting_student_validation'
       OR completed_at IS NULL
          AND (SELECT count(*) FILTER (WHERE e.current_status <> 'cancelled') <> t.expected_count
                      OR count(*) <> t.expected_count
               FROM essay_states e WHERE e.batch_id = t.batch_id))
  AND (%(batch)s::text IS NULL OR batch_id = %(batch)s)
ORDER BY deadline_at LIMIT %(limit)s OFFSET %(offset)s;

-- rule: deadline_never
SELECT batch_id, registered_at AS since, 'deadline_at is ' || deadline_at AS detail
FROM batch_essay_trackers
WHERE status IN ('awaiting_content_validation', 'awaiting_student_validation')
  AND deadline_at > now() + %(furthest)s::interval
  AND (%(batch)s::text IS NULL OR batch_id = %(batch)s)
ORDER BY deadline_at LIMIT %(limit)s OFFSET %(offset)s;

-- rule: event_not_delivered
SELECT batch_id, min(created_at) AS since,
       count(*) || ' events; ' || coalesce(max(last_error), CASE WHEN max(attempts) > 0
           THEN 'to be delivered again' ELSE 'never tried' END) AS detail
FROM event_outbox
WHERE published_at IS NULL AND created_at < now() - %(grace)s::interval
  AND (%(batch)s::text IS NULL OR batch_id = %(batch)s)
GROUP BY batch_id ORDER BY since LIMIT %(limit)s OFFSET %(offset)s;

-- rule: dead_letter_waiting
SELECT batch_id, min(parked_at) AS since, string_agg(DISTINCT code, ', ') AS detail
FROM dead_letters
WHERE replayed_at IS NULL AND discarded_at IS NULL AND batch_id IS NOT NULL
  AND (%(batch)s::text IS NULL OR batch_id = %(batch)s)
GROUP BY batch_id ORDER BY since LIMIT %(limit)s OFFSET %(offset)s;

-- rule: pending_not_registered
WITH waiting AS MATERIALIZED (
    SELECT batch_id, min(received_at) AS since, count(*) || ' waiting' AS detail
    FROM batch_pending_content
    WHERE %(batch)s::text IS NULL OR batch_id = %(batch)s
    GROUP BY batch_id
)
SELECT * FROM waiting w
WHERE (%(batch)s::text IS NOT NULL OR since < now() - %(patience)s::interval)
  AND (SELECT true FROM batch_essay_trackers t WHERE t.batch_id = w.batch_id) IS NULL
ORDER BY since LIMIT %(limit)s OFFSET %(offset)s;
