-- Writes missing events under the free numbers, so that the numbers of the batch have no gap. Without
-- a free number, an event gets the next one after the last.
WITH tracker AS (
    SELECT batch_id, correlation_id, event_sequence FROM batch_essay_trackers
    WHERE batch_id = %(batch_id)s
), free AS (
    SELECT n AS sequence, row_number() OVER (ORDER BY n) AS rank
    FROM tracker, generate_series(1, event_sequence + jsonb_array_length(%(events)s)) n
    WHERE NOT EXISTS (SELECT FROM event_outbox o WHERE o.batch_id = %(batch_id)s AND o.sequence = n)
), posted AS (
    INSERT INTO event_outbox (id, batch_id, type, generation, sequence, correlation_id, data)
    SELECT event.id, %(batch_id)s, event.type, event.generation, free.sequence,
           tracker.correlation_id, event.data
    FROM tracker, jsonb_to_recordset(%(events)s)
        AS event(n int, id uuid, type text, generation text, data jsonb)
    JOIN free ON free.rank = event.n
    RETURNING sequence
)
UPDATE batch_essay_trackers
SET event_sequence = greatest(event_sequence, (SELECT max(sequence) FROM posted))
WHERE batch_id = %(batch_id)s
