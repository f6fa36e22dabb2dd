-- Marks the next events of some batches as published. Another call for one of these batches waits for
-- this commit, and then takes what is left.
WITH next AS MATERIALIZED (
    SELECT id FROM event_outbox
    WHERE batch_id = ANY(%(batches)s) AND published_at IS NULL
    ORDER BY batch_id, sequence LIMIT %(limit)s
    FOR UPDATE
)
UPDATE event_outbox o
SET published_at = statement_timestamp(), attempts = attempts + 1, last_error = NULL
FROM next
WHERE o.id = next.id
RETURNING o.id, o.batch_id, o.type, o.sequence, o.correlation_id, o.traceparent, o.data,
          o.created_at
