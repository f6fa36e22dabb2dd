-- Finds everything with an id: of a batch, an essay, a text, a file, a message (its event_id or its
-- task id), an event or a correlation; for a user, an organisation or a class, their batches. It reads
-- whole tables: for people, not for programs. The body of a dead letter may be anything, so it is
-- searched as text, for each way in which JSON can write the id.
WITH batch AS (
    SELECT batch_id FROM batch_essay_trackers
    WHERE %(id)s IN (batch_id, correlation_id::text)
    UNION SELECT %(id)s
)
SELECT * FROM (
    SELECT 'slot' AS place, batch_id, essay_id AS name, current_status AS state,
           coalesce(text_storage_id, file_upload_id) AS content, assigned_at AS at
    FROM essay_states
    WHERE batch_id IN (SELECT * FROM batch)
       OR %(id)s IN (essay_id, text_storage_id, file_upload_id)
    UNION ALL
    SELECT 'batch', batch_id,
           CASE %(id)s WHEN user_id THEN 'of this user' WHEN class_id THEN 'of this class'
                ELSE 'of this organisation' END, status, NULL, registered_at
    FROM batch_essay_trackers WHERE %(id)s IN (user_id, class_id, org_id)
    UNION ALL
    SELECT 'pending', batch_id, kind, 'waits for the registration',
           coalesce(text_storage_id, essay_file_id), received_at
    FROM batch_pending_content
    WHERE batch_id IN (SELECT * FROM batch) OR %(id)s IN (text_storage_id, essay_file_id)
    UNION ALL
    SELECT 'excess', batch_id, kind, reason, coalesce(text_storage_id, file_upload_id), received_at
    FROM excess_content
    WHERE batch_id IN (SELECT * FROM batch) OR %(id)s IN (text_storage_id, file_upload_id)
    UNION ALL
    SELECT 'message', batch_id, task, outcome ->> 'outcome', outcome ->> 'essay_id', created_at
    FROM idempotency_keys WHERE key::text = %(id)s
    UNION ALL
    SELECT 'event', batch_id, type,
           CASE WHEN published_at IS NULL THEN 'waits for delivery' ELSE 'delivered' END,
           id::text, coalesce(published_at, created_at)
    FROM event_outbox WHERE id::text = %(id)s OR batch_id IN (SELECT * FROM batch)
    UNION ALL
    SELECT 'dead letter ' || id, batch_id, task, code, task_id, parked_at
    FROM dead_letters
    WHERE %(id)s IN (task_id, batch_id)
       OR EXISTS (SELECT FROM unnest(%(quoted)s::text[]) q WHERE position(q IN body::text) > 0)
) found
ORDER BY at NULLS LAST, place, batch_id, name
LIMIT %(limit)s
