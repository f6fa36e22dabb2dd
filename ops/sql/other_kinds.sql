-- Finds by indexes what else has an id: kind and batch_id. The batch is NULL where there are several.
(SELECT 'the event_id of a message (' || task || ')' AS kind, batch_id
 FROM idempotency_keys WHERE key = %(uuid)s)
UNION ALL
(SELECT 'the id of an event (' || type || ')', batch_id FROM event_outbox WHERE id = %(uuid)s)
UNION ALL
(SELECT 'a correlation_id', batch_id FROM batch_essay_trackers
 WHERE correlation_id = %(uuid)s LIMIT %(few)s)
UNION ALL
(SELECT 'the number of a dead letter (' || task || ')', batch_id
 FROM dead_letters WHERE id = %(number)s)
UNION ALL
(SELECT 'the task id of dead letter ' || id || ' (' || task || ')', batch_id
 FROM dead_letters WHERE task_id = %(id)s)
UNION ALL
(SELECT 'the id of a user', batch_id FROM batch_essay_trackers
 WHERE user_id = %(id)s LIMIT %(few)s)
