-- Decides that these submissions have no slot, which is so only while the batch has no open one.
--
-- Writes each down with its reason and, for a content that found a batch full, the event.
-- No row: the batch has open slots after all, or is not registered.
WITH submission AS MATERIALIZED (
    SELECT a.*, (given.fields ->> 'event_id')::uuid AS event_id, given.position
    FROM jsonb_array_elements(%(submissions)s) WITH ORDINALITY AS given (fields, position),
         jsonb_populate_record(NULL::essay_states, given.fields) a
), tracker AS (
    UPDATE batch_essay_trackers t
    SET event_sequence = t.event_sequence + (SELECT count(event_id) FROM submission)
    WHERE t.batch_id = %(batch_id)s AND t.available_slots = 0
    RETURNING t.correlation_id, t.event_sequence - (SELECT count(event_id) FROM submission) AS sequence
), excess AS (
    INSERT INTO excess_content (
        batch_id, kind, reason, text_storage_id, file_upload_id, original_file_name,
        raw_file_storage_id, file_size_bytes, content_md5_hash, validation_error_code,
        validation_error_detail
    )
    SELECT %(batch_id)s, CASE WHEN a.validation_error_code IS NULL THEN 'content' ELSE 'failure' END,
           %(reason)s, a.text_storage_id, a.file_upload_id, a.original_file_name,
           a.raw_file_storage_id, a.file_size_bytes, a.content_md5_hash, a.validation_error_code,
           a.validation_error_detail
    FROM submission a, tracker
), event AS (
    INSERT INTO event_outbox (
        id, batch_id, type, generation, sequence, correlation_id, traceparent, data
    )
    SELECT a.event_id, %(batch_id)s, 'ExcessContentProvisioned', a.text_storage_id,
           t.sequence + row_number() OVER (ORDER BY a.position), t.correlation_id,
           %(traceparent)s::text,
           jsonb_build_object('batch_id', %(batch_id)s::text,
               'text_storage_id', a.text_storage_id, 'file_upload_id', a.file_upload_id,
               'original_file_name', a.original_file_name, 'reason', %(reason)s::text)
    FROM submission a, tracker t
    WHERE a.event_id IS NOT NULL
)
SELECT 1 FROM tracker
