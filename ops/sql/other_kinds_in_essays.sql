-- Finds without an index what else has an id: kind and batch_id. Reads the tables to their end if nothing
-- has it, so its caller limits the time.
(SELECT CASE %(id)s WHEN class_id THEN 'the id of a class' ELSE 'the id of an organisation' END
        AS kind, batch_id
 FROM batch_essay_trackers WHERE %(id)s IN (class_id, org_id) LIMIT %(few)s)
UNION ALL
(SELECT CASE %(id)s WHEN text_storage_id THEN 'the text_storage_id of a content'
                    WHEN essay_file_id THEN 'the file_upload_id of a file' END
        || ' that waits for a registration', batch_id
 FROM batch_pending_content WHERE %(id)s IN (text_storage_id, essay_file_id) LIMIT %(few)s)
UNION ALL
(SELECT CASE %(id)s WHEN text_storage_id THEN 'the text_storage_id of a content'
                    WHEN file_upload_id THEN 'the file_upload_id of a file' END
        || ' without a slot', batch_id
 FROM excess_content WHERE %(id)s IN (text_storage_id, file_upload_id) LIMIT %(few)s)
UNION ALL
(SELECT CASE %(id)s WHEN essay_id THEN 'the id of an essay'
                    WHEN text_storage_id THEN 'the text_storage_id of a content'
                    WHEN file_upload_id THEN 'the file_upload_id of a file'
                    WHEN original_file_name THEN 'the name of a file'
                    WHEN student_id THEN 'the id of a student' END, batch_id
 FROM essay_states
 WHERE %(id)s IN (essay_id, text_storage_id, file_upload_id, original_file_name, student_id)
 LIMIT %(few)s)
