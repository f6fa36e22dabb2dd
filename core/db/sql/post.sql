-- Writes events to the outbox. The statement before this one took their numbers, in `numbered`.
, posted AS (
    INSERT INTO event_outbox
        (id, batch_id, type, generation, sequence, correlation_id, traceparent, data)
    SELECT event.id, numbered.batch_id, event.type, event.generation,
           numbered.sequence + event.n, numbered.correlation_id, %(traceparent)s, event.data
    FROM numbered, jsonb_to_recordset(numbered.events)
        AS event(n int, id uuid, type text, generation text, data jsonb)
)
SELECT batch_id, seconds FROM numbered
