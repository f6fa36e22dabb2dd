-- Lets the relay deliver the next of these events again, and keeps the first delivery of each.
-- Counts them by batch.
WITH meant AS MATERIALIZED (
    SELECT id FROM event_outbox
    WHERE published_at < %(until)s AND created_at >= %(since)s
      AND (%(batch_id)s::text IS NULL OR batch_id = %(batch_id)s)
      AND (%(event_type)s::text IS NULL OR type = %(event_type)s)
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
), again AS (
    UPDATE event_outbox o
    SET published_at = NULL, first_published_at = coalesce(first_published_at, published_at)
    FROM meant WHERE o.id = meant.id
    RETURNING o.batch_id
)
SELECT batch_id, count(*) AS n FROM again GROUP BY batch_id ORDER BY batch_id
