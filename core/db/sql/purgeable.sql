-- Lists batches that ended so many days ago and have nothing left to do; locks them, and skips those that
-- others hold. At least one, and no further one once they have so many slots together.
SELECT batch_id FROM (
    SELECT batch_id, sum(expected_count) OVER (ORDER BY batch_id) - expected_count AS before
    FROM (
        SELECT t.batch_id, t.expected_count FROM batch_essay_trackers t
        WHERE t.status NOT IN ('awaiting_content_validation', 'awaiting_student_validation')
          AND greatest(t.completed_at, t.ready_at, t.closed_at)
              < now() - make_interval(secs => %(days)s * 86400)
          AND NOT EXISTS (SELECT FROM event_outbox o
                          WHERE o.batch_id = t.batch_id AND o.published_at IS NULL)
          AND NOT EXISTS (SELECT FROM dead_letters d WHERE d.batch_id = t.batch_id
                          AND d.replayed_at IS NULL AND d.discarded_at IS NULL)
          AND NOT EXISTS (SELECT FROM batch_pending_content p WHERE p.batch_id = t.batch_id)
        LIMIT %(limit)s
        FOR UPDATE OF t SKIP LOCKED
    ) locked
) counted
WHERE %(slots)s::int IS NULL OR before < %(slots)s
