-- Takes so many numbers for events of a batch. No row: it is not registered.
UPDATE batch_essay_trackers
SET event_sequence = event_sequence + %(count)s
WHERE batch_id = %(batch_id)s
RETURNING batch_id, correlation_id, event_sequence
