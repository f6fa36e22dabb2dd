-- Writes the tracker of a batch and all of its slots, under the batch's registration lock.
--
-- Waiting contents and failures take the first slots in the order of their arrival. `over` returns
-- what finds no slot, for `record_excess`.
WITH waiting AS (
    DELETE FROM batch_pending_content WHERE batch_id = %(batch_id)s RETURNING *
), ranked AS MATERIALIZED (
    SELECT w.*, row_number() OVER (ORDER BY received_at, id) AS rank FROM waiting w
), tracker AS (
    INSERT INTO batch_essay_trackers (
        batch_id, status, class_id, org_id, user_id, course_code, course_language, correlation_id,
        expected_count, available_slots, essay_ids_sha256, student_prompt_ref, metadata, on_deadline, deadline_at,
        full_at
    )
    SELECT %(batch_id)s, 'awaiting_content_validation', %(class_id)s, %(org_id)s, %(user_id)s,
           %(course_code)s, %(course_language)s, %(correlation_id)s, %(expected_count)s,
           greatest(%(expected_count)s - (SELECT count(*) FROM ranked), 0),
           %(essay_ids_sha256)s, %(student_prompt_ref)s::jsonb, %(metadata)s::jsonb,
           %(on_deadline)s, now() + make_interval(secs => %(deadline_s)s),
           CASE WHEN (SELECT count(*) FROM ranked) >= %(expected_count)s
                THEN now() END
    RETURNING available_slots
), slot AS (
    INSERT INTO essay_states (
        batch_id, essay_id, current_status, text_storage_id, file_upload_id, original_file_name,
        raw_file_storage_id, file_size_bytes, content_md5_hash, validation_error_code,
        validation_error_detail, assigned_at
    )
    SELECT %(batch_id)s, u.essay_id,
           CASE r.kind WHEN 'content' THEN 'ready_for_processing'
                       WHEN 'failure' THEN 'content_ingestion_failed'
                       ELSE 'awaiting_content' END,
           r.text_storage_id, r.essay_file_id, r.original_file_name, r.raw_file_storage_id,
           r.file_size_bytes, r.content_md5_hash, r.validation_error_code,
           r.validation_error_detail, CASE WHEN r.id IS NOT NULL THEN now() END
    FROM string_to_table(%(essay_ids)s, E'\n') WITH ORDINALITY AS u (essay_id, rank)
    LEFT JOIN ranked r USING (rank)
)
SELECT t.available_slots,
       (SELECT count(*) FROM ranked
        WHERE kind = 'content' AND rank <= %(expected_count)s) AS pending_assigned,
       (SELECT coalesce(jsonb_agg(to_jsonb(r) - '{id,batch_id,kind,received_at,essay_file_id,rank}'::text[]
                                  || jsonb_build_object('file_upload_id', essay_file_id)
                                  ORDER BY rank), '[]')
        FROM ranked r WHERE rank > %(expected_count)s) AS over
FROM tracker t
