-- Decides whether these submissions get these slots: all of a batch, or nothing happens.
--
-- A slot is taken only if it is still open, the counter of its batch goes down by as many, and the
-- idempotency keys (those that stand beside a submission) are written with them. Fewer slots than
-- submissions of a batch make the outcomes NULL, which undoes the statement; so does a duplicate key, or
-- a content that holds a slot already. No row for a batch: not one of its slots was open.
--
-- Rows of several batches are locked in the order of their ids, so that two calls do not wait for
-- each other. The planner is made to think that there is but one of all (both conditions are always
-- true): so it looks each slot up by its key, whatever the statistics say, and plans but once.
-- Otherwise it may read a whole batch for one content.
WITH submission AS MATERIALIZED (
    SELECT b.batch_id, jsonb_array_length(b.submissions) AS due, a.*
    FROM jsonb_to_recordset(%(batches)s) AS b (batch_id text, submissions jsonb),
         jsonb_to_recordset(b.submissions) AS a (
        essay_id text, text_storage_id text, file_upload_id text, original_file_name text,
        raw_file_storage_id text, file_size_bytes bigint, content_md5_hash text,
        validation_error_code text, validation_error_detail jsonb, event_id uuid,
        key uuid, task text, fingerprint bytea, outcome jsonb
    )
    WHERE b.batch_id = b.batch_id || '' AND a.essay_id = a.essay_id || ''
    ORDER BY b.batch_id COLLATE "C", a.essay_id COLLATE "C"
), slot AS (
    UPDATE essay_states e
    SET current_status = CASE WHEN a.validation_error_code IS NULL
                              THEN 'ready_for_processing' ELSE 'content_ingestion_failed' END,
        text_storage_id = a.text_storage_id,
        file_upload_id = a.file_upload_id,
        original_file_name = a.original_file_name,
        raw_file_storage_id = a.raw_file_storage_id,
        file_size_bytes = a.file_size_bytes,
        content_md5_hash = a.content_md5_hash,
        validation_error_code = a.validation_error_code,
        validation_error_detail = a.validation_error_detail,
        assigned_at = now()
    FROM submission a
    WHERE e.batch_id = a.batch_id
      AND e.essay_id = a.essay_id
      AND e.current_status = 'awaiting_content'
    RETURNING e.batch_id, e.essay_id, e.text_storage_id, e.file_upload_id, e.original_file_name,
              a.event_id
), tracker AS (
    UPDATE batch_essay_trackers t
    SET available_slots = t.available_slots - taken.slots,
        full_at = CASE WHEN t.available_slots = taken.slots THEN now() END,
        event_sequence = t.event_sequence + taken.events
    FROM (
        SELECT batch_id, count(*)::int AS slots, count(event_id)::int AS events
        FROM slot GROUP BY batch_id ORDER BY batch_id COLLATE "C"
    ) taken
    WHERE t.batch_id = taken.batch_id
    RETURNING t.batch_id, t.available_slots, t.expected_count, t.correlation_id, taken.slots,
              t.event_sequence - taken.events AS sequence
), key AS (
    INSERT INTO idempotency_keys (key, task, fingerprint, outcome, batch_id)
    SELECT a.key, a.task, a.fingerprint, CASE WHEN t.slots = a.due THEN a.outcome END, a.batch_id
    FROM tracker t JOIN submission a USING (batch_id)
    WHERE a.key IS NOT NULL
), event AS (
    INSERT INTO event_outbox (
        id, batch_id, type, generation, sequence, correlation_id, traceparent, data
    )
    SELECT s.event_id, s.batch_id, 'EssaySlotAssigned', s.text_storage_id,
           t.sequence + row_number() OVER (PARTITION BY s.batch_id ORDER BY s.essay_id),
           t.correlation_id, %(traceparent)s::text,
           jsonb_build_object('batch_id', s.batch_id, 'essay_id', s.essay_id,
               'text_storage_id', s.text_storage_id, 'file_upload_id', s.file_upload_id,
               'original_file_name', s.original_file_name)
    FROM slot s JOIN tracker t USING (batch_id)
    WHERE s.event_id IS NOT NULL
)
SELECT batch_id, slots, available_slots, expected_count FROM tracker
