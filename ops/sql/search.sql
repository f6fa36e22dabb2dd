-- Finds batches, newest first: by the id of a batch or a user, or its beginning; by a correlation id;
-- by a file's exact upload id, storage id or name.
--
-- An index finds a beginning as a range, compared bytewise: from these words to `beyond`, which comes
-- after everything that begins with them.
--
-- Files have no index, which each content would pay for. With %(files)s it reads all essays.
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
    -- The next page must name this moment: take the nearest one that Python can hold.
    SELECT batch_id, CASE WHEN t.registered_at < '9999-12-31Z'
                          THEN greatest(t.registered_at, '0001-01-02Z')
                          ELSE 'infinity'::timestamptz END AS since
    FROM found LEFT JOIN batch_essay_trackers t USING (batch_id)
    WHERE %(status)s::text IS NULL OR coalesce(t.status, 'not_registered') = %(status)s
)
SELECT batch_id, since::text FROM dated
WHERE (since, batch_id) < (%(since)s::timestamptz, %(batch_id)s)
ORDER BY since DESC, batch_id DESC LIMIT %(limit)s
