-- Writes events to the outbox, numbered by the rows of `told`: what was updated for them, before this
-- and in the same statement.
, posted AS (
    INSERT INTO event_outbox
        (id, batch_id, type, generation, sequence, correlation_id, traceparent, data)
    SELECT event.id, told.batch_id, event.type, event.generation,
           told.sequence + event.n, told.correlation_id, %(traceparent)s, event.data
    FROM told, jsonb_to_recordset(told.events)
        AS event(n int, id uuid, type text, generation text, data jsonb)
)
SELECT batch_id, seconds FROM told
