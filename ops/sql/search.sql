-- Finds batches by what people have in hand, newest first: the id of a batch or a user, or its
-- beginning; a correlation id; a file by its upload, its stored text or its name, to the letter.
--
-- A beginning is a range, which an index gives: from these words up to what is beyond all that begin
-- with them, compared bytewise.
--
-- Files have no index of their own, which the hot path would pay for at every content: they are
-- looked for by reading the essays through, only where %(files)s asks for it.
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
    -- A moment that Python cannot hold stands for the nearest one that the next page can name.
    SELECT batch_id, CASE WHEN t.registered_at < '9999-12-31Z'
                          THEN greatest(t.registered_at, '0001-01-02Z')
                          ELSE 'infinity'::timestamptz END AS since
    FROM found LEFT JOIN batch_essay_trackers t USING (batch_id)
    WHERE %(status)s::text IS NULL OR coalesce(t.status, 'not_registered') = %(status)s
)
SELECT batch_id, since::text FROM dated
WHERE (since, batch_id) < (%(since)s::timestamptz, %(batch_id)s)
ORDER BY since DESC, batch_id DESC LIMIT %(limit)s
