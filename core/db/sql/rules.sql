-- What the sweep looks for: batch_id, since and detail of the batches that break a rule. The check
-- of a rule chooses one batch, or the oldest findings.
--
-- Each query reads an index that holds only what may break the rule, so healthy batches cost
-- nothing. What waits is looked up batch by batch: Postgres makes no join of a scalar subquery, and
-- a join would read all batches.

-- rule: full_not_announced
SELECT batch_id, full_at AS since, NULL AS detail FROM batch_essay_trackers
WHERE full_at IS NOT NULL AND completed_at IS NULL AND closed_at IS NULL

-- rule: pending_though_registered
SELECT batch_id, min(received_at) AS since, count(*) || ' waiting' AS detail
FROM batch_pending_content p GROUP BY batch_id
HAVING (SELECT true FROM batch_essay_trackers t WHERE t.batch_id = p.batch_id)

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

-- rule: deadline_never
SELECT batch_id, registered_at AS since, 'deadline_at is ' || deadline_at AS detail
FROM batch_essay_trackers
WHERE status IN ('awaiting_content_validation', 'awaiting_student_validation')
  AND deadline_at > now() + %(furthest)s::interval

-- rule: event_not_delivered
SELECT batch_id, min(created_at) AS since,
       count(*) || ' events; ' || coalesce(max(last_error), CASE WHEN max(attempts) > 0
           THEN 'to be delivered again' ELSE 'never tried' END) AS detail
FROM event_outbox
WHERE published_at IS NULL AND created_at < now() - %(grace)s::interval AND batch_id IS NOT NULL
GROUP BY batch_id
