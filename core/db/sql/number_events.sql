-- Takes a number for each event of a batch. No row: the batch is not registered.
UPDATE batch_essay_trackers
SET event_sequence = event_sequence + jsonb_array_length(%(events)s)
WHERE batch_id = %(batch_id)s
RETURNING batch_id, correlation_id, event_sequence - jsonb_array_length(%(events)s) AS sequence,
          %(events)s AS events, NULL::float8 AS seconds
