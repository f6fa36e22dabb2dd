-- Finds batches, newest first, by a batch or user id or its prefix, by correlation id, and by the
-- exact upload id, storage id or name of a file.
--
-- A prefix is a range of an index: from the text up to a bound that sorts bytewise after everything
-- that begins with it.
--
-- Files have no index, because every content would pay for it: only %(files)s reads all essays.
WITH found AS (
    SELECT batch_id FROM batch_essay_trackers
    WHERE batch_id >= %(words)s AND batch_id < %(beyond)s
    UNION
    SELECT batch_id FROM batch_essay_trackers
    WHERE user_id ~>=~ %(words)s AND user_id ~<~ %(beyond)s
    UNION
    SELECT batch_id FROM batch_essay_trackers WHERE correlation_id = %(uuid)s::uuid
    UNION
    SELECT batch_id FROM batch_pending_content
    WHERE batch_id >= %(words)s AND batch_id < %(beyond)s
       OR %(files)s AND %(words)s IN (essay_file_id, text_storage_id, original_file_name)
    UNION
    SELECT batch_id FROM essay_states
    WHERE %(files)s AND %(words)s IN (file_upload_id, text_storage_id, original_file_name)
    UNION
    SELECT batch_id FROM excess_content
    WHERE %(files)s AND %(words)s IN (file_upload_id, text_storage_id, original_file_name)
), dated AS (
    -- Python cannot hold every moment; the nearest one it can hold serves as the cursor.
    SELECT batch_id, CASE WHEN t.registered_at < '9999-12-31Z'
                          THEN greatest(t.registered_at, '0001-01-02Z')
                          ELSE 'infinity'::timestamptz END AS since
    FROM found LEFT JOIN batch_essay_trackers t USING (batch_id)
    WHERE %(status)s::text IS NULL OR coalesce(t.status, 'not_registered') = %(status)s
)
SELECT batch_id, since::text FROM dated
WHERE (since, batch_id) < (%(since)s::timestamptz, %(batch_id)s)
ORDER BY since DESC, batch_id DESC LIMIT %(limit)s
