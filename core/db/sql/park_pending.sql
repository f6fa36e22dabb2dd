-- Keeps submissions of a batch that nobody registered yet. Under the batch's registration lock,
-- shared, and after a look that found no tracker; so no registration can miss them.
INSERT INTO batch_pending_content (
    batch_id, kind, essay_file_id, text_storage_id, original_file_name, raw_file_storage_id,
    file_size_bytes, content_md5_hash, validation_error_code, validation_error_detail
)
SELECT %(batch_id)s, CASE WHEN a.validation_error_code IS NULL THEN 'content' ELSE 'failure' END,
       a.file_upload_id, a.text_storage_id, a.original_file_name, a.raw_file_storage_id,
       a.file_size_bytes, a.content_md5_hash, a.validation_error_code, a.validation_error_detail
FROM jsonb_populate_recordset(NULL::essay_states, %(submissions)s) a
ON CONFLICT DO NOTHING
