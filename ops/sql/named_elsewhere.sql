-- Counts the contents of other batches whose file or storage ids, or file names, name this batch: those
-- that wait for a registration, that found no slot, or that hold a slot of a batch registered shortly
-- before or after this one. Each part reads so many rows at most.
WITH pending AS (
    SELECT batch_id, text_storage_id, essay_file_id AS file_upload_id, raw_file_storage_id,
           original_file_name
    FROM batch_pending_content ORDER BY received_at DESC LIMIT %(newest)s
), excess AS (
    SELECT batch_id, text_storage_id, file_upload_id, raw_file_storage_id, original_file_name
    FROM excess_content ORDER BY id DESC LIMIT %(newest)s
), slot AS (
    SELECT e.batch_id, e.text_storage_id, e.file_upload_id, e.raw_file_storage_id, e.original_file_name
    FROM batch_essay_trackers mine
    CROSS JOIN LATERAL (
        (SELECT batch_id FROM batch_essay_trackers WHERE registered_at < mine.registered_at
         ORDER BY registered_at DESC, batch_id DESC LIMIT 100)
        UNION ALL
        (SELECT batch_id FROM batch_essay_trackers WHERE registered_at >= mine.registered_at
         ORDER BY registered_at, batch_id LIMIT 100)
    ) near
    JOIN essay_states e ON e.batch_id = near.batch_id
    WHERE mine.batch_id = %(batch)s AND e.text_storage_id IS NOT NULL LIMIT %(newest)s
)
SELECT place, batch_id, count(*) AS contents FROM (
    SELECT 'pending' AS place, * FROM pending
    UNION ALL SELECT 'excess', * FROM excess
    UNION ALL SELECT 'slot', * FROM slot
) found
WHERE batch_id <> %(batch)s
  AND concat_ws(' ', text_storage_id, file_upload_id, raw_file_storage_id, original_file_name)
      ~ ('(^|[^A-Za-z0-9])' || %(batch)s || '([^A-Za-z0-9]|$)')
GROUP BY place, batch_id ORDER BY contents DESC, batch_id LIMIT %(few)s
